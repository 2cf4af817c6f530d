package conntrack

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// burst makes n connections or datagrams one after the other from within the
// client's namespace.
func (l *lab) burst(n int, to netip.AddrPort, network string) error {
	d := net.Dialer{Timeout: 20 * time.Second}
	d.SetMultipathTCP(false)
	return l.Client.Do(func() error {
		for i := range n {
			if network == "udp" { // a port used twice would be one flow
				d.LocalAddr = &net.UDPAddr{Port: 10000 + i}
			}
			c, err := d.Dial(network, to.String())
			if err != nil {
				return err
			}
			if tc, ok := c.(*net.TCPConn); ok {
				_ = tc.SetLinger(0) // no TIME_WAIT that uses up ports
			} else if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
			_ = c.Close()
		}
		return nil
	})
}

// All flows are counted, none twice, while dumps go on at the same time.
func TestWatcherExact(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	w := l.watch(Options{})
	backends := []Backend{l.backend(8000, unix.IPPROTO_TCP), l.backend(8001, unix.IPPROTO_TCP), l.backend(8002, unix.IPPROTO_UDP)}
	l.serve(8000, closeAfter)
	l.serve(8001, closeFirst)
	const perBackend, held = 6_700, 7
	for range held {
		l.dial(backends[0].Service, 0)
	}

	stop := make(chan struct{})
	var syncs int
	var syncing sync.WaitGroup
	syncing.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := w.Sync(t.Context()); err != nil {
					t.Error(err)
					return
				}
				syncs++
			}
		}
	})
	var wg sync.WaitGroup
	for _, b := range backends {
		network := "tcp"
		if b.Proto == unix.IPPROTO_UDP {
			network = "udp"
		}
		wg.Go(func() {
			if err := l.burst(perBackend, b.Service, network); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Add(1)
	go func() { // not ours
		defer wg.Done()
		if err := l.burst(100, netip.AddrPortFrom(unmarked4, 8000), "tcp"); err != nil {
			t.Error(err)
		}
	}()
	wg.Wait()
	close(stop)
	syncing.Wait()

	l.untilCount(w, backends[0], held, held+perBackend)
	l.untilCount(w, backends[1], 0, perBackend)
	until(t, func() string { return "datagrams" }, func() bool {
		c, _ := w.Count(backends[2])
		return c.New == perBackend
	})
	// It fails over an entry that has ended by itself meanwhile.
	_ = l.Host.Command(t.Context(), "conntrack", "-D", "-p", "udp").Run()
	l.untilCount(w, backends[2], 0, perBackend)
	if live, _ := l.oracle(backends[0]); live != held {
		t.Errorf("conntrack lists %d live flows, want %d", live, held)
	}
	if n := w.Resyncs(); n != 0 {
		t.Errorf("%d resyncs with the default buffer", n)
	}
	total, _ := w.Total(backends[0].Service, unix.IPPROTO_TCP)
	if one, _ := w.Count(backends[0]); total != one {
		t.Errorf("service %+v, its only backend %+v", total, one)
	}
	seen := map[Backend]Count{}
	for b, c := range w.All() {
		seen[b] = c
	}
	if len(seen) != len(backends) {
		t.Errorf("%d backends, want %d: %v", len(seen), len(backends), seen)
	}
	t.Logf("%d dumps meanwhile", syncs)
}

// With a buffer that cannot hold the events the counts become unknown, a dump
// restores them, and they are right again.
func TestWatcherLoss(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	var resyncs, unexpected atomic.Int64
	w := l.watch(Options{ReadBuffer: 1, Resync: func(err error) {
		if !errors.Is(err, ErrLost) {
			unexpected.Add(1)
		}
		resyncs.Add(1)
	}})
	b := l.backend(8000, unix.IPPROTO_TCP)
	l.serve(8000, closeAfter)
	l.sync(w)
	held := []*net.TCPConn{}
	for round := range 3 {
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if err := l.burst(500, b.Service, "tcp"); err != nil {
					t.Error(err)
				}
			})
		}
		held = append(held, l.dial(b.Service, 0), l.dial(b.Service, 0))
		wg.Wait()
		if round == 2 {
			_ = held[0].Close()
		}
		until(t, func() string { return "counts to be known again" }, w.Known)
	}
	until(t, func() string { return "end of the held connection" }, func() bool {
		live, _ := l.oracle(b)
		return live == len(held)-1
	})
	// No more is needed: the Watcher recovers by itself.
	until(t, func() string {
		c, known := w.Count(b)
		return fmt.Sprintf("%+v, known %v, want %d live", c, known, len(held)-1)
	},
		func() bool { c, known := w.Count(b); return known && c.Live == len(held)-1 })
	if w.Resyncs() == 0 || resyncs.Load() != int64(w.Resyncs()) || unexpected.Load() != 0 {
		t.Errorf("%d resyncs, told of %d, %d of them for other reasons", w.Resyncs(), resyncs.Load(), unexpected.Load())
	}
	t.Logf("%d resyncs", w.Resyncs())
}

// Flows are unknown until the first dump, and found by it if they are older
// than the Watcher. What they have moved before is not counted.
func TestWatcherOlderFlows(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(8000, closeAfter)
	b := l.backend(8000, unix.IPPROTO_TCP)
	c := l.dial(b.Service, 0)
	say := func(n int) { // until the host has acknowledged it
		t.Helper()
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		until(t, func() string { return "acknowledgement" }, func() bool { return unacknowledged(t, c) == 0 })
	}
	say(100_000)
	before := l.moved(b)
	w := l.watch(Options{})
	l.sync(w)
	l.untilCount(w, b, 1, 0) // live, but not new
	if n, _ := w.Count(b); n.In != (Counter{}) || n.Out != (Counter{}) {
		t.Errorf("counted what is older: %+v", n)
	}
	say(1000)
	_ = c.Close()
	l.untilCount(w, b, 0, 0)
	l.sync(w)
	want := l.moved(b)
	want.In.add(Counter{-before.In.Packets, -before.In.Bytes})
	want.Out.add(Counter{-before.Out.Packets, -before.Out.Bytes})
	if n, _ := w.Count(b); n != want || n.In.Bytes < 1000 || n.In.Bytes > 1000+60*n.In.Packets {
		t.Errorf("%+v, conntrack says %+v", n, want)
	}
}

// Each direction is exact with a dump while flows go on, and once their end was
// announced, and no dump counts anything twice.
func TestWatcherBytes(t *testing.T) {
	t.Parallel()
	const up, down, datagrams = 1 << 20, 3 << 20, 20
	l := newLab(t)
	w := l.watch(Options{})
	tcp, udp := l.backend(8000, unix.IPPROTO_TCP), l.backend(8001, unix.IPPROTO_UDP)
	l.serve(8000, func(c *net.TCPConn) {
		defer c.Close()
		if _, err := io.CopyN(io.Discard, c, up); err != nil {
			t.Error(err)
		}
		_, _ = c.Write(make([]byte, down))
		_, _ = c.Read(make([]byte, 1))
	})
	c := l.dial(tcp.Service, 0)
	if _, err := c.Write(make([]byte, up)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, down); err != nil {
		t.Fatal(err)
	}
	if err := l.burst(datagrams, udp.Service, "udp"); err != nil {
		t.Fatal(err)
	}
	l.sync(w)
	if n, _ := w.Count(tcp); n.In.Bytes < up || n.Out.Bytes < down {
		t.Errorf("while it goes on: %+v", n)
	}
	_ = c.Close()
	l.untilCount(w, tcp, 0, 1)
	l.untilCount(w, udp, datagrams, datagrams)
	until(t, func() string { return "TIME_WAIT" }, func() bool { live, all := l.oracle(tcp); return live == 0 && all == 1 })
	check := func(when string, b Backend, want Count) {
		t.Helper()
		if n, _ := w.Count(b); n.In != want.In || n.Out != want.Out {
			t.Errorf("%s, %s: in %v out %v, conntrack says in %v out %v", b, when, n.In, n.Out, want.In, want.Out)
		}
	}
	wantTCP, wantUDP := l.moved(tcp), l.moved(udp)
	for range 2 { // the second dump tells nothing new
		l.sync(w)
		check("dumped", tcp, wantTCP)
		check("dumped", udp, wantUDP)
	}
	// Nobody answers the datagrams but ICMP, which is no part of their flow.
	if n := (Counter{datagrams, datagrams * 29}); wantUDP.In != n || wantUDP.Out != (Counter{}) {
		t.Errorf("datagrams: %+v, want %v", wantUDP, n)
	}
	for _, d := range []struct {
		n       Counter
		payload uint64
	}{{wantTCP.In, up}, {wantTCP.Out, down}} {
		// Headers of 20 to 120 bytes; a packet of the kernel's own is counted
		// before or after segments were put together, so less than 40 each.
		if d.n.Bytes <= d.payload+20*d.n.Packets || d.n.Bytes > d.payload+120*d.n.Packets {
			t.Errorf("%v for %d bytes", d.n, d.payload)
		}
	}
	l.conntrack("-D", "-p", "tcp")
	l.conntrack("-D", "-p", "udp")
	until(t, func() string { return "end of all flows" }, func() bool {
		_, ok := w.Forget(l.backend(8000, 99)) // of no backend
		w.mu.Lock()
		defer w.mu.Unlock()
		return ok && len(w.table.flows) == 0
	})
	check("ended", tcp, wantTCP)
	check("ended", udp, wantUDP)
	total, _ := w.Total(tcp.Service, tcp.Proto)
	if n, ok := w.Forget(tcp); !ok || n.In != wantTCP.In || n.Out != wantTCP.Out || n.In != total.In {
		t.Errorf("forgotten at %+v, %v; the service has %+v", n, ok, total)
	}
	if n, _ := w.Total(tcp.Service, tcp.Proto); n != total {
		t.Errorf("service has %+v, %+v before its backend was forgotten", n, total)
	}
}

// Refresh dumps when the last dump is too old, and otherwise does not.
func TestWatcherRefresh(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(8000, closeAfter)
	w := l.watch(Options{})
	l.sync(w)
	b := l.backend(8000, unix.IPPROTO_TCP)
	c := l.dial(b.Service, 0)
	l.untilCount(w, b, 1, 1)
	if err := w.Refresh(t.Context(), time.Hour); err != nil {
		t.Fatal(err)
	}
	if n, _ := w.Count(b); n.Bytes() != 0 {
		t.Errorf("there was a dump: %+v", n)
	}
	_, _ = c.Write([]byte("x"))
	until(t, func() string { return "bytes of a dump" }, func() bool {
		if err := w.Refresh(t.Context(), 0); err != nil {
			t.Fatal(err)
		}
		n, _ := w.Count(b)
		return n.In.Packets >= 3
	})
}

// A connection is live until it is closed, not until its entry goes.
func TestWatcherTimeWait(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	zeros := make(chan Backend, 10)
	w := l.watch(Options{Zero: func(b Backend) { zeros <- b }})
	for i, handle := range []func(*net.TCPConn){closeAfter, closeFirst, reset} {
		port := 8000 + uint16(i)
		l.serve(port, handle)
		for _, b := range []Backend{
			l.backend(port, unix.IPPROTO_TCP),
			{netip.AddrPortFrom(service6, port), netip.AddrPortFrom(l.HostAddr6, port), unix.IPPROTO_TCP},
		} {
			c := l.dial(b.Service, 0)
			if i > 0 {
				_, _ = c.Write([]byte("x"))
				atEOF(t, c)
			}
			_ = c.Close()
			select {
			case z := <-zeros:
				if z != b {
					t.Errorf("zero for %s, want %s", z, b)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("%s did not run empty\n%s", b, l.conntrack("-L"))
			}
			l.untilCount(w, b, 0, 1)
			if live, all := l.oracle(b); live != 0 || all != 1 {
				t.Errorf("conntrack lists %d live of %d", live, all)
			}
		}
	}
}

// The next connection from the same port counts, whether the kernel makes a new
// entry for it (after TIME_WAIT) or opens the old one again (after a RST of the
// server).
func TestWatcherReusedTuple(t *testing.T) {
	t.Parallel()
	for name, handle := range map[string]func(*net.TCPConn){"time-wait": closeFirst, "reset": reset} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			w := l.watch(Options{})
			b := l.backend(8000, unix.IPPROTO_TCP)
			hold := make(chan struct{})
			var n atomic.Int64
			l.serve(8000, func(c *net.TCPConn) {
				if n.Add(1) == 3 {
					<-hold
				}
				handle(c)
			})
			defer close(hold)
			for i := range 2 {
				c := l.dial(b.Service, 5555)
				_, _ = c.Write([]byte("x"))
				atEOF(t, c)
				_ = c.Close()
				l.untilCount(w, b, 0, uint64(i)+1)
				until(t, func() string { return "one finished entry" }, func() bool {
					live, all := l.oracle(b)
					return live == 0 && all == 1
				})
			}
			l.dial(b.Service, 5555)
			l.untilCount(w, b, 1, 3)
			l.sync(w)
			l.untilCount(w, b, 1, 3)
			if n := w.Resyncs(); n != 0 {
				t.Errorf("%d resyncs", n)
			}
		})
	}
}

// The filter passes what it should and nothing else.
func TestEventFilter(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(8000, closeFirst)
	var w *Watcher
	l.in(l.Host, func() (err error) {
		w, err = newWatcher(Options{Mark: testMark, Mask: testMask}) // nobody reads
		return err
	})
	defer w.finish(ErrClosed)
	// More than net.core.rmem_max allows without CAP_NET_ADMIN.
	if n, err := w.events.ReadBuffer(); n < DefaultReadBuffer || err != nil {
		t.Errorf("read buffer of %d bytes, %v", n, err)
	}
	b := l.backend(8000, unix.IPPROTO_TCP)
	for _, a := range []netip.Addr{unmarked4, service4} {
		c := l.dial(netip.AddrPortFrom(a, 8000), 5555)
		atEOF(t, c)
		_ = c.Close()
		until(t, func() string { return "TIME_WAIT" }, func() bool {
			for _, f := range l.flows() {
				if f.Orig.Dst.Addr() == a && f.State == StateTimeWait {
					return true
				}
			}
			return false
		})
	}
	l.conntrack("-D", "-p", "tcp")
	if err := w.raw.Control(func(fd uintptr) { w.fill(fd) }); err != nil || w.ferr != nil {
		t.Fatal(err, w.ferr)
	}
	var got []string
	for rest := w.buf[:w.end]; len(rest) > 0; {
		m, r, err := nextMessage(rest)
		if err != nil {
			t.Fatal(err)
		}
		rest = r
		var f Flow
		if err := decode(m.data, &f); err != nil {
			t.Fatal(err)
		}
		if ok, diff := compareLibrary(m, &f); !ok || diff != nil {
			t.Errorf("the library differs: ok %v, %v", ok, diff)
		}
		if f.Backend() != b {
			t.Errorf("event of %s", &f)
		}
		got = append(got, fmt.Sprintf("%d %s", kindOf(m.typ, m.flags), f.State))
	}
	want := []string{"1 SYN_SENT", "2 SYN_RECV", "2 TIME_WAIT", "3 TIME_WAIT"}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("events %v, want %v", got, want)
	}
}

// flows lists all entries, also those without the mark, and compares the view
// of the library.
func (l *lab) flows() []Flow {
	l.t.Helper()
	var flows []Flow
	l.in(l.Host, func() error {
		c, err := Open(0, 0)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.Snapshot(func(f *Flow) error {
			flows = append(flows, *f)
			return nil
		})
	})
	return flows
}

func TestWatcherForget(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(8000, closeFirst)
	w, c := l.watch(Options{}), l.open()
	b := l.backend(8000, unix.IPPROTO_TCP)
	if _, ok := w.Forget(b); !ok {
		t.Error("a backend that never had a flow is not forgotten")
	}
	atEOF(t, l.dial(b.Service, 0))
	until(t, func() string { return "first flow" }, func() bool { n, _ := w.Count(b); return n.New == 1 })
	if n, ok := w.Forget(b); ok || n.New != 1 {
		t.Error("forgotten while there is an entry")
	}
	if _, err := c.DeleteBackend(t.Context(), b.Backend, b.Proto); err != nil {
		t.Fatal(err)
	}
	until(t, func() string { return "entry to go" }, func() bool { _, ok := w.Forget(b); return ok })
	if n, _ := w.Count(b); n != (Count{}) {
		t.Errorf("forgotten backend has %+v", n)
	}
	if n, _ := w.Total(b.Service, b.Proto); n.New != 1 || n.Live != 0 {
		t.Errorf("service has %+v", n)
	}
	for b := range w.All() {
		t.Errorf("%s is still listed", b)
	}
}

func TestWatcherClose(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	w := l.watch(Options{})
	l.sync(w)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if err := w.Sync(context.Background()); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if _, known := w.Count(l.backend(8000, unix.IPPROTO_TCP)); known {
		t.Error("counts are known after the end")
	}
	select {
	case <-w.Done():
	default:
		t.Error("not done after Close")
	}

	ctx, cancel := context.WithCancel(t.Context())
	l.in(l.Host, func() (err error) {
		w, err = Watch(ctx, Options{Mark: testMark, Mask: testMask})
		return err
	})
	cancel()
	select {
	case <-w.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("still running after its context ended")
	}
	if !errors.Is(w.Err(), ErrClosed) {
		t.Error(w.Err())
	}
}

// A Sync whose time runs out leaves the Watcher in order.
func TestWatcherSyncCancelled(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	w := l.watch(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 100 {
		if err := w.Sync(ctx); err != nil && !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	l.sync(w)
	if !w.Known() {
		t.Error("counts unknown after a sync")
	}
}
