package handover

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// serve runs f for each connection to port 8080 of the backend.
func (l *lab) serve(t testing.TB, f func(*net.TCPConn), set ...func(fd int) error) {
	t.Helper()
	for _, addr := range []netip.Addr{l.backend.Addr4, l.backend.Addr6} {
		ln := listen(t, l.backend.NS, netip.AddrPortFrom(addr, 8080), set...)
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					f(c.(*net.TCPConn))
				}()
			}
		}()
	}
}

func listen(t testing.TB, ns *testenv.NS, at netip.AddrPort, set ...func(fd int) error) *net.TCPListener {
	t.Helper()
	lc := net.ListenConfig{Control: control(set)}
	lc.SetMultipathTCP(false)
	var ln net.Listener
	if err := ns.Do(func() (err error) {
		ln, err = lc.Listen(context.Background(), "tcp", at.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

func control(set []func(fd int) error) func(_, _ string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) {
			for _, f := range set {
				err = errors.Join(err, f(int(fd)))
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}
}

// sockopt sets a number.
func sockopt(level, name, value int) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, level, name, value) }
}

func dial(t testing.TB, ns *testenv.NS, to netip.AddrPort, set ...func(fd int) error) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: patience, Control: control(set), KeepAlive: -1}
	d.SetMultipathTCP(false)
	return dialWith(t, ns, to, &d)
}

func dialWith(t testing.TB, ns *testenv.NS, to netip.AddrPort, d *net.Dialer) *net.TCPConn {
	t.Helper()
	var c net.Conn
	if err := ns.Do(func() (err error) {
		c, err = d.Dial("tcp", to.String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(patience))
	return c.(*net.TCPConn)
}

// greet tells the client who it is and repeats what it says, to the end.
func greet(c *net.TCPConn) {
	fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
	_, _ = io.Copy(c, c)
}

// text is n bytes that are not alike.
func text(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	_, _ = r.Read(b)
	return b
}

// finish sends the rest of a conversation with greet, unless after is nil and the
// client's side is closed already, and checks all of what comes back.
func finish(c *net.TCPConn, who net.Addr, before, after []byte) error {
	sent := make(chan error, 1)
	go func() {
		var err error
		if after != nil {
			_, err = c.Write(after)
			err = errors.Join(err, c.CloseWrite())
		}
		sent <- err
	}()
	got, err := io.ReadAll(c)
	if err := errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("after %d bytes: %w", len(got), err)
	}
	want := append(fmt.Appendf(nil, "hello %s\n", who), before...)
	want = append(want, after...)
	if sha256.Sum256(got) != sha256.Sum256(want) {
		n := 0
		for n < min(len(got), len(want)) && got[n] == want[n] {
			n++
		}
		return fmt.Errorf("got %d bytes, want %d; they differ from byte %d on", len(got), len(want), n)
	}
	return nil
}

// relay serves a held connection as the caller of Handover would, and returns who
// the backend takes for the client.
func (l *lab) relay(t testing.TB, h Held, set ...func(fd int) error) net.Addr {
	t.Helper()
	f := os.NewFile(uintptr(h.FD), "held")
	fc, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	client := fc.(*net.TCPConn)
	d := net.Dialer{Timeout: patience, Control: control(set)}
	d.SetMultipathTCP(false)
	var bc net.Conn
	if err := l.Host.Do(func() (err error) {
		bc, err = d.Dial("tcp", h.Backend.String())
		return err
	}); errors.Is(err, syscall.ECONNRESET) {
		// A backend that resets at once: so does the relay.
		_ = client.SetLinger(0)
		client.Close()
		return nil
	} else if err != nil {
		t.Fatal(err)
	}
	backend := bc.(*net.TCPConn)
	var both sync.WaitGroup
	pipe := func(to, from *net.TCPConn) {
		_, _ = io.Copy(to, from)
		_ = to.CloseWrite()
	}
	both.Go(func() { pipe(backend, client) })
	both.Go(func() { pipe(client, backend) })
	go func() {
		both.Wait()
		client.Close()
		backend.Close()
	}()
	return backend.LocalAddr()
}

// moved checks by other programs' eyes that a connection is the kernel's.
func (l *lab) moved(t testing.TB, h Held) {
	t.Helper()
	for _, s := range testenv.Sockets(t, l.Host, os.Getpid()) {
		if s.Remote == h.Client {
			t.Errorf("still holds socket %v", s)
		}
	}
	n := 0
	for _, f := range testenv.Conntrack(t, l.Host) {
		if f.Orig.Src == h.Client && f.Orig.Dst == h.Service && f.Reply.Src == h.Backend && f.Mark == 0x51000000 {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d entries for %v in %v", n, h, testenv.Conntrack(t, l.Host))
	}
}

// thawed checks that nothing is left frozen.
func (l *lab) thawed(t testing.TB) {
	t.Helper()
	for _, set := range []string{"frozen4", "frozen6", "replay4", "replay6"} {
		if out := l.Host.Run(t, "nft", "list", "set", "inet", "sluice", set); bytes.Contains([]byte(out), []byte("elements")) {
			t.Errorf("frozen: %s", out)
		}
	}
}
