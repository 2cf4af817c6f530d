// Package firstbyte tells when connections that nobody reads from yet have
// something to be read, any number of them with one goroutine and no thread.
package firstbyte

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Poll watches sockets that belong to the caller. Its methods may be called from
// any goroutine.
type Poll struct {
	fd     int
	file   *os.File
	done   chan struct{}
	events [128]unix.EpollEvent
	n      int
}

// Open starts a Poll. ready is told the id of each socket once it can be read
// from, be it data, the end or an error, and hears no more of it. It is called
// on one goroutine, for all sockets, and must not block. It may be told of a
// socket that was removed a moment ago: ids are not to be used again.
func Open(ready func(id uint64)) (*Poll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open poll: %w", os.NewSyscallError("epoll_create1", err))
	}
	// An epoll descriptor can itself be waited for, by Go's own poller; it takes
	// part if it is non-blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(fmt.Errorf("open poll: %w", err), unix.Close(fd))
	}
	p := &Poll{fd: fd, file: os.NewFile(uintptr(fd), "poll"), done: make(chan struct{})}
	if err := p.file.SetReadDeadline(time.Time{}); err != nil { // fails if it cannot be waited for
		return nil, errors.Join(fmt.Errorf("open poll: %w", err), p.file.Close())
	}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open poll: %w", err), p.file.Close())
	}
	go func() {
		defer close(p.done)
		for raw.Read(p.fill) == nil { // an error is the deadline that Close sets
			for _, ev := range p.events[:p.n] {
				ready(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32)
			}
		}
	}()
	return p, nil
}

// fill takes what is ready; false is to wait for more.
func (p *Poll) fill(fd uintptr) bool {
	n, err := unix.EpollWait(int(fd), p.events[:], 0)
	p.n = max(n, 0)
	return p.n > 0 || errors.Is(err, unix.EINTR)
}

// Add watches a socket. If it can be read from already, ready is told at once.
func (p *Poll) Add(fd int, id uint64) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(id), Pad: int32(id >> 32)} //nolint:gosec // both halves of it
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		return fmt.Errorf("watch socket: %w", os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

// Remove ends watching a socket, which may have been told of. To close a socket
// removes it too, if no other descriptor of it is left.
func (p *Poll) Remove(fd int) error {
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, fd, nil); err != nil {
		return fmt.Errorf("leave socket: %w", os.NewSyscallError("epoll_ctl", err))
	}
	return nil
}

// Close waits until ready is not called any more. The sockets stay the caller's.
// No other method may be called any more.
func (p *Poll) Close() error {
	err := p.file.SetReadDeadline(time.Unix(1, 0))
	<-p.done
	return errors.Join(err, p.file.Close())
}
