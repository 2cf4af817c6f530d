package accept

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestAdopt: a listener goes on from another descriptor of its socket, with the
// connections that wait in it, on both backends; a reset reaches the client though
// somebody else keeps the connection's descriptor; and Shut frees the port though
// somebody else keeps the listener's.
func TestAdopt(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "adopt")
	for _, backend := range []string{Uring, Epoll} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			var first *Listener
			listen := func(addr string) (ln *Listener) {
				t.Helper()
				if err := ns.Do(func() (err error) {
					ln, err = Listen(netip.MustParseAddrPort(addr), 8)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				return ln
			}
			first = listen("127.0.0.1:0")
			client, err := ns.Dial(t.Context(), "tcp", first.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			kept, err := unix.FcntlInt(uintptr(first.FD()), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}

			other, err := unix.FcntlInt(uintptr(kept), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(other)
			second, err := Adopt(kept, 16)
			if err != nil {
				t.Fatal(err)
			}
			defer second.Close()
			if n, err := second.Queued(); err != nil || n != 1 {
				t.Errorf("%d queued, %v", n, err)
			}
			if n, err := second.Backlog(); err != nil || n != 16 {
				t.Errorf("backlog %d, %v", n, err)
			}
			conns := make(chan Conn, 1)
			loop, err := Open(Config{Backend: backend, Deliver: func(c Conn) { conns <- c }})
			if err != nil {
				t.Fatal(err)
			}
			defer loop.Close()
			if err := errors.Join(loop.Add(1, second), loop.Arm(1, One)); err != nil {
				t.Fatal(err)
			}
			var conn Conn
			select {
			case conn = <-conns:
			case <-time.After(30 * time.Second):
				t.Fatal("the queued connection is not accepted")
			}
			also, err := unix.FcntlInt(uintptr(conn.FD), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(also)
			if err := Reset(conn.FD); err != nil {
				t.Error(err)
			}
			if err := client.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("the client reads %v, want a reset", err)
			}
			p := []unix.PollFd{{Fd: int32(also)}}
			if _, err := unix.Poll(p, 0); err != nil || p[0].Revents&unix.POLLHUP == 0 {
				t.Errorf("who keeps the connection does not see its end: %x, %v", p[0].Revents, err)
			}

			if err := errors.Join(loop.Remove(1), second.Shut()); err != nil {
				t.Fatal(err)
			}
			if err := listen(second.Addr().String()).Close(); err != nil {
				t.Error(err)
			}
			if _, err := ns.Dial(t.Context(), "tcp", second.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("dial after Shut: %v", err)
			}
		})
	}
}
