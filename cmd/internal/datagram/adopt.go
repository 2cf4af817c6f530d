package datagram

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Adopt is Listen with a socket that another process has opened, and the
// datagrams that wait in it. file has those that it held, as [Config.Journal] was
// given it or Suspend returned it; -1 is none. Both belong to the listener,
// unless Adopt fails. It begins suspended: until Resume the other process may
// go on instead, and nothing is taken out of the socket.
func (g *Group) Adopt(id uint64, addr netip.AddrPort, fd, file int) (*Listener, error) {
	l, err := g.adopt(id, addr, fd, file)
	if err != nil {
		return nil, fmt.Errorf("adopt socket of %v/udp: %w", addr, err)
	}
	return l, nil
}

func (g *Group) adopt(id uint64, addr netip.AddrPort, fd, file int) (*Listener, error) {
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
	var j *journal
	var left []record
	if file >= 0 {
		if j, left, err = openJournal(file); err != nil {
			unix.Close(own)
			return nil, fmt.Errorf("read held datagrams: %w", err)
		}
	}
	l, err := g.begin(id, own, addr, func(l *Listener) {
		if l.journal = j; j != nil && g.cfg.Journal != nil {
			g.cfg.Journal(addr, j.fd)
		}
		l.suspended = true
		l.resume(left)
		// As if they came now.
		l.todo = append(l.todo, func() {
			now := time.Now()
			for _, c := range l.store.order {
				if l.mode == Hold {
					l.tell(c, now)
				}
			}
		})
	})
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
