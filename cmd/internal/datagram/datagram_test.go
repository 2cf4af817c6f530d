package datagram

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/testenv"
)

// each runs f for both families, and for clients outside and on the host.
func each(t *testing.T, f func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort)) {
	t.Parallel()
	for _, service := range []netip.AddrPort{service4, service6} {
		family := "ipv6"
		if service.Addr().Is4() {
			family = "ipv4"
		}
		t.Run(family+"/outside", func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Limits{})
			f(t, l, l.Client, service)
		})
		t.Run(family+"/host", func(t *testing.T) {
			t.Parallel()
			l := newLab(t, Limits{})
			f(t, l, l.Host, service)
		})
	}
}

func TestFirst(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(7, service)
		p := l.dial(from, service, 0)
		p.send("first")
		h := l.next()
		if h.Client != p.addr() || h.Service != service || h.Listener != 7 || h.At.IsZero() {
			t.Errorf("delivered %+v, client %v", h, p.addr())
		}
		l.slots(service, 2)
		l.released(ln, h.ID)
		name := p.answer("first")
		p.direct(ln, service)
		p.send("second")
		if again := p.answer("second"); again != name {
			t.Errorf("answered by %s, then by %s", name, again)
		}
		if s := l.stats(ln); s.Passed != 1 || s.Received != 1 || s.Datagrams != 0 || s.Bytes != 0 || s.Again != 0 {
			t.Errorf("%+v", s)
		}
		l.quiet()
	})
}

func TestOrder(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		for i := range 10 {
			p.send(fmt.Sprint("datagram ", i))
		}
		h := l.next()
		l.received(ln, 10)
		l.slots(service, 1)
		l.released(ln, h.ID)
		for i := range 10 {
			p.answer(fmt.Sprint("datagram ", i))
		}
		p.direct(ln, service)
		l.quiet()
	})
}

func TestLarge(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		for _, n := range []int{60_000, 1_232 - 8, 1_233 - 8, 1_480, 0, 1} {
			text := strings.Repeat("0123456789", n/10+1)[:n]
			p.send(text)
			h := l.next()
			l.slots(service, 1)
			l.released(ln, h.ID)
			p.answer(text)
			ln.Set(Hold)
			l.slots(service, 0)
			l.must(l.tracker.Delete(conntrack.Tuple{Src: p.addr(), Dst: service, Proto: unix.IPPROTO_UDP}))
		}
	})
}

func TestManyClients(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		const n = 100
		ln := l.listen(1, service)
		peers := map[netip.AddrPort]*peer{}
		for range n {
			p := l.dial(from, service, 0)
			peers[p.addr()] = p
		}
		for _, p := range peers {
			p.send("one")
			p.send("two")
		}
		l.received(ln, 2*n)
		l.slots(service, 2)
		ln.Set(Pass)
		for range n {
			h := l.next()
			if peers[h.Client] == nil {
				t.Fatalf("delivered %+v", h)
			}
			l.released(ln, h.ID)
		}
		names := map[string]int{}
		for _, p := range peers {
			name := p.answer("one")
			if again := p.answer("two"); again != name {
				t.Errorf("%v: answered by %s, then by %s", p.addr(), name, again)
			}
			names[name]++
		}
		if len(names) != 2 || names["backend0"] != n/2 {
			t.Errorf("clients per backend: %v", names)
		}
		if s := l.stats(ln); s.Passed != 2*n || s.Datagrams != 0 || s.Dropped+s.Overflowed+s.Lost != 0 {
			t.Errorf("%+v", s)
		}
		l.quiet()
	})
}

// A client that never changes its port, while the service sleeps and wakes.
func TestFixedPort(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 5000)
		for i := range 3 {
			text := fmt.Sprint("cycle ", i)
			p.send(text)
			h := l.next()
			l.slots(service, 1)
			ln.Set(Pass)
			l.released(ln, h.ID)
			p.answer(text)
			p.direct(ln, service)

			ln.Set(Hold)
			l.slots(service, 0)
			backend := netip.AddrPortFrom(l.net.Backends[0].Addr4, 5353)
			if service.Addr().Is6() {
				backend = netip.AddrPortFrom(l.net.Backends[0].Addr6, 5353)
			}
			if i == 1 {
				n, err := Sweep(t.Context(), l.tracker, []netip.AddrPort{service}, nil)
				if n != 1 || err != nil {
					t.Errorf("swept %d, %v", n, err)
				}
			} else if n, err := l.tracker.DeleteBackend(t.Context(), backend, unix.IPPROTO_UDP); n != 1 || err != nil {
				t.Errorf("deleted %d, %v", n, err)
			}
		}
		l.quiet()
	})
}

// A client whose flow began cold, and that sends when the service is warm.
func TestStraggler(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		p.send("refused")
		ln.Refuse(l.next().ID)
		l.stats(ln) // it is done
		l.slots(service, 2)
		ln.Set(Pass)
		l.stats(ln) // it is done
		p.send("straggler")
		p.answer("straggler")
		p.direct(ln, service)
		l.quiet()
		if s := l.stats(ln); s.Refused != 1 || s.Passed != 1 || s.Again != 0 {
			t.Errorf("%+v", s)
		}

		// An entry without translation appears after the first was deleted.
		tuple := conntrack.Tuple{Src: p.addr(), Dst: service, Proto: unix.IPPROTO_UDP}
		l.must(l.tracker.Delete(tuple))
		l.must(l.tracker.Create(conntrack.Entry{Orig: tuple, Backend: service, Timeout: patience}))
		p.send("once more")
		p.answer("once more")
		p.direct(ln, service)
		if s := l.stats(ln); s.Received != 3 || s.Passed != 2 || s.Again != 1 {
			t.Errorf("%+v", s)
		}

		// One arrives although a translated entry is there: that one stays.
		id := func() (id uint32) {
			l.must(l.tracker.Snapshot(func(f *conntrack.Flow) error {
				if f.Orig == tuple {
					id = f.ID
				}
				return nil
			}))
			return id
		}
		was := id()
		l.untracked(flow{p.addr(), service}, "late")
		p.answer("late")
		if now := id(); was == 0 || now != was {
			t.Errorf("entry %d has become %d", was, now)
		}
		if s := l.stats(ln); s.Received != 4 || s.Passed != 3 {
			t.Errorf("%+v", s)
		}
	})
}

// untracked sends a datagram that conntrack does not see, and so the socket does.
func (l *lab) untracked(fl flow, text string) {
	l.t.Helper()
	const mark = 0x99
	l.Host.RunInput(l.t, fmt.Sprintf("table inet blind { chain c { type filter hook output priority -300; meta mark %d notrack; }; }", mark), "nft", "-f", "-")
	l.must(l.Host.Do(func() error {
		w, err := openWire(mark)
		if err != nil {
			return err
		}
		defer w.close()
		return w.send(fl, datagram{data: []byte(text), hops: 9})
	}))
}

// The table loses its slots behind the listener's back: what comes is passed on
// again and again, ever more slowly, and arrives when the slots are back.
func TestTableLost(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		ln.Set(Pass)
		l.stats(ln) // it is done
		p := l.dial(from, service, 0)
		p.send("patient")
		testenv.Eventually(t, patience, func() (bool, string) {
			s := ln.Stats()
			return s.Again >= 3, fmt.Sprintf("%+v", s)
		})
		l.slots(service, 1)
		p.answer("patient")
		p.direct(ln, service)
		l.quiet()
	})
}

func TestRefuse(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		p.send("a")
		first := l.next()
		ln.Refuse(first.ID)
		l.stats(ln) // it is done
		p.send("b")
		second := l.next()
		if second.Client != first.Client || second.ID == first.ID {
			t.Errorf("%+v, then %+v", first, second)
		}
		if s := l.stats(ln); s.Refused != 1 || s.Clients != 1 || s.Datagrams != 1 {
			t.Errorf("%+v", s)
		}
		l.released(ln, first.ID) // nothing is held under it
		l.slots(service, 1)
		l.released(ln, second.ID)
		p.answer("b")
	})
}

// A service at every address, at two of the host's and at 127.0.0.1, beside one
// at a single address.
func TestWildcard(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{})
	for _, dev := range []string{"all", "backends0"} {
		l.Host.Sysctl(t, "net.ipv4.conf."+dev+".route_localnet", "1")
	}
	wild4, wild6 := netip.MustParseAddrPort("0.0.0.0:53"), netip.MustParseAddrPort("[::]:53")
	for i, c := range []struct {
		wild, single netip.AddrPort
		at           []netip.Addr
	}{
		{wild4, service4, []netip.Addr{l.HostAddr4, l.net.Addr4}},
		{wild6, service6, []netip.Addr{l.HostAddr6, l.net.Addr6}},
	} {
		ln := l.listen(uint64(10*i), c.wild)
		one := l.listen(uint64(10*i+1), c.single)
		var peers []*peer
		for _, a := range c.at {
			for _, from := range []*testenv.NS{l.Client, l.Host} {
				p := l.dial(from, netip.AddrPortFrom(a, 53), 0)
				p.send("wild")
				if h := l.next(); h.Service != netip.AddrPortFrom(a, 53) || h.Client != p.addr() {
					t.Errorf("delivered %+v, client %v", h, p.addr())
				}
				peers = append(peers, p)
			}
		}
		p := l.dial(l.Client, c.single, 0)
		p.send("single")
		if h := l.next(); h.Listener != uint64(10*i+1) {
			t.Errorf("delivered %+v", h)
		}
		l.slots(c.wild, 1)
		ln.Set(Pass)
		for _, p := range peers {
			p.answer("wild")
		}
		l.slots(c.single, 1)
		one.Set(Pass)
		p.answer("single")
	}
	// The backend sees the host in place of 127.0.0.1.
	l.slots(wild4, 0)
	ln := l.listener(0)
	ln.Set(Hold)
	c := l.dial(l.Host, netip.MustParseAddrPort("127.0.0.1:53"), 0)
	c.send("local")
	h := l.next()
	l.slots(wild4, 1)
	l.released(ln, h.ID)
	b := make([]byte, 100)
	n, err := c.Read(b)
	l.must(err)
	if want := "backend0 " + l.net.Addr4.String(); !strings.HasPrefix(string(b[:n]), want) {
		t.Errorf("answer %q, want %q", b[:n], want)
	}
	// ::1 cannot be translated, and nobody else's datagrams are carried.
	l.dial(l.Host, netip.MustParseAddrPort("[::1]:53"), 0).send("local")
	if h := l.next(); !h.Carry || h.Client.Addr() != netip.IPv6Loopback() || h.Service.Addr() != netip.IPv6Loopback() {
		t.Errorf("delivered %+v", h)
	}
	l.quiet()
}

func (l *lab) listener(id uint64) *Listener {
	l.group.mu.Lock()
	defer l.group.mu.Unlock()
	return l.group.listeners[id]
}

func TestBounds(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{Client: 1000, Clients: 3, Total: 2000})
	ln := l.listen(1, service4)
	p := l.dial(l.Client, service4, 0)
	x := strings.Repeat("x", 400)
	for _, tail := range []string{"1", "2", "3"} { // the third exceeds the client's share
		p.send(x + tail)
	}
	l.received(ln, 3)
	q, r, s := l.dial(l.Client, service4, 0), l.dial(l.Client, service4, 0), l.dial(l.Client, service4, 0)
	q.send(x + x)
	l.received(ln, 4)
	r.send(x + x + "1") // exceeds the total, and its client stays unknown
	l.received(ln, 5)
	r.send("2")
	l.received(ln, 6)
	s.send("a fourth client")
	l.received(ln, 7)
	st := l.stats(ln)
	if st.Clients != 3 || st.Datagrams != 4 || st.Bytes != 401+401+800+minCharge || st.Dropped != 3 {
		t.Errorf("%+v", st)
	}
	for _, want := range []*peer{p, q, r} {
		if h := l.next(); h.Client != want.addr() {
			t.Errorf("delivered %+v, want %v", h, want.addr())
		}
	}
	l.quiet()
	l.slots(service4, 1)
	ln.Set(Pass)
	p.answer(x + "1")
	p.answer(x + "2")
	q.answer(x + x)
	r.answer("2")
	s.send("a fourth client") // its entry is cold, and it finds room now
	s.answer("a fourth client")
	p.direct(ln, service4)
}

func TestListenErrors(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{})
	ln := l.listen(1, service4)
	listen := func(id uint64, addr string) error {
		return l.Host.Do(func() error {
			_, err := l.group.Listen(id, netip.MustParseAddrPort(addr))
			return err
		})
	}
	if err := listen(1, "192.0.2.10:54"); !errors.Is(err, ErrExists) {
		t.Errorf("same id: %v", err)
	}
	if err := listen(2, "192.0.2.10:53"); !errors.Is(err, ErrExists) {
		t.Errorf("same address: %v", err)
	}
	other, err := l.Host.ListenPacket("udp4", "192.0.2.10:55")
	l.must(err)
	defer other.Close()
	if err := listen(2, "192.0.2.10:55"); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "another program") {
		t.Errorf("taken: %v", err)
	}
	if err := listen(2, "[fe80::1%lo]:53"); err == nil {
		t.Error("zone accepted")
	}
	l.must(ln.Close())
	if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed twice: %v", err)
	}
	done := make(chan error, 1)
	ln.Release(1, func(err error) { done <- err })
	if err := <-done; !errors.Is(err, ErrClosed) {
		t.Errorf("released after close: %v", err)
	}
	l.must(listen(1, "192.0.2.10:53"))
	// Not on this host (yet).
	l.must(listen(3, "198.51.100.7:53"))
	l.must(listen(4, "[2001:db8::7]:53"))
}

func TestSweep(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{})
	ln := l.listen(1, service4)
	cold := l.dial(l.Client, service4, 0)
	cold.send("cold")
	ln.Refuse(l.next().ID)
	l.slots(service4, 1)
	warm := l.dial(l.Client, service4, 0)
	warm.send("warm")
	warm.answer("warm")
	backend := netip.AddrPortFrom(l.net.Backends[0].Addr4, 5353)
	sweep := func(service netip.AddrPort, keep func(netip.AddrPort) bool) (n int) {
		l.must(l.Host.Do(func() (err error) {
			n, err = Sweep(t.Context(), l.tracker, []netip.AddrPort{service}, keep)
			return err
		}))
		return n
	}
	wild := netip.MustParseAddrPort("0.0.0.0:53")
	all := func(b netip.AddrPort) bool { return b == backend }
	if n := sweep(netip.MustParseAddrPort("192.0.2.10:54"), nil); n != 0 {
		t.Errorf("swept %d of another service", n)
	}
	if n := sweep(wild, all); n != 1 || len(l.flows(cold.addr(), service4)) != 0 {
		t.Errorf("swept %d, want the cold one: %v", n, l.flows(cold.addr(), service4))
	}
	warm.direct(ln, service4)
	cold.direct(ln, service4) // without the listener's help
	if n := sweep(service4, nil); n != 2 {
		t.Errorf("swept %d, want 2", n)
	}
	// Flows that only pass through this host are not a wildcard service's.
	through := l.dial(l.Client, netip.AddrPortFrom(l.net.Backends[1].Addr4, 5353), 0)
	through.send("through")
	through.answer("through")
	if n := sweep(netip.MustParseAddrPort("0.0.0.0:5353"), nil); n != 0 {
		t.Errorf("swept %d that pass through", n)
	}
}
