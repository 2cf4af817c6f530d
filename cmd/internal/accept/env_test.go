package accept

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/uring"
	"sluice/testenv"
)

const patience = 20 * time.Second // until an event that must come is given up

// backends are all that one shared test body runs against.
var backends = []struct {
	name string
	make func() backend
}{
	{"io_uring", func() backend { return &ring{} }},
	{"io_uring-single", func() backend { return &ring{plain: true} }},
	{"io_uring-small", func() backend { return &ring{completions: 8} }},
	{"epoll", func() backend { return &poller{} }},
}

// each runs f against every backend that this host has.
func each(t *testing.T, f func(t *testing.T, make func() backend)) {
	t.Parallel()
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			if b.name != "epoll" {
				if err := uring.Probe(); err != nil {
					t.Skipf("no io_uring here: %v", err)
				}
			}
			t.Parallel()
			f(t, b.make)
		})
	}
}

type fault struct {
	id  uint64
	err error
}

// bench is a loop with what it delivers, and a namespace to dial in.
type bench struct {
	testing.TB
	ns     *testenv.NS
	loop   *loop
	conns  chan Conn
	faults chan fault
	probe  *Listener // see barrier
}

const probeID = ^uint64(0)

func newBench(t testing.TB, b backend) *bench {
	t.Helper()
	x := &bench{
		TB: t, ns: testenv.NewNS(t, "host"),
		conns: make(chan Conn, 1<<16), faults: make(chan fault, 1<<10),
	}
	x.open(b)
	x.probe = x.listen("127.0.0.1:0", 16)
	x.must(x.loop.Add(probeID, x.probe))
	return x
}

func (x *bench) open(b backend) {
	x.Helper()
	l, err := open(Config{
		Deliver: func(c Conn) {
			select {
			case x.conns <- c:
			default:
				panic("sink is full")
			}
		},
		Error: func(id uint64, err error) {
			select {
			case x.faults <- fault{id, err}:
			default:
			}
		},
	}, b)
	x.must(err)
	x.loop = l
	x.Cleanup(func() {
		l.Close()
		for {
			select {
			case c := <-x.conns:
				unix.Close(c.FD)
				continue
			default:
			}
			break
		}
	})
}

func (x *bench) must(err error) {
	x.Helper()
	if err != nil {
		x.Fatal(err)
	}
}

// listen opens a listener in the namespace. It is closed before the namespace
// and, as cleanups go backwards, before the loop: so Remove first.
func (x *bench) listen(addr string, backlog int) *Listener {
	x.Helper()
	var ln *Listener
	x.must(x.ns.Do(func() (err error) {
		ln, err = Listen(netip.MustParseAddrPort(addr), backlog)
		return err
	}))
	x.Cleanup(func() { ln.Close() })
	return ln
}

func (x *bench) add(id uint64, backlog int) *Listener {
	x.Helper()
	ln := x.listen("127.0.0.1:0", backlog)
	x.must(x.loop.Add(id, ln))
	x.Cleanup(func() {
		if err := x.loop.Remove(id); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, net.ErrClosed) {
			x.Error(err)
		}
	})
	return ln
}

// dial makes n connections in the namespace, from as many threads as told.
func (x *bench) dial(addr netip.AddrPort, n, threads int) []*net.TCPConn {
	x.Helper()
	var (
		mu    sync.Mutex
		wg    sync.WaitGroup
		conns []*net.TCPConn
	)
	for i := range threads {
		share := n / threads
		if i == 0 {
			share += n % threads
		}
		wg.Go(func() {
			err := x.ns.Do(func() error {
				for range share {
					c, err := dialOne(addr)
					if err != nil {
						return err
					}
					mu.Lock()
					conns = append(conns, c)
					mu.Unlock()
				}
				return nil
			})
			if err != nil {
				x.Error(err)
			}
		})
	}
	wg.Wait()
	x.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
	if len(conns) != n {
		x.Errorf("%d of %d connections", len(conns), n)
	}
	return conns
}

// dialOne connects on the calling thread, hence in its namespace. Closing the
// connection resets it: no TIME_WAIT eats up the ports.
func dialOne(addr netip.AddrPort) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: patience}
	d.SetMultipathTCP(false)
	c, err := d.DialContext(context.Background(), "tcp", addr.String())
	if err != nil {
		return nil, err
	}
	tc := c.(*net.TCPConn)
	return tc, tc.SetLinger(0)
}

// next waits for one connection and closes it.
func (x *bench) next(id uint64) netip.AddrPort {
	x.Helper()
	select {
	case c := <-x.conns:
		if c.Listener != id {
			x.Fatalf("connection of listener %d, want %d", c.Listener, id)
		}
		return x.take(c)
	case <-time.After(patience):
		x.Fatal("no connection delivered")
	}
	return netip.AddrPort{}
}

// take checks what a receiver may rely on and returns the client's address.
func (x *bench) take(c Conn) netip.AddrPort {
	x.Helper()
	defer unix.Close(c.FD)
	fl, err := unix.FcntlInt(uintptr(c.FD), unix.F_GETFL, 0)
	if err != nil || fl&unix.O_NONBLOCK == 0 {
		x.Errorf("status flags %#x, %v: want non-blocking", fl, err)
	}
	if fd, err := unix.FcntlInt(uintptr(c.FD), unix.F_GETFD, 0); err != nil || fd&unix.FD_CLOEXEC == 0 {
		x.Errorf("descriptor flags %#x, %v: want close-on-exec", fd, err)
	}
	sa, err := unix.Getpeername(c.FD)
	x.must(err)
	return addrPort(sa)
}

// barrier returns when the loop has acted on every call made before it and
// has delivered what that brought: a connection of the probe's own has made
// the round trip, twice because what was asked first may need the kernel's
// confirmation before it is in force.
func (x *bench) barrier() (others []Conn) {
	x.Helper()
	for range 2 {
		x.must(x.loop.Arm(probeID, One))
		x.dial(x.probe.Addr(), 1, 1)
		timeout := time.After(patience)
		for found := false; !found; {
			select {
			case c := <-x.conns:
				if found = c.Listener == probeID; found {
					unix.Close(c.FD)
				} else {
					others = append(others, c)
				}
			case <-timeout:
				x.Fatal("loop does not answer")
			}
		}
	}
	return others
}

// quiet is a barrier at which nothing else may have been delivered.
func (x *bench) quiet() {
	x.Helper()
	for _, c := range x.barrier() {
		x.Errorf("connection of listener %d from %v delivered, want none", c.Listener, x.take(c))
	}
}

func (x *bench) queued(ln *Listener, want int) {
	x.Helper()
	testenv.Eventually(x, patience, func() (bool, string) {
		n, err := ln.Queued()
		return err == nil && n == want, fmt.Sprintf("%d queued (%v), want %d", n, err, want)
	})
}

// child runs the calling test again in a process of its own, for what touches
// the whole process. It returns true in that process.
func child(t *testing.T) bool {
	t.Helper()
	const env = "SLUICE_ACCEPT_TEST_CHILD"
	if os.Getenv(env) == t.Name() {
		return true
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), env+"="+t.Name())
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	// Having run nothing is success as well.
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatal("the child did not run the test")
	}
	return false
}
