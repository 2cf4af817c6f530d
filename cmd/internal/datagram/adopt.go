package datagram

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// Adopt is Listen with a socket that another process has opened, and the
// datagrams that wait in it. The socket belongs to the listener, unless Adopt
// fails.
func (g *Group) Adopt(id uint64, addr netip.AddrPort, fd int) (*Listener, error) {
	l, err := g.adopt(id, addr, fd)
	if err != nil {
		return nil, fmt.Errorf("adopt socket of %v/udp: %w", addr, err)
	}
	return l, nil
}

func (g *Group) adopt(id uint64, addr netip.AddrPort, fd int) (*Listener, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.neighbours(id, addr); err != nil {
		return nil, err
	}
	for _, o := range options(addr) {
		if o.name == unix.IPV6_V6ONLY && o.level == unix.IPPROTO_IPV6 {
			continue // settled once it is bound
		}
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return nil, fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	// A listener closes what it cannot run on; the caller's stays the caller's.
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	l, err := g.begin(id, own, addr)
	if err != nil {
		return nil, err
	}
	if err := unix.Close(fd); err != nil {
		return nil, errors.Join(os.NewSyscallError("close", err), l.Close())
	}
	return l, nil
}

// FD is the socket. It stays the listener's.
func (l *Listener) FD() int { return l.fd }
