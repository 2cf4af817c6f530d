package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
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
	return dial(ctx, backend, timeout, nil)
}

// Prepare readies the host for a connection from a local port before its first
// packet goes out, such as by a rule that gives it another source. Only one
// socket of the host holds the port.
//
// undo, if not nil, takes that back. It is called once, as soon as the
// connection is established or has failed, and before the port can be anyone
// else's (but for a connection that was reset: the kernel then frees a port
// that it has chosen itself). If err is not nil there is no connection and
// nothing to undo.
type Prepare func(local uint16) (undo func(), err error)

// DialPrepared is Dial with a local port that is known to prepare before the
// connection is made. The time that prepare and undo take is the caller's; they
// are called on its goroutine.
//
// A port that is held like this serves one connection, whatever the backend,
// while those of Dial serve one to each backend: about 28,000 at a time by the
// default ip_local_port_range, TIME_WAIT included. When none is left the error
// is EADDRINUSE.
func DialPrepared(ctx context.Context, backend netip.AddrPort, timeout time.Duration, prepare Prepare) (*net.TCPConn, error) {
	var p prepared
	defer p.release()
	return dial(ctx, backend, timeout, func(network string, fd int) error {
		p.release() // package net may try again with another socket
		return p.hold(network, fd, prepare)
	})
}

// prepared holds a local port for as long as it is prepared. Package net
// closes a socket that has failed, hence the second descriptor.
type prepared struct {
	held bool
	fd   int
	undo func()
}

func (p *prepared) hold(network string, fd int, prepare Prepare) error {
	port, err := bindAny(network, fd)
	if err != nil {
		return err
	}
	if p.fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	p.held = true
	if p.undo, err = prepare(port); err != nil {
		p.undo = nil
		return fmt.Errorf("prepare port %d: %w", port, err)
	}
	return nil
}

func (p *prepared) release() {
	if !p.held {
		return
	}
	if p.undo != nil {
		p.undo()
	}
	unix.Close(p.fd)
	*p = prepared{}
}

// bindAny binds a socket to a port of the kernel's choice and no address: that
// follows from the route, as without it.
func bindAny(network string, fd int) (port uint16, err error) {
	var local unix.Sockaddr = &unix.SockaddrInet4{}
	if network == "tcp6" {
		local = &unix.SockaddrInet6{}
	}
	if err := unix.Bind(fd, local); err != nil {
		return 0, os.NewSyscallError("bind", err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port), nil
	case *unix.SockaddrInet6:
		return uint16(sa.Port), nil
	}
	return 0, unix.EAFNOSUPPORT
}

// dial connects. before, if not nil, gets the socket first.
func dial(ctx context.Context, backend netip.AddrPort, timeout time.Duration, before func(network string, fd int) error) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: timeout, KeepAliveConfig: keepAlive}
	// An MPTCP socket falls back on most backends, but only after having
	// offered an option that some of them, and some firewalls, trip over.
	d.SetMultipathTCP(false)
	if before != nil {
		d.Control = func(network, _ string, raw syscall.RawConn) error {
			var inner error
			return errors.Join(raw.Control(func(fd uintptr) { inner = before(network, int(fd)) }), inner)
		}
	}
	c, err := d.DialContext(ctx, "tcp", backend.String())
	if err != nil {
		return nil, fmt.Errorf("dial backend: %w", err)
	}
	return c.(*net.TCPConn), nil
}

// FromFD makes a *net.TCPConn of an accepted socket and closes fd. After an error
// the connection has been reset, unless it is [ErrShort]: then fd is as before.
func FromFD(fd int) (*net.TCPConn, error) {
	c, err := duplicate(fd)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return nil, fmt.Errorf("%w: make connection of descriptor %d: %w", ErrShort, fd, err)
	}
	if err != nil {
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
		return nil, fmt.Errorf("make connection of descriptor %d: %w", fd, err)
	}
	return c, nil
}

// ErrShort says that there is no descriptor left to work with.
var ErrShort = errors.New("out of file descriptors")

func duplicate(fd int) (*net.TCPConn, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(d), "tcp")
	c, err := net.FileConn(f) // has a duplicate of its own
	if err := errors.Join(err, f.Close()); err != nil {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
		return nil, err
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("%s is not a TCP connection", c.LocalAddr().Network()), c.Close())
	}
	return tc, nil
}
