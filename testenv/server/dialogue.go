package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"
)

// dialogue is a connection over datagrams, as QUIC is one: known by an id that
// both ends carry along and not by addresses, opened in two round trips, with
// state that no other server has. Datagrams are words:
//
//	hello ID            → retry ID TOKEN: prove that you are where you say
//	hello ID TOKEN      → welcome ID NAME REMOTE
//	ping ID N           → pong ID N NAME COUNT: COUNT pings so far
//	speak ID EVERY FOR  → word ID 0, word ID 1 … word ID N, said ID N: without being asked
//	bye ID              → gone ID
//	anything else       → reset ID NAME: of a connection that is not known here
type dialogue struct {
	name string
	conn net.PacketConn

	mu     sync.Mutex
	tokens map[string]string
	open   map[string]*session
}

type session struct {
	pings int
	to    net.Addr // where the client was last heard
	ended chan struct{}
}

func serveDialogue(c net.PacketConn, name string) error {
	d := &dialogue{name: name, conn: c, tokens: map[string]string{}, open: map[string]*session{}}
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read datagram: %w", err)
		}
		if words := strings.Fields(string(buf[:n])); len(words) >= 2 {
			d.say(from, d.hear(words, from))
		}
	}
}

func (d *dialogue) say(to net.Addr, text string) { _, _ = d.conn.WriteTo([]byte(text), to) }

// hear returns the answer.
func (d *dialogue) hear(words []string, from net.Addr) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	verb, id := words[0], words[1]
	if verb == "hello" {
		return d.hello(id, words[2:], from)
	}
	s := d.open[id]
	if s == nil {
		return fmt.Sprintf("reset %s %s", id, d.name)
	}
	s.to = from
	switch {
	case verb == "ping" && len(words) == 3:
		s.pings++
		return fmt.Sprintf("pong %s %s %s %d", id, words[2], d.name, s.pings)
	case verb == "speak" && len(words) == 4:
		every, err1 := time.ParseDuration(words[2])
		last, err2 := time.ParseDuration(words[3])
		if err1 != nil || err2 != nil || every <= 0 {
			break
		}
		go d.speak(id, s, every, last)
		return fmt.Sprintf("word %s 0", id)
	case verb == "bye":
		delete(d.open, id)
		close(s.ended)
		return "gone " + id
	}
	return fmt.Sprintf("reset %s %s", id, d.name)
}

func (d *dialogue) hello(id string, token []string, from net.Addr) string {
	if s := d.open[id]; s != nil { // the welcome was lost
		return fmt.Sprintf("welcome %s %s %s", id, d.name, s.to)
	}
	key := id + " " + from.String()
	if len(token) != 1 || token[0] != d.tokens[key] {
		var b [8]byte
		_, _ = rand.Read(b[:]) // never fails
		d.tokens[key] = hex.EncodeToString(b[:])
		return fmt.Sprintf("retry %s %s", id, d.tokens[key])
	}
	delete(d.tokens, key)
	d.open[id] = &session{to: from, ended: make(chan struct{})}
	return fmt.Sprintf("welcome %s %s %s", id, d.name, from)
}

// speak goes on without a word of the client.
func (d *dialogue) speak(id string, s *session, every, last time.Duration) {
	end := time.After(last)
	pace := time.NewTicker(every)
	defer pace.Stop()
	for n := 1; ; n++ {
		verb := "word"
		select {
		case <-s.ended:
			return
		case <-end:
			verb = "said"
		case <-pace.C:
		}
		d.mu.Lock()
		to := s.to
		d.mu.Unlock()
		d.say(to, verb+" "+id+" "+strconv.Itoa(n))
		if verb == "said" {
			return
		}
	}
}
