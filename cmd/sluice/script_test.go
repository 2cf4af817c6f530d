package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"

	"sluice/testenv"
)

// script is what a client tells the test image's SCRIPT_PORT first; its acts
// are the server's part.
type script struct {
	Observe string `json:"observe,omitempty"`
	Round   string `json:"round,omitempty"`
	ID      int    `json:"id"`
	Acts    []act  `json:"acts,omitempty"`
}

// act is to send and to receive at the same time, and then perhaps to leave.
type act struct {
	Send  int           `json:"send"`
	Seed  uint64        `json:"seed"`
	Chunk int           `json:"chunk"`
	Pause time.Duration `json:"pause"`
	Recv  int           `json:"recv"`  // -1: until the other side has closed
	Leave string        `json:"leave"` // fin, reset
}

// report is what one side has received.
type report struct {
	ID  int    `json:"id"`
	N   int    `json:"n"`
	Sum string `json:"sum"`
	End string `json:"end"` // open, eof, reset, or an error
}

// play is a conversation: both sides' acts, and how the client sets out.
type play struct {
	id             int
	client, server []act
	wait           time.Duration // before the connection is opened
	mute           time.Duration // before the script is sent
	dribble        int           // bytes of the script at a time; 0: all at once
	early          string        // leaves before it has sent the script: fin, reset
	// One side resets while the other is busy and may have got less than all.
	hasty bool
	// The client may have reset while it was held: then no server hears of it.
	unheard bool
}

// newPlay makes up a conversation.
func newPlay(r *rand.Rand, id int) *play {
	p := &play{
		id:   id,
		wait: upTo(r, []time.Duration{0, 50 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond}),
		mute: upTo(r, []time.Duration{0, 0, 5 * time.Millisecond, 300 * time.Millisecond}),
	}
	if r.IntN(5) == 0 {
		p.dribble = 1 + r.IntN(30)
	}
	for range r.IntN(5) {
		var toServer, toClient int
		switch r.IntN(3) {
		case 0:
			toServer = size(r)
		case 1:
			toClient = size(r)
		default:
			toServer, toClient = size(r), size(r)
		}
		p.both(speech(r, toServer), speech(r, toClient))
	}
	// A word each way, so that nothing is under way when one side leaves.
	calm := func() {
		p.both(speech(r, 1+r.IntN(100)), act{})
		p.both(act{}, speech(r, 1+r.IntN(100)))
	}
	// last is what the side that closes last has to say.
	last := func() act { return speech(r, size(r)*r.IntN(2)) }
	switch r.IntN(12) {
	case 0, 1, 2, 3: // the client is done first
		a, b := speech(r, size(r)), last()
		a.Leave = "fin"
		p.client = append(p.client, a, act{Recv: -1})
		p.server = append(p.server, act{Recv: -1}, b)
	case 4, 5, 6: // the server is
		a, b := speech(r, size(r)), last()
		a.Leave = "fin"
		p.server = append(p.server, a, act{Recv: -1})
		p.client = append(p.client, act{Recv: -1}, b)
	case 7:
		calm()
		p.client = append(p.client, act{Leave: "reset"})
		p.server = append(p.server, act{Recv: -1})
	case 8:
		calm()
		p.both(speech(r, 1+r.IntN(100)), act{})
		p.server = append(p.server, act{Leave: "reset"})
		p.client = append(p.client, act{Recv: -1})
	case 9:
		p.hasty, p.unheard = true, true
		p.leave(&p.client, &p.server, r)
	case 10:
		p.hasty = true
		p.leave(&p.server, &p.client, r)
	case 11:
		p.early, p.unheard = []string{"fin", "reset"}[r.IntN(2)], true
	}
	return p
}

// both adds acts in which each side hears what the other says.
func (p *play) both(client, server act) {
	client.Recv, server.Recv = server.Send, client.Send
	p.client, p.server = append(p.client, client), append(p.server, server)
}

// leave lets one side reset the connection in the middle of the other's speech.
func (p *play) leave(one, other *[]act, r *rand.Rand) {
	a, b := speech(r, size(r)), speech(r, size(r))
	a.Leave = "reset"
	b.Recv = -1
	*one, *other = append(*one, a), append(*other, b)
}

func speech(r *rand.Rand, n int) act {
	a := act{Send: n, Seed: r.Uint64(), Chunk: 1 + r.IntN([]int{1, 100, 5000, 70000}[r.IntN(4)])}
	a.Chunk = max(a.Chunk, n/25)
	a.Pause = upTo(r, []time.Duration{0, 200 * time.Microsecond, 2 * time.Millisecond, 8 * time.Millisecond})
	return a
}

func size(r *rand.Rand) int { return r.IntN([]int{2, 100, 1000, 3000, 20000, 200000}[r.IntN(6)]) }

func upTo(r *rand.Rand, limits []time.Duration) time.Duration {
	return time.Duration(r.Int64N(int64(limits[r.IntN(len(limits))]) + 1))
}

// said is all that a side sends.
func said(acts []act) []byte {
	var b []byte
	for _, a := range acts {
		part, _ := io.ReadAll(testenv.Bytes(int64(a.Send), a.Seed)) // never fails
		b = append(b, part...)
	}
	return b
}

// check holds a report against the text of the other side.
func (p *play) check(rep report, text []byte) error {
	if rep.N > len(text) || !p.hasty && rep.N != len(text) {
		return fmt.Errorf("received %d of %d bytes, then: %s", rep.N, len(text), rep.End)
	}
	sum := sha256.Sum256(text[:rep.N])
	if rep.Sum != hex.EncodeToString(sum[:]) {
		return fmt.Errorf("received %d other bytes than were sent, then: %s", rep.N, rep.End)
	}
	return nil
}

// perform is the client's part.
func (p *play) perform(ctx context.Context, from *testenv.NS, addr, round string) (report, error) {
	pause(ctx, p.wait)
	dialed, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		return report{}, err
	}
	conn := dialed.(*net.TCPConn)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * patient)); err != nil {
		return report{}, err
	}
	pause(ctx, p.mute)
	text, err := json.Marshal(script{Round: round, ID: p.id, Acts: p.server})
	if err != nil {
		return report{}, err
	}
	text = append(text, '\n')
	if p.early != "" {
		text = text[:p.id%len(text)]
	}
	for len(text) > 0 {
		n := len(text)
		if p.dribble > 0 {
			n = min(n, max(p.dribble, len(text)/50))
		}
		if _, err := conn.Write(text[:n]); err != nil {
			return report{}, fmt.Errorf("send script: %w", err)
		}
		if text = text[n:]; len(text) > 0 {
			pause(ctx, time.Millisecond)
		}
	}
	a := actor{conn: conn, sum: sha256.New()}
	switch p.early {
	case "fin":
		err = a.play([]act{{Leave: "fin"}, {Recv: -1}})
	case "reset":
		err = a.play([]act{{Leave: "reset"}})
	default:
		err = a.play(p.client)
	}
	rep := report{ID: p.id, N: a.n, Sum: hex.EncodeToString(a.sum.Sum(nil)), End: a.end}
	switch {
	case err != nil && p.hasty && !errors.Is(err, context.DeadlineExceeded):
		rep.End = "hasty"
	case err != nil:
		rep.End = err.Error()
	case rep.End == "":
		rep.End = "open"
	}
	return rep, nil
}

// pause is a part of a conversation, not a way to wait for anything.
func pause(ctx context.Context, d time.Duration) {
	if d == 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// actor carries out one side's acts, as the test image does.
type actor struct {
	conn *net.TCPConn
	sum  hash.Hash
	n    int
	end  string
}

func (a *actor) play(acts []act) error {
	for _, x := range acts {
		sent := make(chan error, 1)
		go func() { sent <- a.send(x) }()
		err := a.receive(x.Recv)
		if err := errors.Join(err, <-sent); err != nil {
			return err
		}
		switch x.Leave {
		case "fin":
			err = a.conn.CloseWrite()
		case "reset":
			err = errors.Join(a.conn.SetLinger(0), a.conn.Close())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (a *actor) send(x act) error {
	text, err := io.ReadAll(testenv.Bytes(int64(x.Send), x.Seed))
	for err == nil && len(text) > 0 {
		n := min(len(text), x.Chunk)
		_, err = a.conn.Write(text[:n])
		if text = text[n:]; len(text) > 0 {
			time.Sleep(x.Pause)
		}
	}
	return err
}

func (a *actor) receive(n int) error {
	if n == 0 {
		return nil
	}
	var from io.Reader = a.conn
	if n > 0 {
		from = io.LimitReader(from, int64(n))
	}
	got, err := io.Copy(a.sum, from)
	a.n += int(got)
	if err == nil && int(got) != n {
		a.end = "eof"
		if n > 0 {
			err = io.ErrUnexpectedEOF
		}
	}
	if errors.Is(err, syscall.ECONNRESET) && n < 0 {
		a.end, err = "reset", nil
	}
	return err
}

// observer is a connection on which a server reports what it has received.
type observer struct {
	conn net.Conn
	from *bufio.Scanner
	got  map[int]report
}

func observe(ctx context.Context, from *testenv.NS, addr, round string) (*observer, error) {
	conn, err := from.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(script{Observe: round})
	if err == nil {
		_, err = conn.Write(append(text, '\n'))
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &observer{conn: conn, from: bufio.NewScanner(conn), got: make(map[int]report)}, nil
}

// report waits for the report of one conversation.
func (o *observer) report(id int) (report, error) {
	for {
		if r, ok := o.got[id]; ok {
			return r, nil
		}
		if err := o.conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
			return report{}, err
		}
		if !o.from.Scan() {
			return report{}, errors.Join(errors.New("the server does not report"), o.from.Err())
		}
		var r report
		if err := json.Unmarshal(o.from.Bytes(), &r); err != nil {
			return report{}, fmt.Errorf("parse report: %w", err)
		}
		o.got[r.ID] = r
	}
}
