package datagram

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
)

// carry has what a client sends carried to a backend, and returns what is told of
// its end.
func (l *lab) carry(ln *Listener, id uint64, backend int) (x *Exchange, done chan [2]uint64) {
	l.t.Helper()
	to := netip.AddrPortFrom(l.net.Backends[backend].Addr4, 5353)
	conn, err := l.Host.Dial(context.Background(), "udp", to.String())
	l.must(err)
	done = make(chan [2]uint64, 2)
	return ln.Carry(id, conn.(*net.UDPConn), func(in, out uint64) { done <- [2]uint64{in, out} }), done
}

// said sends and returns the name of the backend that answers.
func (p *peer) said(text string) string {
	p.l.t.Helper()
	p.send(text)
	b := make([]byte, 1<<16)
	n, err := p.Read(b)
	p.l.must(err)
	var name, seen, back string
	if _, err := fmt.Sscan(string(b[:n]), &name, &seen, &back); err != nil || back != text {
		p.l.t.Fatalf("answer %q to %q: %v", b[:n], text, err)
	}
	return name
}

// TestCarry: what a client at ::1 has sent, and goes on to send, gets to one
// backend and is answered, in either mode, until the exchange is ended; then it is
// a new client.
func TestCarry(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{Exchanges: 2})
	at := netip.MustParseAddrPort("[::1]:53")
	var ln *Listener
	l.must(l.Host.Do(func() (err error) {
		ln, err = l.group.Listen(1, at)
		return err
	}))
	p := l.dial(l.Host, at, 0)
	for round, mode := range []Mode{Hold, Pass} {
		ln.Set(mode)
		p.send("one")
		h := l.next()
		if !h.Carry || h.Client != p.addr() || h.Service != at {
			t.Errorf("delivered %+v", h)
		}
		p.send("two")
		l.received(ln, uint64(4*round+2))
		if s := l.stats(ln); s.Datagrams != 2 {
			t.Errorf("held: %+v", s)
		}
		x, done := l.carry(ln, h.ID, round)
		b := make([]byte, 100)
		for range 2 {
			if _, err := p.Read(b); err != nil {
				t.Fatal(err)
			}
		}
		for _, text := range []string{"three", "four"} {
			if name := p.said(text); name != l.net.Backends[round].Name {
				t.Errorf("%s has answered", name)
			}
		}
		moved := x.Moved()
		x.End()
		if n := <-done; n[0]+n[1] != moved || n[0] != uint64(len("onetwothreefour")) || n[1] <= n[0] {
			t.Errorf("carried %v", n)
		}
		l.quiet()
	}

	// Refused, as when the service cannot be woken: what comes next is new.
	p.send("five")
	ln.Refuse(l.next().ID)
	if s := l.stats(ln); s.Refused != 1 {
		t.Errorf("after a refusal: %+v", s)
	}
	p.send("six")
	h := l.next()

	// With too many the longest silent goes.
	_, first := l.carry(ln, h.ID, 0)
	if _, err := p.Read(make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	peers := []*peer{l.dial(l.Host, at, 0), l.dial(l.Host, at, 0)}
	var done []chan [2]uint64
	for i, q := range peers {
		q.send("seven")
		_, d := l.carry(ln, l.next().ID, 0)
		done = append(done, d)
		if _, err := q.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			p.said("still-here")
		}
	}
	if n := <-done[0]; n[0] != uint64(len("seven")) {
		t.Errorf("carried %v", n)
	}
	p.said("here-as-well")

	// A backend that does not listen; the client's next datagram begins anew.
	q := l.dial(l.Host, at, 0)
	q.send("eight")
	h = l.next()
	conn, err := l.Host.Dial(context.Background(), "udp", netip.AddrPortFrom(l.net.Backends[0].Addr4, 1).String())
	l.must(err)
	refused := make(chan [2]uint64, 1)
	ln.Carry(h.ID, conn.(*net.UDPConn), func(in, out uint64) { refused <- [2]uint64{in, out} })
	if n := <-refused; n != [2]uint64{5, 0} {
		t.Errorf("carried %v to nobody", n)
	}
	q.send("nine")
	h = l.next()

	// The end of the listener is the end of all.
	l.must(ln.Close())
	if n := <-first; n[0] <= 3 {
		t.Errorf("carried %v", n)
	}
	_, late := l.carry(ln, h.ID, 0)
	if n := <-late; n != [2]uint64{} {
		t.Errorf("carried %v after the end", n)
	}
}
