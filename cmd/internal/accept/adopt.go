package accept

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Adopt makes a Listener of a listening socket that another process has opened,
// by Listen or otherwise, with the connections that wait in it. It belongs to the
// Listener, unless Adopt fails.
func Adopt(fd, backlog int) (*Listener, error) {
	name, err := unix.Getsockname(fd)
	if err != nil {
		return nil, fmt.Errorf("adopt listener: %w", os.NewSyscallError("getsockname", err))
	}
	ln := &Listener{fd: fd, addr: addrPort(name)}
	if err := ln.adopt(backlog); err != nil {
		return nil, fmt.Errorf("adopt listener on %v: %w", ln.addr, err)
	}
	return ln, nil
}

func (ln *Listener) adopt(backlog int) error {
	if err := unix.SetNonblock(ln.fd, true); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	// The backlog may be another one now. What waits stays, even if it is more.
	return os.NewSyscallError("listen", unix.Listen(ln.fd, backlog))
}

// Shut ends the socket for every process that has it too: its port is free, and
// connections that wait in it are reset. A Loop must have removed it before; it
// is still to be closed.
func (ln *Listener) Shut() error {
	return os.NewSyscallError("shutdown", unix.Shutdown(ln.FD(), unix.SHUT_RDWR))
}
