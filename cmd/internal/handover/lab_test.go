package handover

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sluice/testenv"
)

const (
	packetMark = 0x51
	patience   = 20 * time.Second // for an event that must come
)

// lab is a client, a host that holds connections, and a backend.
type lab struct {
	*testenv.Lab
	net     *testenv.BackendNet
	backend *testenv.Backend
	porter  *Porter
	rules   *rules
	tracker *tracker
}

var (
	service4 = netip.MustParseAddrPort("192.0.2.10:80")
	service6 = netip.MustParseAddrPort("[2001:db8::10]:80")
)

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t)}
	l.net = testenv.NewBackendNet(t, l.Host, 1)
	l.backend = l.net.Backends[0]
	l.Host.AddAddr(t, "192.0.2.10/32", "")
	l.Host.AddAddr(t, "2001:db8::10/128", "")
	l.rules = newRules(t, l.Host)
	l.tracker = newTracker(t, l.Host)
	l.porter = l.open(t, l.rules, l.tracker)
	return l
}

func (l *lab) open(t testing.TB, f Freezer, tr Tracker) *Porter {
	t.Helper()
	var p *Porter
	err := l.Host.Do(func() (err error) {
		p, err = Open(f, tr, packetMark)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// handover runs a batch in the host's namespace.
func (l *lab) handover(p *Porter, batch ...Held) []Result {
	var r []Result
	_ = l.Host.Do(func() error {
		r = p.Handover(context.Background(), batch)
		return nil
	})
	return r
}

// rules is a stand-in for the table: the same verdicts, said in text.
type rules struct {
	ns *testenv.NS
	t  testing.TB
}

const ruleset = `
table inet s {
	set frozen4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; flags timeout; }
	set replay4 { type ipv4_addr . inet_service . ipv4_addr . inet_service; flags timeout; }
	set frozen6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; flags timeout; }
	set replay6 { type ipv6_addr . inet_service . ipv6_addr . inet_service; flags timeout; }
	chain in {
		type filter hook prerouting priority raw;
		ip saddr . tcp sport . ip daddr . tcp dport @frozen4 counter drop
		ip6 saddr . tcp sport . ip6 daddr . tcp dport @frozen6 counter drop
		tcp flags & (syn|rst) != 0 ip daddr . tcp dport . ip saddr . tcp sport @replay4 drop
		tcp flags & (syn|rst) != 0 ip6 daddr . tcp dport . ip6 saddr . tcp sport @replay6 drop
		ip daddr 192.0.2.10 tcp flags & (syn|ack) == syn reset tcp option timestamp
		ip6 daddr 2001:db8::10 tcp flags & (syn|ack) == syn reset tcp option timestamp
	}
	chain out {
		type filter hook output priority raw;
		meta mark 0x51 notrack accept
		ip saddr . tcp sport . ip daddr . tcp dport @frozen4 counter drop
		ip6 saddr . tcp sport . ip6 daddr . tcp dport @frozen6 counter drop
		ip daddr 192.0.2.10 tcp flags & (syn|ack) == syn reset tcp option timestamp
	}
	chain guard {
		type filter hook prerouting priority -150;
		ct state invalid meta l4proto tcp th dport 80 drop
	}
	chain natin { type nat hook prerouting priority -105; }
	chain natout { type nat hook output priority -105; }
	chain natpost { type nat hook postrouting priority 95; }
}`

func newRules(t testing.TB, ns *testenv.NS) *rules {
	r := &rules{ns, t}
	if err := r.run(ruleset); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rules) run(text string) error {
	cmd := r.ns.Command(context.Background(), "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w\n%s", err, out)
	}
	return nil
}

func (r *rules) Freeze(ts []Tuple, d time.Duration) error {
	return r.elements("add", ts, fmt.Sprintf(" timeout %ds", int(d.Seconds())))
}

func (r *rules) Unfreeze(ts []Tuple) error { return r.elements("delete", ts, "") }

func (r *rules) elements(verb string, ts []Tuple, suffix string) error {
	var b strings.Builder
	for _, t := range ts {
		n := 4
		if t.Client.Addr().Is6() {
			n = 6
		}
		for set, to := range map[string]netip.AddrPort{"frozen": t.Service, "replay": t.Backend} {
			fmt.Fprintf(&b, "%s element inet s %s%d { %s . %d . %s . %d%s }\n", verb, set, n,
				t.Client.Addr(), t.Client.Port(), to.Addr(), to.Port(), suffix)
		}
	}
	return r.run(b.String())
}

// tracker writes the messages by hand.
type tracker struct{ conn *netlink.Conn }

func newTracker(t testing.TB, ns *testenv.NS) *tracker {
	var c *netlink.Conn
	if err := ns.Do(func() (err error) {
		c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &tracker{c}
}

func (tr *tracker) Replace(es []Entry) []error {
	errs := make([]error, len(es))
	for i, e := range es {
		if err := tr.send(2, 0, func(ae *netlink.AttributeEncoder) { tuple(ae, 1, e.Client, e.Service) }, e.Client); err != nil && !errors.Is(err, unix.ENOENT) {
			errs[i] = err
			continue
		}
		errs[i] = tr.create(e)
	}
	return errs
}

func (tr *tracker) create(e Entry) error {
	return tr.send(0, netlink.Create|netlink.Excl, func(ae *netlink.AttributeEncoder) {
		tuple(ae, 1, e.Client, e.Service)
		tuple(ae, 2, e.Service, e.Client)
		ae.Uint32(3, 2|4|8)
		flags := byte(8)
		if e.Scaled {
			flags |= 1
		}
		nest(ae, 4, func(a *netlink.AttributeEncoder) {
			nest(a, 1, func(b *netlink.AttributeEncoder) {
				b.Uint8(1, 3)
				b.Uint8(2, e.ClientScale)
				b.Uint8(3, e.BackendScale)
				b.Bytes(4, []byte{flags, 9})
				b.Bytes(5, []byte{flags, 9})
			})
		})
		ae.Uint32(7, 432000)
		ae.Uint32(8, 0x51000000)
		if !e.Backend.IsValid() {
			return
		}
		nest(ae, 13, func(a *netlink.AttributeEncoder) {
			lo, hi := uint16(1), uint16(2)
			if e.Backend.Addr().Is6() {
				lo, hi = 4, 5
			}
			a.Bytes(lo, e.Backend.Addr().AsSlice())
			a.Bytes(hi, e.Backend.Addr().AsSlice())
			nest(a, 3, func(b *netlink.AttributeEncoder) {
				b.Uint16(1, e.Backend.Port())
				b.Uint16(2, e.Backend.Port())
			})
		})
		nest(ae, 15, func(a *netlink.AttributeEncoder) { a.Uint32(1, 0); a.Uint32(2, 0); a.Uint32(3, 0) })
		nest(ae, 16, func(a *netlink.AttributeEncoder) {
			a.Uint32(1, 0)
			a.Uint32(2, e.Offset)
			a.Uint32(3, e.Offset)
		})
	}, e.Client)
}

func (tr *tracker) send(typ uint16, flags netlink.HeaderFlags, f func(*netlink.AttributeEncoder), a netip.AddrPort) error {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	f(ae)
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	family := byte(unix.AF_INET)
	if a.Addr().Is6() {
		family = unix.AF_INET6
	}
	_, err = tr.conn.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(1<<8 | typ), Flags: netlink.Request | netlink.Acknowledge | flags},
		Data:   append([]byte{family, 0, 0, 0}, b...),
	})
	return err
}

func nest(ae *netlink.AttributeEncoder, t uint16, f func(*netlink.AttributeEncoder)) {
	ae.Nested(t, func(n *netlink.AttributeEncoder) error {
		n.ByteOrder = binary.BigEndian
		f(n)
		return nil
	})
}

func tuple(ae *netlink.AttributeEncoder, t uint16, src, dst netip.AddrPort) {
	nest(ae, t, func(a *netlink.AttributeEncoder) {
		nest(a, 1, func(b *netlink.AttributeEncoder) {
			first := uint16(1)
			if src.Addr().Is6() {
				first = 3
			}
			b.Bytes(first, src.Addr().AsSlice())
			b.Bytes(first+1, dst.Addr().AsSlice())
		})
		nest(a, 2, func(b *netlink.AttributeEncoder) {
			b.Uint8(1, 6)
			b.Uint16(2, src.Port())
			b.Uint16(3, dst.Port())
		})
	})
}

// holder listens on a service address and hands out raw sockets.
type holder struct {
	t       testing.TB
	l       *net.TCPListener
	service netip.AddrPort
	backend netip.AddrPort

	mu   sync.Mutex
	seen int
}

func (l *lab) hold(t testing.TB, service netip.AddrPort, set ...func(fd int) error) *holder {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		_ = c.Control(func(fd uintptr) {
			for _, f := range set {
				err = errors.Join(err, f(int(fd)))
			}
		})
		return err
	}}
	lc.SetMultipathTCP(false)
	var ln net.Listener
	if err := l.Host.Do(func() (err error) {
		ln, err = lc.Listen(context.Background(), "tcp", service.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	be := l.backend.Addr4
	if service.Addr().Is6() {
		be = l.backend.Addr6
	}
	return &holder{t: t, l: ln.(*net.TCPListener), service: service, backend: netip.AddrPortFrom(be, 8080)}
}

// accept waits for one connection.
func (h *holder) accept() Held {
	h.t.Helper()
	rc, err := h.l.SyscallConn()
	if err != nil {
		h.t.Fatal(err)
	}
	fd := -1
	var sa unix.Sockaddr
	if cerr := rc.Control(func(l uintptr) {
		if err = poll(int(l), unix.POLLIN); err == nil {
			fd, sa, err = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		}
	}); cerr != nil || err != nil {
		h.t.Fatal(cerr, err)
	}
	held := Held{FD: fd, Service: h.service, Backend: h.backend}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		held.Client = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		held.Client = netip.AddrPortFrom(netip.AddrFrom16(sa.Addr).Unmap(), uint16(sa.Port))
	}
	return held
}

// poll waits for an event.
func poll(fd int, events int16) error {
	p := []unix.PollFd{{Fd: int32(fd), Events: events}}
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(p, int(patience.Milliseconds())) })
	if err == nil && n == 0 {
		return os.ErrDeadlineExceeded
	}
	return err
}

// waitBytes waits until the held socket has received n bytes.
func waitBytes(t testing.TB, h Held, n int) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		info, err := readInfo(h.FD)
		if err != nil {
			t.Fatal(err)
		}
		if info.received >= uint64(n) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("held socket has %d of %d bytes", info.received, n)
		}
		time.Sleep(time.Millisecond)
	}
}

var _ = exec.Command
var _ = bytes.NewReader
