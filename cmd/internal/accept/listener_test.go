package accept

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

func listenIn(t *testing.T, ns *testenv.NS, addr string, backlog int) (ln *Listener, err error) {
	t.Helper()
	err = ns.Do(func() (err error) {
		ln, err = Listen(netip.MustParseAddrPort(addr), backlog)
		return err
	})
	if err == nil {
		t.Cleanup(func() { ln.Close() })
	}
	return ln, err
}

func TestListen(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	for _, addr := range []string{
		"127.0.0.1:0", "[::1]:0",
		"0.0.0.0:80", "[::]:80", // side by side: the second is for IPv6 alone
		"192.0.2.10:443", "[2001:db8::10]:443", // addresses that nobody has (yet)
	} {
		ln, err := listenIn(t, ns, addr, 8)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		want := netip.MustParseAddrPort(addr)
		if got := ln.Addr(); got.Addr() != want.Addr() || got.Port() == 0 || want.Port() != 0 && got != want {
			t.Errorf("%s: bound to %v", addr, got)
		}
		if p, err := unix.GetsockoptInt(ln.FD(), unix.SOL_SOCKET, unix.SO_PROTOCOL); p != unix.IPPROTO_TCP || err != nil {
			t.Errorf("%s: protocol %d, %v, want plain TCP", addr, p, err)
		}
		if f, err := unix.FcntlInt(uintptr(ln.FD()), unix.F_GETFD, 0); f&unix.FD_CLOEXEC == 0 || err != nil {
			t.Errorf("%s: descriptor flags %#x, %v", addr, f, err)
		}
		if n, err := ln.Queued(); n != 0 || err != nil {
			t.Errorf("%s: %d queued, %v", addr, n, err)
		}
		if n, err := ln.Backlog(); n != 8 || err != nil {
			t.Errorf("%s: backlog %d, %v, want 8", addr, n, err)
		}
	}

	_, err := listenIn(t, ns, "192.0.2.10:443", 8)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "192.0.2.10:443/tcp") || !strings.Contains(err.Error(), "another program listens there") {
		t.Errorf("taken: %v", err)
	}
	t.Log(err)
	if _, err := listenIn(t, ns, "[fe80::1%nosuch0]:80", 8); err == nil || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("unknown zone: %v", err)
	}
	if _, err := listenIn(t, ns, "127.0.0.1:0", 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no backlog: %v", err)
	}
	if _, err := Listen(netip.AddrPort{}, 8); !errors.Is(err, unix.EINVAL) {
		t.Errorf("no address: %v", err)
	}
}

// An address that comes after the listener is answered on, and a client from
// elsewhere gets a connection that is IPv4 to both sides.
func TestListenBeforeAddress(t *testing.T) {
	t.Parallel()
	lab := testenv.NewLab(t)
	for _, c := range []struct{ addr, cidr string }{
		{"192.0.2.10:80", "192.0.2.10/32"},
		{"[2001:db8::10]:80", "2001:db8::10/128"},
	} {
		ln, err := listenIn(t, lab.Host, c.addr, 8)
		if err != nil {
			t.Fatal(err)
		}
		lab.Host.AddAddr(t, c.cidr, "lo")
		conn, err := lab.Client.Dial(t.Context(), "tcp", c.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if n, err := ln.Queued(); n != 1 || err != nil {
			t.Errorf("%s: %d queued, %v, want 1", c.addr, n, err)
		}
	}
}

// The kernel clamps in silence; Backlog tells.
func TestBacklogClamp(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	ns.Sysctl(t, "net.core.somaxconn", "5")
	ln, err := listenIn(t, ns, "127.0.0.1:0", 1000)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := ln.Backlog(); n != 5 || err != nil {
		t.Errorf("backlog %d, %v, want 5", n, err)
	}
}

func TestListenerClosed(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	ln, err := listenIn(t, ns, "127.0.0.1:0", 8)
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	_, queued := ln.Queued()
	for _, err := range []error{ln.Close(), queued} {
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	}
	if ln.FD() != -1 {
		t.Errorf("descriptor %d after close", ln.FD())
	}
}

// held connects from a lab's client and accepts by hand.
func held(t *testing.T, lab *testenv.Lab, addr string) (client net.Conn, fd int) {
	t.Helper()
	ln, err := listenIn(t, lab.Host, addr, 8)
	if err != nil {
		t.Fatal(err)
	}
	if client, err = lab.Client.Dial(t.Context(), "tcp", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if fd, _, err = unix.Accept4(ln.FD(), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	return client, fd
}

func TestReset(t *testing.T) {
	t.Parallel()
	lab := testenv.NewLab(t)
	client, fd := held(t, lab, fmt.Sprintf("%s:80", lab.HostAddr4))
	if err := Reset(fd); err != nil {
		t.Fatal(err)
	}
	client.SetDeadline(time.Now().Add(patience))
	if _, err := io.ReadAll(client); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("client sees %v, want ECONNRESET", err)
	}
}
