package datagram

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/testenv"
)

// Clients that go on sending while their service wakes lose nothing, and stay
// with one backend.
func TestStream(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		const clients, total, window, before = 4, 300, 40, 20
		ln := l.listen(1, service)
		var wg sync.WaitGroup
		var overtaken [clients]int
		var began sync.WaitGroup
		began.Add(clients)
		going := make(chan struct{})
		for i := range clients {
			p := l.dial(from, service, 0)
			wg.Go(func() {
				// The backend's socket has room for so many of each at a time.
				credit := make(chan bool, window)
				go func() {
					for n := range total {
						credit <- true
						if _, err := fmt.Fprint(p, n); err != nil {
							t.Error(err)
							return
						}
						if n == before {
							began.Done()
							<-going
						}
					}
				}()
				seen := make([]bool, total)
				last := -1
				name := ""
				b := make([]byte, 200)
				for range total {
					size, err := p.Read(b)
					if err != nil {
						t.Errorf("%v: not answered, first number %d, last %d: %v", p.addr(), slices.Index(seen, false), last, err)
						return
					}
					<-credit
					words := strings.Fields(string(b[:size]))
					n, err := strconv.Atoi(words[2])
					if err != nil || seen[n] || words[1] != p.addr().String() || name != "" && words[0] != name {
						t.Errorf("%v, %s before: answer %q", p.addr(), name, b[:size])
						return
					}
					seen[n], name = true, words[0]
					if n < last {
						overtaken[i]++
					}
					last = max(last, n)
				}
			})
		}
		began.Wait()
		l.slots(service, 2)
		close(going)
		ln.Set(Pass)
		wg.Wait()
		s := l.stats(ln)
		t.Logf("overtaken: %v; %+v", overtaken, s)
		if s.Dropped+s.Overflowed+s.Lost+s.Unusable != 0 || s.Passed != s.Received {
			t.Errorf("%+v", s)
		}
	})
}

// The kernel's checks of addresses are strict, and the loopback device takes no
// large packets.
func TestStrictHost(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		for _, ns := range []*testenv.NS{l.Client, l.Host, l.net.Backends[0].NS} {
			for _, dev := range []string{"all", "default", "lo", "eth0", "backends0"} {
				if ns == l.Host || dev != "backends0" {
					ns.Sysctl(t, "net.ipv4.conf."+dev+".rp_filter", "1")
				}
			}
		}
		l.Host.IP(t, "link set lo mtu 1500")
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		text := strings.Repeat("strict", 9000)
		p.send(text)
		h := l.next()
		l.slots(service, 1)
		l.released(ln, h.ID)
		p.answer(text)
		p.direct(ln, service)
	})
}

// Another table's rule is in the way: the owner hears of it.
func TestLost(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		ln := l.listen(1, service)
		p := l.dial(from, service, 0)
		p.send("lost")
		p.send("lost too")
		h := l.next()
		l.received(ln, 2)
		l.Host.RunInput(t, "table inet other { chain out { type filter hook output priority 0; udp dport 5353 drop; }; }", "nft", "-f", "-")
		l.slots(service, 1)
		done := make(chan error, 1)
		ln.Release(h.ID, func(err error) { done <- err })
		if err := <-done; !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), p.addr().String()) {
			t.Errorf("released: %v", err)
		}
		if s := l.stats(ln); s.Lost != 2 || s.Passed != 0 || s.Datagrams != 0 {
			t.Errorf("%+v", s)
		}
		l.Host.Run(t, "nft", "delete", "table", "inet", "other")
		p.direct(ln, service)
	})
}

// meanwhile is a conntrack that has something happen during its first change.
type meanwhile struct {
	Tracker
	once sync.Once
	f    func()
}

func (m *meanwhile) Do(x *conntrack.Batch) ([]error, error) {
	m.once.Do(m.f)
	return m.Tracker.Do(x)
}

// A client that comes while others are passed on, and then waits for its answer,
// is passed on without anything else to wake the listener.
func TestComesMeanwhile(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		p, late := l.dial(from, service, 0), l.dial(from, service, 0)
		var ln *Listener
		l.group.cfg.Tracker = &meanwhile{Tracker: l.tracker, f: func() {
			if _, err := late.Write([]byte("late")); err != nil {
				t.Error(err)
			}
			// The listener is busy here: it does not take the datagram away.
			in := []unix.PollFd{{Fd: int32(ln.fd), Events: unix.POLLIN}}
			n, err := unix.Poll(in, int(patience.Milliseconds()))
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Poll(in, int(patience.Milliseconds()))
			}
			if n != 1 || err != nil {
				t.Errorf("datagrams in the socket: %d, %v", n, err)
			}
		}}
		ln = l.listen(1, service)
		late.send("makes its flow a cold one")
		ln.Refuse(l.next().ID)
		p.send("first")
		l.next()
		l.slots(service, 2)
		ln.Set(Pass)
		p.answer("first")
		late.answer("late")
		late.direct(ln, service)
		p.direct(ln, service)
	})
}

// broken is a conntrack that fails for a while.
type broken struct {
	Tracker
	mu   sync.Mutex
	left int
}

var errBroken = errors.New("broken")

func (b *broken) Do(x *conntrack.Batch) ([]error, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left > 0 {
		b.left--
		return nil, errBroken
	}
	return b.Tracker.Do(x)
}

func TestTrackerFails(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{})
	l.group.cfg.Tracker = &broken{Tracker: l.tracker, left: 3}
	ln := l.listen(1, service4)
	p := l.dial(l.Client, service4, 0)
	p.send("first")
	h := l.next()
	l.slots(service4, 1)
	l.released(ln, h.ID)
	p.answer("first")
	for range 3 {
		if err := <-l.faults; !errors.Is(err, errBroken) {
			t.Error(err)
		}
	}
	p.direct(ln, service4)
}

// BenchmarkPass is what it takes to pass on one client with one datagram.
func BenchmarkPass(b *testing.B) {
	l := newLab(b, Limits{})
	ln := l.listen(1, service4)
	const n = 200
	var peers []*peer
	for range n {
		peers = append(peers, l.dial(l.Client, service4, 0))
	}
	var passing time.Duration
	var received uint64
	for b.Loop() {
		for _, p := range peers {
			p.send("x")
		}
		received += n
		l.received(ln, received)
		l.slots(service4, 1)
		start := time.Now()
		ln.Set(Pass)
		l.stats(ln)
		l.stats(ln) // a turn later it is done
		passing += time.Since(start)
		ln.Set(Hold)
		l.slots(service4, 0)
		if _, err := Sweep(b.Context(), l.tracker, []netip.AddrPort{service4}, nil); err != nil {
			b.Fatal(err)
		}
	}
	if s := ln.Stats(); s.Passed != received {
		b.Errorf("%+v", s)
	}
	b.ReportMetric(float64(passing.Microseconds())/float64(b.N)/n, "µs/client")
}
