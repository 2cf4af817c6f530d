package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// keepAlive ends a connection whose peer has vanished about 90 s after its
// last sign of life. A peer that is merely idle lives for ever.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 6}

// Dial connects to a backend. It gives up after timeout or when ctx is done;
// a timeout of 0 leaves that to ctx alone. Running out of time is a net.Error
// that says so. The connection is plain TCP.
func Dial(ctx context.Context, backend netip.AddrPort, timeout time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive}
	// An MPTCP socket falls back on most backends, but only after having
	// offered an option that some of them, and some firewalls, trip over.
	d.SetMultipathTCP(false)
	c, err := d.DialContext(ctx, "tcp", backend.String())
	if err != nil {
		return nil, fmt.Errorf("dial backend: %w", err)
	}
	return c.(*net.TCPConn), nil
}

// FromFD makes a *net.TCPConn of an accepted socket. It owns fd from the call
// on: after an error the connection has been reset.
func FromFD(fd int) (*net.TCPConn, error) {
	f := os.NewFile(uintptr(fd), "tcp")
	if f == nil {
		return nil, fmt.Errorf("make connection of descriptor %d: %w", fd, unix.EBADF)
	}
	c, err := net.FileConn(f) // has a duplicate
	if err == nil {
		if tc, ok := c.(*net.TCPConn); ok {
			if err := f.Close(); err != nil {
				return nil, errors.Join(fmt.Errorf("make connection of descriptor %d: %w", fd, err), tc.Close())
			}
			return tc, nil
		}
		err = errors.Join(fmt.Errorf("%s is not a TCP connection", c.LocalAddr().Network()), c.Close())
	}
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return nil, fmt.Errorf("make connection of descriptor %d: %w", fd, errors.Join(err, f.Close()))
}
