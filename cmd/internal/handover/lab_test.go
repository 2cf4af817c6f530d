package handover

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/testenv"
)

const (
	patience = 20 * time.Second // for an event that must come
)

// lab is a client, a host that holds connections, and a backend.
type lab struct {
	*testenv.Lab
	net     *testenv.BackendNet
	backend *testenv.Backend
	porter  *Porter
	table   *nft.Table
	tracker *conntrack.Conn
	port    uint16
}

var (
	service4 = netip.MustParseAddrPort("192.0.2.10:80")
	service6 = netip.MustParseAddrPort("[2001:db8::10]:80")
)

func newLab(t testing.TB) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t)}
	l.net = testenv.NewBackendNet(t, l.Host, 2)
	l.backend = l.net.Backends[0]
	l.Host.AddAddr(t, "192.0.2.10/32", "")
	l.Host.AddAddr(t, "2001:db8::10/128", "")
	if err := l.Host.Do(func() (err error) {
		if l.table, err = nft.Open(nft.Options{}); err != nil {
			return err
		}
		l.tracker, err = conntrack.Open(0, 0)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(l.tracker.Close(), l.table.Close()); err != nil {
			t.Error(err)
		}
	})
	l.cold(t, service4)
	l.cold(t, service6)
	l.porter = l.open(t, l.table, l.tracker)
	return l
}

// cold sends new flows to this host. Only then timestamps are taken from SYNs.
func (l *lab) cold(t testing.TB, service netip.AddrPort) { l.apply(t, service, nft.Service{}) }

// warm sends new flows to the backend, as it is when connections are handed over.
func (l *lab) warm(t testing.TB, service netip.AddrPort) {
	l.apply(t, service, nft.Service{Slots: []netip.AddrPort{l.address(service)}})
}

func (l *lab) apply(t testing.TB, service netip.AddrPort, s nft.Service) {
	t.Helper()
	at := nft.Endpoint{Addr: service.Addr(), Proto: unix.IPPROTO_TCP, Port: service.Port()}
	if err := l.table.Apply(map[nft.Endpoint]*nft.Service{at: &s}); err != nil {
		t.Fatal(err)
	}
}

// address is where the backend serves a service.
func (l *lab) address(service netip.AddrPort) netip.AddrPort {
	if service.Addr().Is4() {
		return netip.AddrPortFrom(l.backend.Addr4, 8080)
	}
	return netip.AddrPortFrom(l.backend.Addr6, 8080)
}

// dialer takes the client's ports in turn: what is still tracked of a finished
// connection would catch the next one of the same port.
func (l *lab) dialer(service netip.AddrPort) *net.Dialer {
	l.port = max(l.port+1, 1024)
	a := l.ClientAddr4
	if service.Addr().Is6() {
		a = l.ClientAddr6
	}
	d := net.Dialer{Timeout: patience, KeepAlive: -1, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, l.port))}
	d.SetMultipathTCP(false)
	return &d
}

func (l *lab) open(t testing.TB, f Freezer, tr Tracker) *Porter {
	t.Helper()
	var p *Porter
	err := l.Host.Do(func() (err error) {
		p, err = Open(f, tr)
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
	return l.handoverCtx(context.Background(), p, batch...)
}

func (l *lab) handoverCtx(ctx context.Context, p *Porter, batch ...Held) []Result {
	results := make([]Result, len(batch))
	_ = l.Host.Do(func() error {
		p.Handover(ctx, batch, func(i int, r Result) { results[i] = r })
		return nil
	})
	return results
}

// holder listens on a service address and hands out raw sockets.
type holder struct {
	t       testing.TB
	l       *net.TCPListener
	service netip.AddrPort
	backend netip.AddrPort
}

func (l *lab) hold(t testing.TB, service netip.AddrPort, set ...func(fd int) error) *holder {
	t.Helper()
	return &holder{
		t: t, l: listen(t, l.Host, service, set...),
		service: service, backend: l.address(service),
	}
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
