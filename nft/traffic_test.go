package nft_test

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

func TestTraffic(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"):     l.to4(0),
		udp("192.0.2.10:80"):     l.to4(1),
		tcp("192.0.2.11:80"):     l.to4(0, 1),
		tcp("[2001:db8::10]:80"): l.to6(1),
		udp("[2001:db8::10]:80"): l.to6(0),
	})
	for _, c := range []struct {
		network, addr, want string
	}{
		{"tcp", "192.0.2.10:80", "b0"},
		{"udp", "192.0.2.10:80", "b1"},
		{"tcp", "192.0.2.11:80", "b0"},
		{"tcp", "192.0.2.11:80", "b1"},
		{"tcp", "[2001:db8::10]:80", "b1"},
		{"udp", "[2001:db8::10]:80", "b0"},
	} {
		for _, ns := range []*testenv.NS{l.Client, l.Host} {
			if ns == l.Host && c.addr == "192.0.2.11:80" {
				continue // its turns are counted from the client
			}
			conn := dial(t, ns, c.network, c.addr)
			if conn.answer.name != c.want {
				t.Errorf("%s %s from %s: %s answered, want %s", c.network, c.addr, ns.Name, conn.answer.name, c.want)
			}
			if conn.answer.from != conn.local() {
				t.Errorf("%s %s from %s: the backend saw %s, want %s", c.network, c.addr, ns.Name, conn.answer.from, conn.local())
			}
		}
	}
	// Every flow has the mark, and the mark's other bits are free.
	n := 0
	for _, f := range testenv.Conntrack(t, l.Host) {
		if f.DNAT() {
			n++
			if f.Mark != nft.CTMark {
				t.Errorf("mark %#x: %s", f.Mark, f)
			}
		}
	}
	if n < 8 {
		t.Errorf("%d translated flows, want at least 8", n)
	}
}

// TestMarkKept: bits of the conntrack mark outside of the mask belong to others.
func TestMarkKept(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.Host.RunInput(t, `table inet other { chain c { type filter hook prerouting priority -150; ct mark set 0x00001234; }; }`, "nft", "-f", "-")
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): l.to4(0)})
	dial(t, l.Client, "tcp", "192.0.2.10:80")
	for _, f := range testenv.Conntrack(t, l.Host) {
		// The other table's rule runs on later packets too, and keeps nothing.
		if f.DNAT() && f.Mark != 0x51001234 && f.Mark != 0x1234 {
			t.Errorf("mark %#x", f.Mark)
		}
	}
}

// TestRoundRobin: each service's flows go to its slots strictly in turn,
// whatever the others do.
func TestRoundRobin(t *testing.T) {
	t.Parallel()
	l := newLab(t, 4)
	addrs := map[string]int{"192.0.2.10:80": 2, "192.0.2.11:80": 2, "192.0.2.12:80": 3, "192.0.2.13:80": 4, "192.0.2.14:80": 2}
	changes := make(map[nft.Endpoint]*nft.Service)
	for a, n := range addrs {
		changes[tcp(a)] = l.to4([]int{0, 1, 2, 3}[:n]...)
	}
	apply(t, l.table, changes)
	got := make(map[string][]string)
	for range 12 {
		for _, a := range []string{"192.0.2.10:80", "192.0.2.11:80", "192.0.2.12:80", "192.0.2.13:80", "192.0.2.14:80"} {
			got[a] = append(got[a], ask(t, l.Client, "tcp", a))
		}
	}
	for a, n := range addrs {
		for i, name := range got[a] {
			if want := fmt.Sprintf("b%d", i%n); name != want {
				t.Errorf("%s, flow %d: %s answered, want %s (all: %v)", a, i, name, want, got[a])
				break
			}
		}
	}
}

// TestOverflow: services that find no lane are spread at random, and not all
// their flows go one way though they come in lock-step.
func TestOverflow(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	changes := make(map[nft.Endpoint]*nft.Service)
	for i := range 40 {
		changes[tcp(fmt.Sprintf("192.0.2.10:%d", 1000+i))] = l.to4(0, 1)
	}
	apply(t, l.table, changes)
	got := make(map[int]map[string]int)
	for range 24 {
		for i := 30; i < 40; i++ {
			if got[i] == nil {
				got[i] = make(map[string]int)
			}
			got[i][ask(t, l.Client, "tcp", fmt.Sprintf("192.0.2.10:%d", 1000+i))]++
		}
	}
	for i, n := range got {
		// One of two for 24 flows at random: less than 3 is one in 100,000.
		if n["b0"] < 3 || n["b1"] < 3 {
			t.Errorf("service %d: %v", i, n)
		}
	}
}

// TestSwap changes the slots of a service as fast as it can while flows come in:
// none may fall through to the host.
func TestSwap(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	serve(t, l.Host, "192.0.2.10:80", "host")
	at := tcp("192.0.2.10:80")
	steps := []*nft.Service{l.to4(0), l.to4(1), l.to4(1, 2), l.to4(0, 1, 2), l.to4(0, 0, 1, 1, 2, 2, 0, 1),
		l.to4(2, 0), l.to4(1), l.to4(2), l.to4(0, 2)}
	wide := new(nft.Service)
	for i := range 256 {
		wide.Slots = append(wide.Slots, netip.AddrPortFrom(l.net.Backends[i%3].Addr4, 8080))
	}
	steps = append(steps, wide)
	apply(t, l.table, map[nft.Endpoint]*nft.Service{at: steps[0]})

	var wg sync.WaitGroup
	var flows, changes atomic.Int64
	done := make(chan struct{})
	for range 4 {
		wg.Go(func() {
			for flows.Load() < 2000 {
				c, err := tryDial(l.Client, "tcp", "192.0.2.10:80")
				if err != nil {
					t.Error(err)
					return
				}
				if c.answer.name == "host" {
					t.Errorf("flow %d, near change %d, fell through to the host", flows.Load(), changes.Load())
				}
				_ = c.Close()
				flows.Add(1)
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			t.Logf("%d flows, %d changes", flows.Load(), changes.Load())
			return
		default:
		}
		s := steps[int(changes.Add(1))%len(steps)]
		apply(t, l.table, map[nft.Endpoint]*nft.Service{at: s})
	}
}

// TestCold: a service without slots is the host's own, and its clients'
// timestamps are stripped; nobody else's are.
func TestCold(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	for _, addr := range []string{"192.0.2.10:80", "[2001:db8::10]:80"} {
		at := tcp(addr)
		warm := l.to4(0)
		if at.Addr.Is6() {
			warm = l.to6(0)
		}
		for _, from := range []*testenv.NS{l.Client, l.Host} {
			ln, err := l.Host.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			accepted := func() bool {
				t.Helper()
				ctx := t.Context()
				c, err := from.Dial(ctx, "tcp", addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
				s, err := ln.Accept()
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				return timestamps(t, s)
			}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{at: nil})
			if !accepted() {
				t.Errorf("%s from %s: no timestamps though nobody strips them", addr, from.Name)
			}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{at: {}})
			if accepted() {
				t.Errorf("%s from %s: timestamps on a connection to a cold service", addr, from.Name)
			}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{at: warm})
			c := dial(t, from, "tcp", addr)
			if c.answer.name != "b0" || !timestamps(t, c.Conn) {
				t.Errorf("%s from %s, warm: %s answered, timestamps %v", addr, from.Name, c.answer.name, timestamps(t, c.Conn))
			}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{at: {}})
			if err := c.echo("still here"); err != nil {
				t.Errorf("%s from %s: the flow ended with its service: %v", addr, from.Name, err)
			}
			if accepted() {
				t.Errorf("%s from %s: timestamps on a connection to a cold service", addr, from.Name)
			}
			_ = ln.Close()
		}
	}
}

// timestamps tells whether the connection uses the timestamp option.
func timestamps(t *testing.T, c net.Conn) bool {
	t.Helper()
	const optTimestamps = 1 // TCPI_OPT_TIMESTAMPS
	return tcpInfo(t, c).Options&optTimestamps != 0
}

func tcpInfo(t *testing.T, c net.Conn) *unix.TCPInfo {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if cerr := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); cerr != nil || err != nil {
		t.Fatal(cerr, err)
	}
	return info
}

// TestHairpin: clients among the backends, and clients at 127.0.0.1, get the
// bridge's address, or the answer would not come back.
func TestHairpin(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	// Without this a packet does not leave by the port that it came in by.
	l.Host.Run(t, "ip", "link", "set", "backend0", "type", "bridge_slave", "hairpin", "on")
	l.Host.Sysctl(t, "net.ipv4.conf."+l.net.Bridge+".route_localnet", "1")
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"):     l.to4(0),
		tcp("[2001:db8::10]:80"): l.to6(0),
		tcp("127.0.0.1:80"):      l.to4(1),
		udp("192.0.2.10:80"):     l.to4(0),
	})
	b := l.net.Backends
	for name, c := range map[string]struct {
		from              *testenv.NS
		network, addr, by string
		seen              netip.Addr
	}{
		"other backend":    {b[1].NS, "tcp", "192.0.2.10:80", "b0", l.net.Addr4},
		"other backend 6":  {b[1].NS, "tcp", "[2001:db8::10]:80", "b0", l.net.Addr6},
		"other, datagrams": {b[1].NS, "udp", "192.0.2.10:80", "b0", l.net.Addr4},
		"itself":           {b[0].NS, "tcp", "192.0.2.10:80", "b0", l.net.Addr4},
		"loopback":         {l.Host, "tcp", "127.0.0.1:80", "b1", l.net.Addr4},
		"outside":          {l.Client, "tcp", "192.0.2.10:80", "b0", l.ClientAddr4},
		"outside 6":        {l.Client, "tcp", "[2001:db8::10]:80", "b0", l.ClientAddr6},
	} {
		got := dial(t, c.from, c.network, c.addr).answer
		if got.name != c.by || got.from.Addr() != c.seen {
			t.Errorf("%s: %s answered and saw %s, want %s and %s", name, got.name, got.from, c.by, c.seen)
		}
	}
	// A backend's traffic of its own is none of our business.
	if got := dial(t, b[1].NS, "tcp", netip.AddrPortFrom(b[0].Addr4, 8080).String()).answer; got.from.Addr() != b[1].Addr4 {
		t.Errorf("backend to backend: saw %s, want %s", got.from, b[1].Addr4)
	}
}

// TestMarkedDatagrams: datagrams that the daemon passes on with its packet mark
// are translated like any, and masqueraded; the mark spares TCP alone the tracking.
func TestMarkedDatagrams(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		udp("192.0.2.10:80"):     l.to4(0),
		udp("[2001:db8::10]:80"): l.to6(0),
	})
	for addr, seen := range map[string]netip.Addr{"192.0.2.10:80": l.net.Addr4, "[2001:db8::10]:80": l.net.Addr6} {
		c, err := l.Host.DialFrom(t.Context(), netip.AddrPort{}, "udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if cerr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, nft.PacketMark)
		}); cerr != nil || err != nil {
			t.Fatal(cerr, err)
		}
		_ = c.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 64)
		n := 0
		if _, err = c.Write([]byte("?")); err == nil {
			n, err = c.Read(buf)
		}
		name, from, _ := strings.Cut(strings.TrimSpace(string(buf[:n])), " ")
		if p, perr := netip.ParseAddrPort(from); err != nil || perr != nil || name != "b0" || p.Addr().Unmap() != seen {
			t.Errorf("%s: %q answered and saw %q, %v, want b0 and %s", addr, name, from, err, seen)
		}
	}
}

// TestFence: once Apply has returned, no flow finds the old slots.
func TestFence(t *testing.T) {
	t.Parallel()
	if err := nft.Fence(); err != nil {
		t.Fatal(err)
	}
	l := newLab(t, 2)
	at := tcp("192.0.2.10:80")
	for i := range 50 {
		b := i % 2
		apply(t, l.table, map[nft.Endpoint]*nft.Service{at: l.to4(b)})
		if got, want := ask(t, l.Client, "tcp", "192.0.2.10:80"), fmt.Sprintf("b%d", b); got != want {
			t.Fatalf("change %d: %s answered, want %s", i, got, want)
		}
	}
	if got := l.table.Services(); len(got) != 1 || !maps.EqualFunc(got, map[nft.Endpoint]nft.Service{at: *l.to4(1)}, equal) {
		t.Errorf("services %v", got)
	}
}
