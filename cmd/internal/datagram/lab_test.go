package datagram

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/testenv"
)

// patience is how long an event that must come is waited for.
const patience = 20 * time.Second

var (
	service4 = netip.MustParseAddrPort("192.0.2.10:53")
	service6 = netip.MustParseAddrPort("[2001:db8::10]:53")
)

// lab is a client, a host with a group, and two backends.
type lab struct {
	*testenv.Lab
	t       testing.TB
	net     *testenv.BackendNet
	table   *nft.Table
	tracker *conntrack.Conn
	group   *Group
	held    chan Held
	faults  chan error
}

func newLab(t testing.TB, limits Limits) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t), t: t, held: make(chan Held, 1<<16), faults: make(chan error, 1<<10)}
	l.net = testenv.NewBackendNet(t, l.Host, 2)
	l.Host.AddAddr(t, "192.0.2.10/32", "")
	l.Host.AddAddr(t, "2001:db8::10/128", "")
	for _, b := range l.net.Backends {
		testenv.StartServer(t, b.NS, "PORT=0", "UDP_PORT=5353")
	}
	l.must(l.Host.Do(func() (err error) {
		if l.table, err = nft.Open(nft.Options{}); err != nil {
			return err
		}
		l.tracker, err = conntrack.Open(0, 0)
		return err
	}))
	t.Cleanup(func() {
		if err := errors.Join(l.tracker.Close(), l.table.Close()); err != nil {
			t.Error(err)
		}
	})
	l.group = l.open(limits)
	return l
}

func (l *lab) open(limits Limits) (g *Group) {
	l.t.Helper()
	l.must(l.Host.Do(func() (err error) {
		g, err = Open(Config{
			Tracker: l.tracker, Limits: limits,
			Deliver: func(h Held) { l.held <- h },
			Error: func(id uint64, err error) {
				select {
				case l.faults <- err:
				default:
				}
			},
		})
		return err
	}))
	l.t.Cleanup(func() {
		if err := g.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			l.t.Error(err)
		}
	})
	return g
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// listen makes a cold service.
func (l *lab) listen(id uint64, addr netip.AddrPort) (ln *Listener) {
	l.t.Helper()
	l.slots(addr, 0)
	l.must(l.Host.Do(func() (err error) {
		ln, err = l.group.Listen(id, addr)
		return err
	}))
	return ln
}

// slots gives a service its first n backends.
func (l *lab) slots(service netip.AddrPort, n int) {
	l.t.Helper()
	var s nft.Service
	for _, b := range l.net.Backends[:n] {
		a := b.Addr4
		if service.Addr().Is6() {
			a = b.Addr6
		}
		s.Slots = append(s.Slots, netip.AddrPortFrom(a, 5353))
	}
	at := nft.Endpoint{Addr: service.Addr(), Proto: unix.IPPROTO_UDP, Port: service.Port()}
	l.must(l.table.Apply(map[nft.Endpoint]*nft.Service{at: &s}))
}

func (l *lab) next() Held {
	l.t.Helper()
	select {
	case h := <-l.held:
		return h
	case err := <-l.faults:
		l.t.Fatal(err)
	case <-time.After(patience):
		l.t.Fatal("no client delivered")
	}
	return Held{}
}

// quiet fails if a client was delivered that nobody has asked for.
func (l *lab) quiet() {
	l.t.Helper()
	select {
	case h := <-l.held:
		l.t.Errorf("delivered again: %+v", h)
	case err := <-l.faults:
		l.t.Error(err)
	default:
	}
}

func (l *lab) released(ln *Listener, id uint64) {
	l.t.Helper()
	done := make(chan error, 2)
	ln.Release(id, func(err error) { done <- err })
	select {
	case err := <-done:
		l.must(err)
	case <-time.After(patience):
		l.t.Fatal("release does not end")
	}
}

// received waits until the listener has taken in n datagrams in all.
func (l *lab) received(ln *Listener, n uint64) {
	l.t.Helper()
	testenv.Eventually(l.t, patience, func() (bool, string) {
		s := ln.Stats()
		return s.Received >= n, fmt.Sprintf("%+v", s)
	})
}

// stats are those after what the listener is busy with.
func (l *lab) stats(ln *Listener) Stats {
	l.t.Helper()
	turn := make(chan struct{})
	if ln.post(func() { close(turn) }) {
		<-turn
	}
	return ln.Stats()
}

// peer is a client's connected socket: the kernel lets in what comes from the
// address it has dialled, and nothing else.
type peer struct {
	net.Conn
	l *lab
}

func (l *lab) dial(from *testenv.NS, service netip.AddrPort, port uint16) *peer {
	l.t.Helper()
	local := netip.AddrPort{}
	if port != 0 {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), port)
		if service.Addr().Is6() {
			local = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
		}
	}
	c, err := from.DialFrom(context.Background(), local, "udp", service.String())
	l.must(err)
	l.t.Cleanup(func() { c.Close() })
	l.must(c.SetDeadline(time.Now().Add(patience)))
	return &peer{c, l}
}

func (p *peer) addr() netip.AddrPort { return p.LocalAddr().(*net.UDPAddr).AddrPort() }

func (p *peer) send(text string) {
	p.l.t.Helper()
	_, err := p.Write([]byte(text))
	p.l.must(err)
}

// answer reads the answer to text, and returns the name of the backend.
func (p *peer) answer(text string) string {
	p.l.t.Helper()
	b := make([]byte, 1<<16)
	n, err := p.Read(b)
	if err != nil {
		p.l.t.Fatalf("no answer to %.20q for %v: %v", text, p.addr(), err)
	}
	words := strings.SplitN(string(b[:n]), " ", 3)
	if len(words) != 3 || words[2] != text {
		p.l.t.Fatalf("answer %.40q to %.20q", b[:n], text)
	}
	if words[1] != p.addr().String() {
		p.l.t.Fatalf("the backend saw %s, the client is %v", words[1], p.addr())
	}
	return words[0]
}

// flows are the tracked flows of a client with a service.
func (l *lab) flows(client, service netip.AddrPort) (list []testenv.CTFlow) {
	l.t.Helper()
	for _, f := range testenv.Conntrack(l.t, l.Host) {
		if f.Proto == unix.IPPROTO_UDP && f.Orig.Src == client && f.Orig.Dst == service {
			list = append(list, f)
		}
	}
	return list
}

// direct sends once more and sees to it that no process has a part in it.
func (p *peer) direct(ln *Listener, service netip.AddrPort) {
	p.l.t.Helper()
	before := p.l.stats(ln)
	p.send("direct")
	p.answer("direct")
	if after := p.l.stats(ln); after != before {
		p.l.t.Errorf("a later datagram came by the socket: %+v, before %+v", after, before)
	}
	fs := p.l.flows(p.addr(), service)
	if len(fs) != 1 || !fs[0].DNAT() || fs[0].Mark&nft.CTMask != nft.CTMark {
		p.l.t.Errorf("flows of %v: %v", p.addr(), fs)
	}
}
