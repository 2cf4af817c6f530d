package accept

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// acceptBurst bounds what one listener gets per turn, so that one under load
// does not starve the others.
const acceptBurst = 64

// poller is the epoll backend.
type poller struct {
	l      *loop
	fd     int
	isOpen bool
	events [128]unix.EpollEvent
	n      int // of events to dispatch
}

func (b *poller) name() string { return Epoll }

func (b *poller) open(l *loop, wake int) error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("epoll_create1", err)
	}
	b.l, b.fd, b.isOpen, b.n = l, fd, true, 0
	// Edge-triggered: each write wakes, and nobody has to read. Token 0.
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err := unix.EpollCtl(fd, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		return errors.Join(os.NewSyscallError("epoll_ctl", err), b.close())
	}
	return nil
}

func (b *poller) close() error {
	if !b.isOpen {
		return nil
	}
	b.isOpen = false
	return unix.Close(b.fd)
}

func (b *poller) arm(e *entry, m Mode) error {
	token := b.l.issue(e)
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(token), Pad: int32(token >> 32)}
	if m == One {
		ev.Events |= unix.EPOLLONESHOT
	}
	// A one-shot registration that has fired is still there.
	err := unix.EpollCtl(b.fd, unix.EPOLL_CTL_ADD, e.ln.FD(), &ev)
	if errors.Is(err, unix.EEXIST) {
		err = unix.EpollCtl(b.fd, unix.EPOLL_CTL_MOD, e.ln.FD(), &ev)
	}
	if err != nil {
		delete(b.l.tokens, token)
		return os.NewSyscallError("epoll_ctl", err)
	}
	e.live = m
	return nil
}

// disarm is complete when it returns: nobody else accepts.
func (b *poller) disarm(e *entry) error {
	b.stop(e)
	e.live = Off
	return nil
}

// stop takes e out of the set. Disabling it would not do: EPOLLHUP cannot be
// disabled. The descriptor may be gone, and with it the registration.
func (b *poller) stop(e *entry) {
	delete(b.l.tokens, e.token)
	_ = unix.EpollCtl(b.fd, unix.EPOLL_CTL_DEL, e.ln.FD(), nil)
}

func (b *poller) wait(timeout time.Duration) error {
	ms := -1
	if timeout >= 0 {
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(b.fd, b.events[:], ms)
	b.n = max(n, 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return os.NewSyscallError("epoll_wait", err)
	}
	return nil
}

func (b *poller) dispatch() error {
	for _, ev := range b.events[:b.n] {
		token := uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32
		if e := b.l.tokens[token]; e != nil {
			b.ready(e)
		}
	}
	return nil
}

func (b *poller) ready(e *entry) {
	burst := 1
	if e.live == All {
		burst = acceptBurst
	}
	one := e.live == One
	if one {
		delete(b.l.tokens, e.token) // disabled by having fired
	}
	for range burst {
		fd, _, err := unix.Accept4(e.ln.FD(), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			if one {
				b.l.ended(e, nil)
			}
			b.l.accepted(e, fd)
			if one || !b.all(e) {
				return
			}
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		case errors.Is(err, unix.EAGAIN):
			if one {
				b.l.ended(e, nil)
			}
			return
		default:
			b.stop(e)
			b.l.ended(e, os.NewSyscallError("accept4", err))
			return
		}
	}
	if one {
		b.l.ended(e, nil)
	}
}

// all says whether e still wants all: Deliver may have changed that.
func (b *poller) all(e *entry) bool {
	b.l.mu.Lock()
	defer b.l.mu.Unlock()
	return e.want == All
}
