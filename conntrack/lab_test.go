package conntrack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

const (
	testMark = 0x51000000
	testMask = 0xff000000
)

// lab is a client and a host. The host translates the services to addresses of
// its own, by rules that the nft program loads.
type lab struct {
	*testenv.Lab
	t testing.TB
}

var (
	service4  = netip.MustParseAddr("192.0.2.10")
	service6  = netip.MustParseAddr("2001:db8::10")
	unmarked4 = netip.MustParseAddr("192.0.2.11")
)

// newLab loads rules that send port 8000+n of the services to the same port of
// the host, marked, for n < 10, and likewise without a mark for unmarked4.
func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t), t: t}
	l.Host.AddAddr(t, service4.String()+"/32", "")
	l.Host.AddAddr(t, unmarked4.String()+"/32", "")
	l.Host.AddAddr(t, service6.String()+"/128", "")
	var changes []Change
	l.in(l.Host, func() (err error) {
		changes, err = Tune()
		return err
	})
	if len(changes) == 0 {
		t.Fatal("a new namespace needed no tuning: sysctls are not per namespace")
	}
	l.Host.RunInput(t, fmt.Sprintf(`
table inet test {
	chain prerouting {
		type nat hook prerouting priority -105
		meta l4proto { tcp, udp } ip daddr %s th dport 8000-8009 ct mark set 0x51000001 dnat ip to %s
		meta l4proto { tcp, udp } ip daddr %s th dport 8000-8009 dnat ip to %s
		meta l4proto { tcp, udp } ip6 daddr %s th dport 8000-8009 ct mark set 0x51000001 dnat ip6 to %s
	}
}`, service4, l.HostAddr4, unmarked4, l.HostAddr4, service6, l.HostAddr6), "nft", "-f", "-")
	return l
}

func (l *lab) in(ns *testenv.NS, f func() error) {
	l.t.Helper()
	if err := ns.Do(f); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) backend(port uint16, proto uint8) Backend {
	return Backend{
		Service: netip.AddrPortFrom(service4, port),
		Backend: netip.AddrPortFrom(l.HostAddr4, port),
		Proto:   proto,
	}
}

func (l *lab) watch(opt Options) *Watcher {
	l.t.Helper()
	opt.Mark, opt.Mask = testMark, testMask
	var w *Watcher
	l.in(l.Host, func() (err error) {
		w, err = Watch(l.t.Context(), opt)
		return err
	})
	l.t.Cleanup(func() {
		if err := w.Close(); err != nil {
			l.t.Errorf("close watcher: %v", err)
		}
	})
	return w
}

func (l *lab) open() *Conn {
	l.t.Helper()
	var c *Conn
	l.in(l.Host, func() (err error) {
		c, err = Open(testMark, testMask)
		return err
	})
	l.t.Cleanup(func() { _ = c.Close() })
	return c
}

// serve accepts connections at the host and passes them to handle, which owns
// them.
func (l *lab) serve(port uint16, handle func(*net.TCPConn)) {
	l.t.Helper()
	for _, a := range []netip.Addr{l.HostAddr4, l.HostAddr6} {
		ln, err := l.Host.Listen("tcp", netip.AddrPortFrom(a, port).String())
		if err != nil {
			l.t.Fatal(err)
		}
		var wg sync.WaitGroup
		ctx, stop := context.WithCancel(context.Background())
		wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				wg.Go(func() {
					// A test may have taken away the entry that led to the client.
					defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
					handle(c.(*net.TCPConn))
				})
			}
		})
		l.t.Cleanup(func() {
			stop()
			_ = ln.Close()
			wg.Wait()
		})
	}
}

// Handlers of serve.

// closeFirst ends the connection, so that its TIME_WAIT is the server's and the
// client can use its port again.
func closeFirst(c *net.TCPConn) { _ = c.Close() }

// closeAfter reads until the client closes.
func closeAfter(c *net.TCPConn) {
	defer c.Close()
	b := make([]byte, 1024)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

// reset ends the connection by a RST once it has received something. (Sooner,
// the client might see it as a failure to connect.)
func reset(c *net.TCPConn) {
	_, _ = c.Read(make([]byte, 1))
	_ = c.SetLinger(0)
	_ = c.Close()
}

// dial opens a connection from the client, from a port of its own choice if
// local is 0.
func (l *lab) dial(to netip.AddrPort, local uint16) *net.TCPConn {
	l.t.Helper()
	from := netip.AddrPortFrom(l.ClientAddr4, local)
	if to.Addr().Is6() {
		from = netip.AddrPortFrom(l.ClientAddr6, local)
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(from), Control: reuse}
	d.SetMultipathTCP(false)
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	var c net.Conn
	l.in(l.Client, func() (err error) {
		c, err = d.DialContext(ctx, "tcp", to.String())
		return err
	})
	l.t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn)
}

func reuse(_, _ string, rc syscall.RawConn) error {
	var err error
	return errors.Join(rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}), err)
}

// atEOF waits for the other side's end of the connection.
func atEOF(t testing.TB, c *net.TCPConn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	b := make([]byte, 1)
	if n, err := c.Read(b); n > 0 || err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("read %d bytes, %v; want the end of the connection", n, err)
	}
}

// until polls a condition that events bring about.
func until(t testing.TB, what func() string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what())
		}
		<-tick.C
	}
}

func (l *lab) untilCount(w *Watcher, b Backend, live int, begun uint64) {
	l.t.Helper()
	until(l.t, func() string {
		c, known := w.Count(b)
		return fmt.Sprintf("%s: %+v known %v, want %d live of %d\n%s", b, c, known, live, begun,
			l.Host.Run(l.t, "conntrack", "-L"))
	}, func() bool {
		c, known := w.Count(b)
		return known && c.Live == live && c.New == begun
	})
}

func (l *lab) sync(w *Watcher) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), 60*time.Second)
	defer cancel()
	if err := w.Sync(ctx); err != nil {
		l.t.Fatal(err)
	}
}

// oracle counts flows of a backend by the conntrack program: the live ones and
// all of them.
func (l *lab) oracle(b Backend) (live, all int) {
	l.t.Helper()
	for _, f := range testenv.Conntrack(l.t, l.Host) {
		if f.Mark&testMask != testMark || f.Proto != b.Proto || f.Orig.Dst != b.Service || f.Reply.Src != b.Backend {
			continue
		}
		all++
		if f.State != "TIME_WAIT" && f.State != "CLOSE" {
			live++
		}
	}
	return live, all
}

// moved is what conntrack says that flows of a backend have moved.
func (l *lab) moved(b Backend) (c Count) {
	l.t.Helper()
	for _, f := range testenv.Conntrack(l.t, l.Host) {
		if f.Proto == b.Proto && f.Orig.Dst == b.Service && f.Reply.Src == b.Backend {
			c.In.add(Counter(f.OrigCount))
			c.Out.add(Counter(f.ReplyCount))
		}
	}
	return c
}

// unacknowledged counts the bytes that a connection has sent and the other side
// not confirmed.
func unacknowledged(t testing.TB, c *net.TCPConn) int {
	t.Helper()
	rc, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if cerr := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return n
}

func (l *lab) conntrack(args ...string) string {
	l.t.Helper()
	return strings.TrimSpace(l.Host.Run(l.t, "conntrack", args...))
}
