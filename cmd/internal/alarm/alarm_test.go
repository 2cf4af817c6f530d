package alarm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

const (
	patience = 20 * time.Second
	group    = 5151
)

// call is what was reported.
type call struct {
	to    netip.AddrPort
	proto uint8
}

// lab is a host whose service addresses lead to a backend on port 8080, with
// the rule that logs packets to those of its backends that are asleep.
type lab struct {
	*testenv.Lab
	*testing.T
	net *testenv.BackendNet
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t), T: t}
	l.net = testenv.NewBackendNet(t, l.Host, 2)
	l.Host.AddAddr(t, "192.0.2.10/32", "lo")
	l.Host.AddAddr(t, "2001:db8::10/128", "lo")
	b := l.net.Backends[0]
	l.Host.RunInput(t, fmt.Sprintf(`table inet test {
		set asleep4 { type ipv4_addr . inet_proto . inet_service; elements = { %[1]s . tcp . 8080, %[1]s . udp . 8080 }; }
		set asleep6 { type ipv6_addr . inet_proto . inet_service; elements = { %[2]s . tcp . 8080, %[2]s . udp . 8080 }; }
		chain in {
			type nat hook prerouting priority dstnat
			ip daddr 192.0.2.10 meta l4proto { tcp, udp } dnat ip to %[1]s:8080
			ip6 daddr 2001:db8::10 meta l4proto { tcp, udp } dnat ip6 to [%[2]s]:8080
		}
		chain local {
			type nat hook output priority -100
			ip daddr 192.0.2.10 meta l4proto { tcp, udp } dnat ip to %[1]s:8080
			ip6 daddr 2001:db8::10 meta l4proto { tcp, udp } dnat ip6 to [%[2]s]:8080
		}
		chain out {
			type filter hook postrouting priority 0
			ip daddr . meta l4proto . th dport @asleep4 log group %[3]d
			ip6 daddr . meta l4proto . th dport @asleep6 log group %[3]d
		}
	}`, b.Addr4, b.Addr6, group), "nft", "-f", "-")
	return l
}

// open opens an alarm that the test closes, openOnce one that its caller does.
func (l *lab) open(buffer int) *Alarm {
	l.Helper()
	a := l.openOnce(buffer)
	l.Cleanup(func() {
		if err := a.Close(); err != nil {
			l.Error(err)
		}
	})
	return a
}

func (l *lab) openOnce(buffer int) *Alarm {
	l.Helper()
	var a *Alarm
	err := l.Host.Do(func() (err error) {
		a, err = open(group, buffer)
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	return a
}

// run runs the alarm until stop, which returns what Run does.
func (l *lab) run(a *Alarm) (calls chan call, lost chan struct{}, stop func() error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	calls, lost = make(chan call, 10_000), make(chan struct{}, 10_000)
	done := make(chan error, 1)
	go func() {
		done <- a.Run(ctx, func(to netip.AddrPort, proto uint8) { calls <- call{to, proto} }, func() { lost <- struct{}{} })
	}()
	stop = func() error {
		l.Helper()
		cancel(errStop)
		select {
		case err := <-done:
			done <- err
			return err
		case <-time.After(patience):
			l.Fatal("Run goes on")
			return nil
		}
	}
	l.Cleanup(func() { stop() })
	return calls, lost, stop
}

var errStop = errors.New("test is over")

func next[T any](t *testing.T, c chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		t.Fatalf("no %s", what)
	}
	return v
}

// send sends n datagrams.
func (l *lab) send(from *testenv.NS, to string, n int) {
	l.Helper()
	c, err := from.Dial(l.Context(), "udp", to)
	if err != nil {
		l.Fatal(err)
	}
	defer c.Close()
	for range n {
		if _, err := c.Write([]byte("hello")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			l.Fatal(err)
		}
	}
}

// connect makes a connection, or has it refused.
func (l *lab) connect(from *testenv.NS, to string) {
	l.Helper()
	ctx, cancel := context.WithTimeout(l.Context(), patience)
	defer cancel()
	c, err := from.Dial(ctx, "tcp", to)
	if err == nil {
		c.Close()
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		l.Fatal(err)
	}
}

// Each packet to a sleeping backend is reported at once, with the backend's
// address; of others nothing is heard.
func TestAlarm(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	calls, lost, stop := l.run(l.open(readBuffer))
	asleep, awake := l.net.Backends[0], l.net.Backends[1]
	for _, from := range []*testenv.NS{l.Client, l.Host} {
		for _, c := range []struct {
			service string
			backend netip.Addr
		}{
			{"192.0.2.10:80", asleep.Addr4},
			{"[2001:db8::10]:80", asleep.Addr6},
			{netip.AddrPortFrom(asleep.Addr4, 8080).String(), asleep.Addr4},
		} {
			l.connect(from, netip.AddrPortFrom(awake.Addr4, 8080).String())
			l.send(from, netip.AddrPortFrom(awake.Addr6, 8080).String(), 1)
			l.send(from, netip.AddrPortFrom(asleep.Addr4, 8081).String(), 1)
			to := netip.AddrPortFrom(c.backend, 8080)
			l.send(from, c.service, 1)
			if got := next(t, calls, "call by udp"); got != (call{to, unix.IPPROTO_UDP}) {
				t.Errorf("%s to %s: %v", from.Name, c.service, got)
			}
			l.connect(from, c.service)
			if got := next(t, calls, "call by tcp"); got != (call{to, unix.IPPROTO_TCP}) {
				t.Errorf("%s to %s: %v", from.Name, c.service, got)
			}
		}
	}
	if err := stop(); !errors.Is(err, errStop) {
		t.Errorf("Run returned %v", err)
	}
	if len(calls) != 0 || len(lost) != 0 {
		t.Errorf("%d more calls, %d losses", len(calls), len(lost))
	}
}

// Data on a connection that was left open is an alarm too, one per packet.
func TestOpenConnection(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ln, err := l.net.Backends[0].Listen("tcp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	c, err := l.Client.Dial(t.Context(), "tcp", "192.0.2.10:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	calls, _, _ := l.run(l.open(readBuffer))
	if len(calls) != 0 {
		t.Error("an open connection is an alarm")
	}
	if _, err := c.Write([]byte("wake up")); err != nil {
		t.Fatal(err)
	}
	if got := next(t, calls, "call"); got.proto != unix.IPPROTO_TCP || got.to.Addr() != l.net.Backends[0].Addr4 {
		t.Errorf("%v", got)
	}
}

// More packets than the buffer holds: the loss is told, and reading goes on.
func TestLost(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	backend, err := l.net.Backends[0].ListenPacket("udp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	a := l.open(1)
	const n = 200
	l.send(l.Client, "192.0.2.10:80", n)
	// All have been logged when all have arrived.
	if err := backend.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for range n {
		if _, _, err := backend.ReadFrom(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	calls, lost, stop := l.run(a)
	next(t, lost, "word of a loss")
	next(t, calls, "call from before the loss")
	// Run has read all there is when it has to wait: then a new one is heard.
	testenv.Eventually(t, patience, func() (bool, string) {
		for len(calls) > 0 {
			<-calls
		}
		l.send(l.Client, "[2001:db8::10]:80", 1)
		select {
		case c := <-calls:
			return c.to.Addr().Is6(), c.to.String()
		case <-time.After(time.Second):
			return false, "no call after the loss"
		}
	})
	if err := stop(); !errors.Is(err, errStop) {
		t.Errorf("Run returned %v", err)
	}
}

// A group has one reader; another can have it as soon as the first has closed.
func TestOneReader(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	try := func() (*Alarm, error) {
		var a *Alarm
		err := l.Host.Do(func() (err error) {
			a, err = Open(group)
			return err
		})
		return a, err
	}
	for range 20 {
		a, err := try()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := try(); !errors.Is(err, unix.EPERM) {
			t.Errorf("second reader: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Opened under fire, the answer to the request comes among packets.
func TestOpenUnderFire(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c, err := l.Client.Dial(t.Context(), "udp", "192.0.2.10:80")
	if err != nil {
		t.Fatal(err)
	}
	fired := make(chan error, 1)
	go func() {
		for {
			if _, err := c.Write([]byte("hello")); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				fired <- err
				return
			}
		}
	}()
	for range 20 {
		a := l.openOnce(4096)
		calls, _, stop := l.run(a)
		next(t, calls, "call")
		if err := stop(); !errors.Is(err, errStop) {
			t.Errorf("Run returned %v", err)
		}
		// A second run goes on where the first has stopped.
		calls, _, stop = l.run(a)
		next(t, calls, "call of a second run")
		stop()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	if err := <-fired; !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// The kernel keeps no packet back to see if there will be more of them.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.open(readBuffer)
	backend, err := l.net.Backends[0].ListenPacket("udp", "0.0.0.0:8080")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { backend.Close() })
	if err := backend.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		l.send(l.Client, "192.0.2.10:80", 1)
		if _, _, err := backend.ReadFrom(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
		var g, port, queued, mode, size int
		if n, err := fmt.Sscan(l.groups(), &g, &port, &queued, &mode, &size); n != 5 || g != group || queued != 0 || mode != copyPacket || size != copied {
			t.Errorf("group %d: %d packets kept back, mode %d, %d bytes (%v)", g, queued, mode, size, err)
		}
	}
}

// groups is the kernel's table of groups that are read.
func (l *lab) groups() string {
	l.Helper()
	var table []byte
	err := l.Host.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/netfilter/nfnetlink_log")
		return err
	})
	if err != nil {
		l.Fatal(err)
	}
	return strings.TrimSpace(string(table))
}

// Nothing is left behind: no goroutine, no group. Not parallel, for it counts
// the goroutines of all tests.
func TestNothingLeft(t *testing.T) {
	l := newLab(t)
	before := runtime.NumGoroutine()
	for range 10 {
		a := l.openOnce(readBuffer)
		calls, _, stop := l.run(a)
		l.send(l.Client, "192.0.2.10:80", 1)
		next(t, calls, "call")
		stop()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if left := l.groups(); left != "" {
		t.Errorf("groups %q", left)
	}
	testenv.Eventually(t, patience, func() (bool, string) {
		n := runtime.NumGoroutine()
		return n <= before, fmt.Sprintf("%d goroutines, %d before", n, before)
	})
}
