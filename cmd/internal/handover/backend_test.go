package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// A backend that says more than a window before it reads at all, so that what was
// held for it beyond its window must wait.
func TestDeafTalker(t *testing.T) {
	t.Parallel()
	for name, from := range map[string]func(*lab) *testenv.NS{
		"remote client":      func(l *lab) *testenv.NS { return l.Client },
		"client on the host": func(l *lab) *testenv.NS { return l.Host },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.backend.Sysctl(t, "net.ipv4.tcp_rmem", "4096 98304 33554432") // a smaller window
			speech := text(4<<20, 1)
			heards := make(chan heard, 1)
			l.serve(t, func(c *net.TCPConn) {
				_, werr := c.Write(speech)
				// Not before nothing is left of it to send: the client has it all.
				if err := drained(c); err != nil {
					heards <- heard{err: err}
					return
				}
				werr = errors.Join(werr, c.CloseWrite())
				data, err := io.ReadAll(c)
				heards <- heard{data, errors.Join(werr, err)}
			})
			h := l.hold(t, service4, clamp(1400)...)
			c := dial(t, from(l), service4)
			sent := text(80000, 2)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, len(sent))
			l.warm(t, service4)
			results := make(chan Result, 1)
			go func() { results <- l.handover(l.porter, held)[0] }()
			got := make([]byte, len(speech))
			_, err := io.ReadFull(c, got)
			err = errors.Join(err, c.CloseWrite())
			if err != nil || string(got) != string(speech) {
				t.Errorf("client got %v", err)
			}
			if got := hear(t, heards); got.err != nil || string(got.data) != string(sent) {
				t.Errorf("backend got %d bytes, %v", len(got.data), got.err)
			}
			if r := <-results; r.Reason != Done || r.Err != nil {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// drained waits until the peer has acknowledged all; no event says so.
func drained(c *net.TCPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n := -1
		if cerr := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if n == 0 {
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}

// A backend that answers and closes, or resets, at once.
func TestBackendEnds(t *testing.T) {
	t.Parallel()
	for name, linger := range map[string]int{"close": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.serve(t, func(c *net.TCPConn) {
				_ = c.SetLinger(linger)
				fmt.Fprint(c, "bye")
				if linger < 0 {
					_ = c.CloseWrite()
					_, _ = io.Copy(io.Discard, c)
				}
			})
			h := l.hold(t, service4)
			c := dial(t, l.Client, service4)
			if _, err := c.Write(text(3000, 8)); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, 3000)
			l.warm(t, service4)
			if r := l.handover(l.porter, held)[0]; r.Reason != Done || r.Err != nil {
				t.Errorf("result %+v", r)
			}
			got, err := io.ReadAll(c)
			if name == "close" && (string(got) != "bye" || err != nil) || name == "reset" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q %v", got, err)
			}
		})
	}
}

// The backend has another connection with the very addresses.
func TestTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	h := l.hold(t, service4)
	from := func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 4000, Addr: l.ClientAddr4.As4()}))
	}
	other := dial(t, l.Client, l.address(service4), from)
	c := dial(t, l.Client, service4, from)
	held := h.accept()
	l.warm(t, service4)
	r := l.handover(l.porter, held)[0]
	if r.Reason != Refused || r.Err != nil {
		t.Fatalf("result %+v", r)
	}
	who := l.relay(t, held)
	if err := finish(c, who, nil, text(1000, 1)); err != nil {
		t.Error(err)
	}
	if err := finish(other, other.LocalAddr(), nil, text(1000, 2)); err != nil {
		t.Errorf("the other connection: %v", err)
	}
}
