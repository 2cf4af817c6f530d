package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// script is the first line that a client sends to SCRIPT_PORT, in JSON. With
// Observe set the answer is one report per line for every script of that round,
// whether it has ended or will. Otherwise the server carries out the acts, one
// after the other, and closes.
type script struct {
	Observe string `json:"observe"`
	Round   string `json:"round"`
	ID      int    `json:"id"`
	Acts    []act  `json:"acts"`
}

// act is to send and to receive at the same time, and then perhaps to leave.
type act struct {
	Send  int           `json:"send"` // bytes of ChaCha8 keyed by Seed, as /bytes gives them
	Seed  uint64        `json:"seed"`
	Chunk int           `json:"chunk"` // bytes per write
	Pause time.Duration `json:"pause"` // between writes
	Recv  int           `json:"recv"`  // bytes; -1: until the other side has closed
	Leave string        `json:"leave"` // "fin" closes this direction, "reset" both at once
}

// report is what one side has received after the line of the script.
type report struct {
	ID  int    `json:"id"`
	N   int    `json:"n"`
	Sum string `json:"sum"` // SHA-256
	End string `json:"end"` // "open" as far as seen, "eof", "reset", or an error
}

// scriptPatience ends what would otherwise hang.
const scriptPatience = 2 * time.Minute

// rounds keeps reports until they are observed.
type rounds struct {
	mu    sync.Mutex
	known map[string]*round
}

type round struct {
	reports []report
	grown   chan struct{} // closed and renewed with every report
}

func serveScript(l net.Listener) error {
	rs := &rounds{known: make(map[string]*round)}
	return each(l, func(c net.Conn) { rs.hold(c.(*net.TCPConn)) })
}

func (rs *rounds) hold(c *net.TCPConn) {
	_ = c.SetDeadline(time.Now().Add(scriptPatience))
	r := bufio.NewReader(c)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return // left before it has said what it wants
	}
	var s script
	if err := json.Unmarshal(line, &s); err != nil {
		fmt.Fprintln(c, err)
		return
	}
	if s.Observe != "" {
		_ = c.SetDeadline(time.Time{})
		rs.observe(c, r, s.Observe)
		return
	}
	p := player{conn: c, from: r, sum: sha256.New()}
	err = p.play(s.Acts)
	_ = c.Close()
	rs.add(s.Round, p.report(s.ID, err))
}

func (rs *rounds) add(name string, rep report) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r := rs.round(name)
	r.reports = append(r.reports, rep)
	close(r.grown)
	r.grown = make(chan struct{})
}

// round expects the lock.
func (rs *rounds) round(name string) *round {
	r := rs.known[name]
	if r == nil {
		r = &round{grown: make(chan struct{})}
		rs.known[name] = r
	}
	return r
}

// observe sends the reports of a round until the client leaves.
func (rs *rounds) observe(c net.Conn, r io.Reader, name string) {
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = io.Copy(io.Discard, r) // ends when the client leaves
	}()
	out := json.NewEncoder(c)
	for sent := 0; ; {
		rs.mu.Lock()
		round := rs.round(name)
		news, grown := round.reports[sent:], round.grown
		rs.mu.Unlock()
		for _, rep := range news {
			if out.Encode(rep) != nil {
				return
			}
		}
		sent += len(news)
		select {
		case <-grown:
		case <-left:
			return
		}
	}
}

// player carries out one side's acts.
type player struct {
	conn *net.TCPConn
	from io.Reader
	sum  hash.Hash
	n    int
	end  string
}

func (p *player) play(acts []act) error {
	for _, a := range acts {
		sent := make(chan error, 1)
		go func() { sent <- p.send(a) }()
		err := errors.Join(p.receive(a.Recv), <-sent)
		if err != nil {
			return err
		}
		switch a.Leave {
		case "fin":
			err = p.conn.CloseWrite()
		case "reset":
			err = errors.Join(p.conn.SetLinger(0), p.conn.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *player) send(a act) error {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], a.Seed)
	from := rand.NewChaCha8(key)
	buf := make([]byte, max(1, min(a.Chunk, a.Send)))
	for left := a.Send; left > 0; {
		n := min(left, len(buf))
		_, _ = from.Read(buf[:n]) // never fails
		if _, err := p.conn.Write(buf[:n]); err != nil {
			return err
		}
		if left -= n; left > 0 {
			time.Sleep(a.Pause)
		}
	}
	return nil
}

func (p *player) receive(n int) error {
	if n == 0 {
		return nil
	}
	from := p.from
	if n > 0 {
		from = io.LimitReader(from, int64(n))
	}
	got, err := io.Copy(p.sum, from)
	p.n += int(got)
	if err == nil && int(got) != n {
		p.end = "eof"
		if n > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if errors.Is(err, syscall.ECONNRESET) && n < 0 {
		p.end, err = "reset", nil
	}
	return err
}

func (p *player) report(id int, err error) report {
	r := report{ID: id, N: p.n, Sum: hex.EncodeToString(p.sum.Sum(nil)), End: p.end}
	switch {
	case err != nil:
		r.End = err.Error()
	case r.End == "":
		r.End = "open"
	}
	return r
}
