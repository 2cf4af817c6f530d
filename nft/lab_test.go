package nft_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

// patience bounds waits for what must happen; nothing is timed by it.
const patience = 10 * time.Second

// A lab is a client, a host with the service addresses on lo, and backends that
// answer on port 8080 under the names b0, b1, …, with the table open.
type lab struct {
	*testenv.Lab
	net   *testenv.BackendNet
	table *nft.Table
}

func newLab(t testing.TB, backends int) *lab {
	t.Helper()
	l := &lab{Lab: testenv.NewLab(t)}
	l.net = testenv.NewBackendNet(t, l.Host, backends)
	for i, b := range l.net.Backends {
		name := fmt.Sprintf("b%d", i)
		serve(t, b.NS, "[::]:8080", name)
		serveUDP(t, b.NS, "[::]:8080", name)
	}
	for i := 10; i < 20; i++ {
		l.Host.AddAddr(t, fmt.Sprintf("192.0.2.%d/32", i), "lo")
	}
	l.Host.AddAddr(t, "2001:db8::10/128", "lo")
	l.table = open(t, l.Host)
	return l
}

// to4 and to6 name backends by number, one slot each.
func (l *lab) to4(backends ...int) *nft.Service {
	s := new(nft.Service)
	for _, i := range backends {
		s.Slots = append(s.Slots, netip.AddrPortFrom(l.net.Backends[i].Addr4, 8080))
	}
	return s
}

func (l *lab) to6(backends ...int) *nft.Service {
	s := new(nft.Service)
	for _, i := range backends {
		s.Slots = append(s.Slots, netip.AddrPortFrom(l.net.Backends[i].Addr6, 8080))
	}
	return s
}

func apply(t testing.TB, tab *nft.Table, changes map[nft.Endpoint]*nft.Service) {
	t.Helper()
	if err := tab.Apply(changes); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB, ns *testenv.NS) *nft.Table {
	t.Helper()
	tab, err := tryOpen(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	return tab
}

func tryOpen(ns *testenv.NS) (*nft.Table, error) {
	f, err := ns.Open()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return nft.Open(nft.Options{NetNS: int(f.Fd())})
}

func tcp(s string) nft.Endpoint {
	a := netip.MustParseAddrPort(s)
	return nft.Endpoint{Addr: a.Addr(), Proto: unix.IPPROTO_TCP, Port: a.Port()}
}

func udp(s string) nft.Endpoint {
	e := tcp(s)
	e.Proto = unix.IPPROTO_UDP
	return e
}

func to(addrs ...string) *nft.Service {
	s := new(nft.Service)
	for _, a := range addrs {
		s.Slots = append(s.Slots, netip.MustParseAddrPort(a))
	}
	return s
}

// serve answers each connection with a line of its name and the client's
// address, then echoes.
func serve(t testing.TB, ns *testenv.NS, addr, name string) net.Listener {
	t.Helper()
	l, err := ns.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := fmt.Fprintln(c, name, c.RemoteAddr()); err == nil {
					_, _ = io.Copy(c, c)
				}
			}()
		}
	}()
	return l
}

func serveUDP(t testing.TB, ns *testenv.NS, addr, name string) {
	t.Helper()
	c, err := ns.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buf := make([]byte, 64)
		for {
			_, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = c.WriteTo([]byte(fmt.Sprintln(name, from)), from)
		}
	}()
}

// An answer is who answered and what address it saw.
type answer struct {
	name string
	from netip.AddrPort
}

// A conn is a connection whose server has said who it is.
type conn struct {
	net.Conn
	in     *bufio.Reader
	answer answer
}

func (c *conn) local() netip.AddrPort  { return addrPortOf(c.LocalAddr()) }
func (c *conn) remote() netip.AddrPort { return addrPortOf(c.RemoteAddr()) }

func addrPortOf(a net.Addr) netip.AddrPort {
	p := netip.MustParseAddrPort(a.String())
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}

// tryDial connects and reads the first line. UDP sends a question first.
func tryDial(ns *testenv.NS, network, addr string) (*conn, error) {
	return tryDialFrom(ns, netip.AddrPort{}, network, addr)
}

func tryDialFrom(ns *testenv.NS, local netip.AddrPort, network, addr string) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	nc, err := ns.DialFrom(ctx, local, network, addr)
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: nc, in: bufio.NewReader(nc)}
	_ = c.SetDeadline(time.Now().Add(patience))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	line, err := c.in.ReadString('\n')
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	name, from, _ := strings.Cut(strings.TrimSpace(line), " ")
	p, err := netip.ParseAddrPort(from)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.answer = answer{name, netip.AddrPortFrom(p.Addr().Unmap(), p.Port())}
	return c, nil
}

func dial(t testing.TB, ns *testenv.NS, network, addr string) *conn {
	t.Helper()
	c, err := tryDial(ns, network, addr)
	if err != nil {
		t.Fatalf("dial %s: %v", addr, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ask dials, closes and returns who answered.
func ask(t testing.TB, ns *testenv.NS, network, addr string) string {
	t.Helper()
	c := dial(t, ns, network, addr)
	_ = c.Close()
	return c.answer.name
}

// echo sends a line and expects it back.
func (c *conn) echo(line string) error {
	if _, err := fmt.Fprintln(c, line); err != nil {
		return err
	}
	return c.expect(line)
}

func (c *conn) expect(line string) error {
	got, err := c.in.ReadString('\n')
	if err != nil {
		return err
	}
	if got != line+"\n" {
		return fmt.Errorf("echo %q of %q", got, line)
	}
	return nil
}
