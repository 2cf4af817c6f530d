package accept

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// 200 clients at once and one to be taken: before they come, and after.
func TestOneOfMany(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		const n = 200
		x := newBench(t, make())
		ln := x.add(1, 2*n)

		x.must(x.loop.Arm(1, One))
		x.quiet()
		x.dial(ln.Addr(), n, 4)
		first := x.next(1)
		x.queued(ln, n-1)
		x.quiet()
		x.queued(ln, n-1)

		x.must(x.loop.Arm(1, One))
		second := x.next(1)
		x.queued(ln, n-2)
		x.quiet()

		x.must(x.loop.Arm(1, All))
		seen := map[netip.AddrPort]bool{first: true, second: true}
		for range n - 2 {
			seen[x.next(1)] = true
		}
		if len(seen) != n {
			t.Errorf("%d different clients, want %d", len(seen), n)
		}
		x.queued(ln, 0)
		x.quiet()

		// All stays in force.
		x.dial(ln.Addr(), 3, 1)
		for range 3 {
			x.next(1)
		}
		x.must(x.loop.Arm(1, Off))
		x.quiet()
		x.dial(ln.Addr(), 3, 1)
		x.quiet()
		x.queued(ln, 3)
	})
}

// All gives way to One and then ten clients come at once, while the loop is
// busy with another listener and finds them all together: it takes one.
func TestAllToOne(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		x := newBench(t, make())
		ln, busy := x.add(1, 100), x.listen("127.0.0.1:0", 4)
		x.must(x.loop.Remove(1))
		entered, leave := newSignal(), newSignal()
		l, err := open(Config{Deliver: func(c Conn) {
			if c.Listener == 2 {
				unix.Close(c.FD)
				entered.set()
				<-leave.c
				return
			}
			x.conns <- c
		}}, make())
		x.must(err)
		defer l.Close()
		x.must(l.Add(1, ln))
		x.must(l.Add(2, busy))
		x.must(l.Arm(1, All))
		x.dial(ln.Addr(), 1, 1)
		x.next(1)
		x.must(l.Arm(1, One))
		x.must(l.Arm(2, One))
		x.dial(busy.Addr(), 1, 1)
		entered.wait(t)
		x.dial(ln.Addr(), 10, 2)
		leave.set()
		x.next(1)
		x.queued(ln, 9)
		x.must(l.Close())
		if n := len(x.conns); n != 0 {
			t.Errorf("%d more delivered", n)
		}
		x.queued(ln, 9)
	})
}

// On epoll, a mode that is changed in the callback holds from there on.
func TestEpollOffFromDeliver(t *testing.T) {
	t.Parallel()
	x := newBench(t, &poller{})
	ln := x.listen("127.0.0.1:0", 100)
	var l *loop
	got := make(chan struct{}, 100)
	set := newSignal()
	l, err := open(Config{Deliver: func(c Conn) {
		unix.Close(c.FD)
		<-set.c
		if err := l.Arm(1, Off); err != nil {
			t.Error(err)
		}
		got <- struct{}{}
	}}, &poller{})
	x.must(err)
	set.set()
	x.must(l.Add(1, ln))
	x.dial(ln.Addr(), 10, 2)
	x.must(l.Arm(1, All))
	x.queued(ln, 9)
	x.must(l.Close())
	if n := len(got); n != 1 {
		t.Errorf("%d delivered, want 1", n)
	}
	x.queued(ln, 9)
}

// A connection armed for in the callback comes like any other.
func TestArmFromDeliver(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		const n = 50
		x := newBench(t, make())
		var got atomic.Int32
		done := newSignal()
		l, err := open(Config{Deliver: func(c Conn) {
			unix.Close(c.FD)
			if got.Add(1) == n {
				done.set()
				return
			}
			x.loopArm(done.loop.Load(), c.Listener)
		}}, make())
		x.must(err)
		defer l.Close()
		done.loop.Store(l)
		ln := x.listen("127.0.0.1:0", 2*n)
		x.must(l.Add(5, ln))
		x.dial(ln.Addr(), n+1, 2)
		x.must(l.Arm(5, One))
		done.wait(t)
		x.queued(ln, 1)
		x.must(l.Remove(5))
	})
}

type signal struct {
	loop atomic.Pointer[loop]
	c    chan struct{}
}

func newSignal() *signal { return &signal{c: make(chan struct{})} }
func (s *signal) set()   { close(s.c) }
func (s *signal) wait(t *testing.T) {
	t.Helper()
	select {
	case <-s.c:
	case <-time.After(patience):
		t.Fatal("timed out")
	}
}

func (x *bench) loopArm(l *loop, id uint64) {
	if err := l.Arm(id, One); err != nil {
		x.Error(err)
	}
}

// Modes change as fast as they can while clients connect: each client is
// delivered once or waits.
func TestArmHammer(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		const n, threads = 600, 3
		x := newBench(t, make())
		ln := x.add(1, 2*n)
		stop := newSignal()
		var hammers sync.WaitGroup
		for range 2 {
			hammers.Go(func() {
				for {
					select {
					case <-stop.c:
						return
					default:
						if err := x.loop.Arm(1, Mode(rand.IntN(3))); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		x.dial(ln.Addr(), n, threads)
		stop.set()
		hammers.Wait()
		x.must(x.loop.Arm(1, All))
		seen := map[netip.AddrPort]bool{}
		for range n {
			seen[x.next(1)] = true
		}
		if len(seen) != n {
			t.Errorf("%d different clients, want %d", len(seen), n)
		}
		x.quiet()
	})
}

// One at a time under load: the number delivered is the number armed for.
func TestOneHammer(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		const n = 300
		x := newBench(t, make())
		ln := x.add(1, 2*n)
		dialled := newSignal()
		go func() {
			defer dialled.set()
			x.dial(ln.Addr(), n, 2)
		}()
		const rounds = n / 2
		for range rounds {
			x.must(x.loop.Arm(1, One))
			x.next(1)
		}
		dialled.wait(t)
		x.queued(ln, n-rounds)
		x.quiet()
	})
}

// After Remove has returned nothing comes for the id, the port refuses once
// the listener is closed, and no client was lost between the two.
func TestRemoveHammer(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		const rounds, perRound = 40, 8
		x := newBench(t, make())
		for i := range uint64(rounds) {
			ln := x.listen("127.0.0.1:0", 64)
			x.must(x.loop.Add(i, ln))
			x.must(x.loop.Arm(i, []Mode{All, One, Off}[i%3]))
			dialled := newSignal()
			go func() {
				defer dialled.set()
				x.dial(ln.Addr(), perRound, 1)
			}()
			if i%2 == 0 {
				dialled.wait(t)
			}
			x.must(x.loop.Remove(i))
			delivered := len(x.conns)
			if err := x.loop.Arm(i, All); !errors.Is(err, ErrNotFound) {
				t.Fatalf("arm after remove: %v, want ErrNotFound", err)
			}
			dialled.wait(t)
			x.queued(ln, perRound-delivered)
			if late := x.barrier(); len(late) != delivered {
				t.Fatalf("%d deliveries after Remove returned", len(late)-delivered)
			} else {
				for _, c := range late {
					x.take(c)
				}
			}
			x.must(ln.Close())
			// At once, but for children that other tests have just forked:
			// until they exec they hold every descriptor.
			testenv.Eventually(t, patience, func() (bool, string) {
				err := x.ns.Do(func() error {
					c, err := dialOne(ln.Addr())
					if err == nil {
						c.Close()
					}
					return err
				})
				return errors.Is(err, unix.ECONNREFUSED), fmt.Sprintf("dial after close: %v, want ECONNREFUSED", err)
			})
		}
	})
}

// Everything at once from many goroutines; what the race detector and the
// final count say is the test.
func TestConcurrentUse(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		x := newBench(t, make())
		var delivered, dialled atomic.Int64
		stop := newSignal()
		var takers, users sync.WaitGroup
		takers.Go(func() {
			for {
				select {
				case c := <-x.conns:
					unix.Close(c.FD)
					delivered.Add(1)
				case <-stop.c:
					return
				}
			}
		})
		var waiting atomic.Int64
		const rounds = 15
		seed := rand.Uint64()
		t.Logf("seed %#x", seed)
		for g := range uint64(4) {
			var lns [rounds]*Listener
			for i := range lns {
				lns[i] = x.listen("127.0.0.1:0", 64)
			}
			users.Go(func() {
				rng := rand.New(rand.NewPCG(seed, g))
				for round, ln := range lns {
					if err := x.loop.Add(g, ln); err != nil {
						t.Errorf("round %d: %v", round, err)
						return
					}
					for range 20 {
						if err := x.loop.Arm(g, Mode(rng.IntN(3))); err != nil {
							t.Error(err)
						}
						if rng.IntN(3) == 0 {
							x.dial(ln.Addr(), 1, 1)
							dialled.Add(1)
						}
					}
					if err := x.loop.Remove(g); err != nil {
						t.Error(err)
					}
					n, err := ln.Queued()
					if err != nil {
						t.Error(err)
					}
					waiting.Add(int64(n))
					ln.Close()
				}
			})
		}
		users.Wait()
		for deadline := time.Now().Add(patience); len(x.conns) > 0 && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		stop.set()
		takers.Wait()
		if d, w, n := delivered.Load(), waiting.Load(), dialled.Load(); d+w != n {
			t.Errorf("%d delivered + %d left waiting, want %d", d, w, n)
		}
	})
}

func TestUse(t *testing.T) {
	each(t, func(t *testing.T, make func() backend) {
		x := newBench(t, make())
		ln := x.add(1, 4)
		for _, c := range []struct {
			name string
			got  error
			want error
		}{
			{"add twice", x.loop.Add(1, ln), ErrExists},
			{"arm unknown", x.loop.Arm(2, All), ErrNotFound},
			{"remove unknown", x.loop.Remove(2), ErrNotFound},
		} {
			if !errors.Is(c.got, c.want) {
				t.Errorf("%s: %v, want %v", c.name, c.got, c.want)
			}
		}
		if err := x.loop.Arm(1, All+1); err == nil {
			t.Error("armed an invalid mode")
		}
		x.must(x.loop.Arm(1, All))
		x.must(x.loop.Close())
		x.must(x.loop.Close())
		for name, err := range map[string]error{
			"add": x.loop.Add(3, ln), "arm": x.loop.Arm(1, One), "remove": x.loop.Remove(1),
		} {
			if !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s after close: %v", name, err)
			}
		}
		// Closed means that nobody accepts: the client waits.
		x.dial(ln.Addr(), 1, 1)
		x.queued(ln, 1)
	})
}

func TestTenThousandListeners(t *testing.T) {
	if testing.Short() {
		t.Skip("short")
	}
	each(t, func(t *testing.T, make func() backend) {
		const n = 10000
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err != nil {
			t.Fatal(err)
		}
		if lim.Cur < 5*n {
			many.Lock() // one backend at a time
			defer many.Unlock()
		}
		if lim.Cur < n+1000 {
			t.Skipf("needs %d descriptors, has %d", n+1000, lim.Cur)
		}
		x := newBench(t, make())
		lns := makeListeners(x, n)
		defer func() {
			for _, ln := range lns {
				ln.Close()
			}
		}()
		start := time.Now()
		for i, ln := range lns {
			x.must(x.loop.Add(uint64(i), ln))
			x.must(x.loop.Arm(uint64(i), All))
		}
		x.quiet()
		t.Logf("%s: add and arm %d listeners: %v", x.loop.Name(), n, time.Since(start).Round(time.Millisecond))
		for i := 0; i < n; i += 97 {
			x.dial(lns[i].Addr(), 1, 1)
			x.next(uint64(i))
		}
		start = time.Now()
		for i := range uint64(n) {
			x.must(x.loop.Arm(i, One))
		}
		x.quiet()
		t.Logf("%s: all to one, %d listeners: %v", x.loop.Name(), n, time.Since(start).Round(time.Millisecond))
		for i := 0; i < n; i += 97 {
			x.dial(lns[i].Addr(), 2, 1)
			x.next(uint64(i))
			x.queued(lns[i], 1)
		}
		start = time.Now()
		x.must(x.loop.Close())
		t.Logf("%s: close with %d listeners: %v", x.loop.Name(), n, time.Since(start).Round(time.Millisecond))
	})
}

var many sync.Mutex // holders together might run out of descriptors

func makeListeners(x *bench, n int) []*Listener {
	x.Helper()
	lns := make([]*Listener, 0, n)
	x.must(x.ns.Do(func() error {
		for i := range n {
			ln, err := Listen(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 1, byte(i / 5000)}), uint16(10000+i%5000)), 16)
			if err != nil {
				return err
			}
			lns = append(lns, ln)
		}
		return nil
	}))
	return lns
}
