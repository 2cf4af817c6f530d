package handover

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// condition is a row of the table in the package documentation.
type condition struct {
	name    string
	setup   func(t *testing.T, l *lab) // before anything listens
	listen  []func(fd int) error       // options of the held listener
	backend []func(fd int) error       // options of the backend's listener
	client  []func(fd int) error       // options of the client
	dialer  func(*net.Dialer)
	from    func(l *lab) *testenv.NS                        // the client's place, if not the client's namespace
	at      netip.AddrPort                                  // the service, if not the lab's
	to      func(l *lab, service netip.AddrPort) netip.Addr // the backend's address, if not the lab's
	before  int                                             // bytes the client sends while held
	act     func(t *testing.T, c *net.TCPConn, h Held)      // before the handover
	want    Reason
	unread  bool // the conversation is not checked
}

const maxseg = 0x2 // TCP_MAXSEG

func mtu(client, bridge, backend int) func(*testing.T, *lab) {
	return func(t *testing.T, l *lab) {
		l.Client.IP(t, fmt.Sprintf("link set eth0 mtu %d", client))
		l.Host.IP(t, fmt.Sprintf("link set eth0 mtu %d", client),
			fmt.Sprintf("link set backend0 mtu %d", bridge),
			fmt.Sprintf("link set backends0 mtu %d", bridge))
		l.backend.IP(t, fmt.Sprintf("link set eth0 mtu %d", backend))
	}
}

func inBackend(key, value string) func(*testing.T, *lab) {
	return func(t *testing.T, l *lab) { l.backend.Sysctl(t, key, value) }
}

func inClient(key, value string) func(*testing.T, *lab) {
	return func(t *testing.T, l *lab) { l.Client.Sysctl(t, key, value) }
}

func inHost(key, value string) func(*testing.T, *lab) {
	return func(t *testing.T, l *lab) { l.Host.Sysctl(t, key, value) }
}

func both(fs ...func(*testing.T, *lab)) func(*testing.T, *lab) {
	return func(t *testing.T, l *lab) {
		for _, f := range fs {
			f(t, l)
		}
	}
}

func clamp(n int) []func(int) error { return []func(int) error{sockopt(unix.IPPROTO_TCP, maxseg, n)} }

func conditions() []condition {
	return []condition{
		{name: "nothing sent", want: Done},
		{name: "a line sent", before: 80, want: Done},
		{name: "60000 bytes sent", before: 60000, want: Done},
		{name: "bridge without br_netfilter", setup: inHost("net.bridge.bridge-nf-call-iptables", "0"), before: 3000, want: Done},
		{name: "bridge-nf-call-iptables=1", setup: both(inHost("net.bridge.bridge-nf-call-iptables", "1"), inHost("net.bridge.bridge-nf-call-ip6tables", "1")), before: 3000, want: Done},

		{name: "client without window scaling", setup: inClient("net.ipv4.tcp_window_scaling", "0"), before: 20000, want: Done},
		{name: "host without window scaling", setup: inHost("net.ipv4.tcp_window_scaling", "0"), before: 20000, want: Done},
		{name: "backend without window scaling", setup: inBackend("net.ipv4.tcp_window_scaling", "0"), before: 100, want: Options},
		{name: "backend of another window scale", setup: inBackend("net.ipv4.tcp_rmem", "4096 131072 1048576"), before: 100, want: Options},
		{name: "backend with a fixed receive buffer", backend: []func(int) error{sockopt(unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10)}, before: 100, want: Options},
		{name: "backend with a small window", setup: inBackend("net.ipv4.tcp_rmem", "4096 8192 33554432"), before: 60000, want: Window},
		{name: "backend with a small window, little sent", setup: inBackend("net.ipv4.tcp_rmem", "4096 8192 33554432"), before: 1000, want: Done},

		{name: "client without SACK", setup: inClient("net.ipv4.tcp_sack", "0"), before: 5000, want: Done},
		{name: "host without SACK", setup: inHost("net.ipv4.tcp_sack", "0"), before: 5000, want: Done},
		{name: "backend without SACK", setup: inBackend("net.ipv4.tcp_sack", "0"), before: 100, want: Options},

		{name: "client without timestamps", setup: inClient("net.ipv4.tcp_timestamps", "0"), before: 100, want: Done},
		{name: "timestamps agreed on", setup: func(t *testing.T, l *lab) {
			for _, c := range []string{"cold4", "cold6"} {
				l.Host.Run(t, "nft", "flush", "set", "inet", "sluice", c)
			}
		}, before: 100, want: Options},

		{name: "ECN agreed on", setup: inClient("net.ipv4.tcp_ecn", "1"), before: 100, want: Done},
		{name: "ECN not wanted by the backend", setup: both(inClient("net.ipv4.tcp_ecn", "1"), inBackend("net.ipv4.tcp_ecn", "0")), before: 100, want: Options},
		{name: "ECN not wanted by the host", setup: both(inClient("net.ipv4.tcp_ecn", "1"), inHost("net.ipv4.tcp_ecn", "0")), before: 100, want: Done},
		{name: "client asks for Fast Open", client: []func(int) error{sockopt(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1)}, before: 100, want: Done},
		{name: "client asks for Multipath TCP", dialer: func(d *net.Dialer) { d.SetMultipathTCP(true) }, before: 100, want: Done},

		{name: "client takes 536", client: clamp(536), before: 5000, want: Done},
		{name: "client takes 1000", client: clamp(1000), before: 5000, want: Done},
		{name: "client takes 8960, told so", setup: mtu(9000, 1500, 1500), before: 30000, want: Options},
		{name: "client takes 8960, told 1400", setup: mtu(9000, 1500, 1500), listen: clamp(1400), before: 30000, want: Done},
		{name: "all take 8940", setup: mtu(9000, 9000, 9000), before: 60000, want: Done},
		{name: "backend takes more", setup: mtu(1500, 9000, 9000), before: 30000, want: Done},
		{name: "backend takes more than its bridge", setup: mtu(1500, 1500, 9000), before: 30000, want: Done},
		{name: "backend takes less than told", setup: mtu(1500, 1400, 1400), before: 30000, want: Options},
		{name: "backend takes less, told so", setup: mtu(1500, 1400, 1400), listen: clamp(1320), before: 30000, want: Done},
		{name: "bridge takes less than backend says", setup: mtu(1500, 1300, 1500), before: 30000, want: Done},

		{name: "client closed its side", before: 100, act: func(t *testing.T, c *net.TCPConn, h Held) {
			if err := c.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			waitState(t, h, stateCloseWait)
		}, want: HalfClosed},
		{name: "client closed", before: 100, act: func(t *testing.T, c *net.TCPConn, h Held) {
			c.Close()
			waitState(t, h, stateCloseWait)
		}, want: HalfClosed, unread: true},
		{name: "client reset", before: 100, act: func(t *testing.T, c *net.TCPConn, h Held) {
			_ = c.SetLinger(0)
			c.Close()
			waitState(t, h, stateClose)
		}, want: Gone, unread: true},
		{name: "urgent data", before: 100, act: func(t *testing.T, c *net.TCPConn, h Held) {
			rc, err := c.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if cerr := rc.Control(func(fd uintptr) { err = unix.Sendto(int(fd), []byte{'!'}, unix.MSG_OOB, nil) }); cerr != nil || err != nil {
				t.Fatal(cerr, err)
			}
			if err := poll(h.FD, unix.POLLPRI); err != nil {
				t.Fatal(err)
			}
		}, want: Urgent, unread: true},
		{name: "caller has read", before: 100, act: func(t *testing.T, _ *net.TCPConn, h Held) {
			if _, err := unix.Read(h.FD, make([]byte, 10)); err != nil {
				t.Fatal(err)
			}
		}, want: Used, unread: true},
		{name: "caller has written", before: 100, act: func(t *testing.T, _ *net.TCPConn, h Held) {
			if _, err := unix.Write(h.FD, []byte("220 ")); err != nil {
				t.Fatal(err)
			}
		}, want: Used, unread: true},

		{name: "client on the host", from: func(l *lab) *testenv.NS { return l.Host }, listen: clamp(1400), before: 5000, want: Done},
		{name: "client on the host, told of large segments", from: func(l *lab) *testenv.NS { return l.Host }, before: 5000, want: Options},
		{name: "client behind the bridge", from: func(l *lab) *testenv.NS { return l.net.Backends[1].NS }, before: 100, want: Hairpin},
		{name: "client on loopback", from: func(l *lab) *testenv.NS { return l.Host }, at: netip.MustParseAddrPort("127.0.0.1:80"), before: 100, want: Loopback},
		{name: "backend on the host", to: func(l *lab, service netip.AddrPort) netip.Addr {
			if service.Addr().Is4() {
				return l.HostAddr4
			}
			return l.HostAddr6
		}, before: 100, want: Loopback, unread: true},
		{name: "backend refuses", setup: func(t *testing.T, l *lab) {
			l.backend.RunInput(t, "table inet r { chain in { type filter hook input priority 0; tcp dport 8080 tcp flags syn reject with tcp reset; }; }", "nft", "-f", "-")
		}, before: 100, want: Refused, unread: true},
		{name: "backend silent", setup: func(t *testing.T, l *lab) {
			l.backend.RunInput(t, "table inet r { chain in { type filter hook input priority 0; tcp dport 8080 drop; }; }", "nft", "-f", "-")
		}, before: 100, want: Timeout, unread: true},
	}
}

func waitState(t testing.TB, h Held, state uint8) {
	t.Helper()
	testenv.Eventually(t, patience, func() (bool, string) {
		info, err := readInfo(h.FD)
		return err == nil && info.state == state, fmt.Sprintf("state %d %v", info.state, err)
	})
}

func TestConditions(t *testing.T) {
	t.Parallel()
	for _, c := range conditions() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			if c.setup != nil {
				c.setup(t, l)
			}
			l.serve(t, greet, c.backend...)
			services := []netip.AddrPort{service4, service6}
			if c.at.IsValid() {
				services = []netip.AddrPort{c.at}
			}
			for _, service := range services {
				t.Run(family(service), func(t *testing.T) { c.run(t, l, service) })
			}
		})
	}
}

func family(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "4"
	}
	return "6"
}

func (cond *condition) run(t *testing.T, l *lab, service netip.AddrPort) {
	h := l.hold(t, service, cond.listen...)
	if cond.to != nil {
		h.backend = netip.AddrPortFrom(cond.to(l, service), 8080)
	}
	from := l.Client
	if cond.from != nil {
		from = cond.from(l)
	}
	d := net.Dialer{Timeout: patience, Control: control(cond.client), KeepAlive: -1}
	d.SetMultipathTCP(false)
	if cond.dialer != nil {
		cond.dialer(&d)
	}
	c := dialWith(t, from, service, &d)
	before, after := text(cond.before, 1), text(300000, 2)
	if _, err := c.Write(before); err != nil {
		t.Fatal(err)
	}
	held := h.accept()
	waitBytes(t, held, len(before))
	if cond.act != nil {
		cond.act(t, c, held)
	}
	l.warm(t, service)
	r := l.handover(l.porter, held)[0]
	if r.Reason != cond.want {
		t.Fatalf("got %q %v, want %q", r.Reason, r.Err, cond.want)
	}
	l.thawed(t)
	if r.Reason == Done {
		if r.Err != nil || r.Bytes != len(before) {
			t.Errorf("result %+v, want %d bytes", r, len(before))
		}
		l.moved(t, held)
	}
	who := c.LocalAddr()
	if r.Reason.Relay() {
		// The descriptor is whole: whoever has it can go on.
		if _, err := readInfo(held.FD); err != nil {
			t.Error(err)
		}
		if cond.unread {
			_ = unix.Close(held.FD)
			return
		}
		who = l.relay(t, held)
	}
	if cond.unread {
		return
	}
	if cond.want == HalfClosed {
		after = nil
	}
	if err := finish(c, who, before, after); err != nil {
		t.Error(err)
	}
}
