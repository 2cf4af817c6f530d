// Package systemd talks to the service manager by the protocol of sd_notify(3):
// readiness, reloads, the watchdog, and the store in which descriptors outlive
// the process. Any manager that speaks it will do.
package systemd

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// sendTimeout is how long a manager may take no message before one is given up.
const sendTimeout = 5 * time.Second

// A Notifier sends messages to the service manager, in order and from a goroutine
// of its own: no method but Close waits. Those of a nil Notifier do nothing.
type Notifier struct {
	to       unix.SockaddrUnix
	fd       int
	watchdog time.Duration
	room     int
	failed   func(error)

	mu     sync.Mutex
	queue  []message
	closed bool
	signal chan struct{}
	done   chan struct{}
}

type message struct {
	state string
	fd    int // -1: none; else it is closed once it is sent
}

// Open takes the manager's address and wishes from the environment, and takes
// them out of it: they are not for this process's children. Without a manager
// it returns nil and no error. failed, if set, is told of the first message
// that could not be sent, from another goroutine.
func Open(failed func(error)) (*Notifier, error) {
	path, room := os.Getenv("NOTIFY_SOCKET"), os.Getenv("FDSTORE")
	for _, name := range []string{"NOTIFY_SOCKET", "FDSTORE"} {
		if err := os.Unsetenv(name); err != nil {
			return nil, err
		}
	}
	watchdog, err := daemon.SdWatchdogEnabled(true)
	if err != nil {
		return nil, fmt.Errorf("service manager: %w", err)
	}
	if path == "" {
		return nil, nil
	}
	if path[0] != '/' && path[0] != '@' {
		return nil, fmt.Errorf("service manager: NOTIFY_SOCKET=%s is no unix socket", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("service manager: %w", os.NewSyscallError("socket", err))
	}
	tv := unix.NsecToTimeval(sendTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("service manager: %w", os.NewSyscallError("setsockopt", err))
	}
	n := &Notifier{
		to: unix.SockaddrUnix{Name: path}, fd: fd, watchdog: watchdog, failed: failed, room: -1,
		signal: make(chan struct{}, 1), done: make(chan struct{}),
	}
	if max, err := strconv.Atoi(room); err == nil {
		n.room = max
	}
	go n.run()
	return n, nil
}

// Watchdog is how often the manager wants to hear [Notifier.Feed] at least; 0
// is never.
func (n *Notifier) Watchdog() time.Duration {
	if n == nil {
		return 0
	}
	return n.watchdog
}

// Room is how many descriptors the manager keeps, or -1 if it does not tell, as
// systemd before version 254.
func (n *Notifier) Room() int {
	if n == nil {
		return 0
	}
	return n.room
}

// Ready ends a start or a reload. The status is a line for people.
func (n *Notifier) Ready(status string) {
	n.post(daemon.SdNotifyReady+"\nSTATUS="+line(status), -1)
}

// Reloading begins a reload, which [Notifier.Ready] ends.
func (n *Notifier) Reloading() {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // cannot fail for this clock
	n.post(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/1000), -1)
}

// Stopping says that the process is about to end.
func (n *Notifier) Stopping() { n.post(daemon.SdNotifyStopping, -1) }

// Status is a line for people.
func (n *Notifier) Status(status string) { n.post("STATUS="+line(status), -1) }

// Feed keeps the watchdog quiet for the time that [Notifier.Watchdog] gives.
func (n *Notifier) Feed() { n.post(daemon.SdNotifyWatchdog, -1) }

func line(s string) string { return strings.ReplaceAll(s, "\n", " ") }

// Store gives the manager a descriptor to keep under a name, for [Inherited] of
// the next start; fd stays the caller's. It is given up by [Notifier.Remove], and
// by itself when the connection behind it has ended. The name has at most 255
// printable ASCII characters and no colon. A manager without a store, or with a
// full one, ignores it.
func (n *Notifier) Store(name string, fd int) {
	if n == nil {
		return
	}
	// The caller may close its own before this one is sent.
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		n.tell(fmt.Errorf("keep %s: %w", name, os.NewSyscallError("fcntl", err)))
		return
	}
	n.post("FDSTORE=1\nFDNAME="+name, dup)
}

// Remove ends what Store began.
func (n *Notifier) Remove(name string) { n.post("FDSTOREREMOVE=1\nFDNAME="+name, -1) }

// Close sends what is still to be sent.
func (n *Notifier) Close() error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	n.closed = true
	n.mu.Unlock()
	n.wake()
	<-n.done
	return os.NewSyscallError("close", unix.Close(n.fd))
}

func (n *Notifier) post(state string, fd int) {
	if n == nil {
		return
	}
	n.mu.Lock()
	closed := n.closed
	if !closed {
		n.queue = append(n.queue, message{state, fd})
	}
	n.mu.Unlock()
	if closed && fd >= 0 {
		unix.Close(fd)
	}
	n.wake()
}

func (n *Notifier) wake() {
	select {
	case n.signal <- struct{}{}:
	default:
	}
}

func (n *Notifier) run() {
	defer close(n.done)
	for {
		n.mu.Lock()
		queue, closed := n.queue, n.closed
		n.queue = nil
		n.mu.Unlock()
		for i, m := range queue {
			err := n.send(m)
			if err == nil {
				continue
			}
			n.tell(fmt.Errorf("service manager not told %q: %w", strings.ReplaceAll(m.state, "\n", " "), err))
			if closed && errors.Is(err, unix.EAGAIN) { // it hangs, and we are about to end
				for _, m := range queue[i+1:] {
					m.close()
				}
				return
			}
		}
		if len(queue) > 0 {
			continue
		}
		if closed {
			return
		}
		<-n.signal
	}
}

func (n *Notifier) send(m message) error {
	defer m.close()
	var rights []byte
	if m.fd >= 0 {
		rights = unix.UnixRights(m.fd)
	}
	for {
		err := unix.Sendmsg(n.fd, []byte(m.state), rights, &n.to, unix.MSG_NOSIGNAL)
		if !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("sendmsg", err)
		}
	}
}

func (m message) close() {
	if m.fd >= 0 {
		unix.Close(m.fd)
	}
}

// tell reports the first failure.
func (n *Notifier) tell(err error) {
	n.mu.Lock()
	f := n.failed
	n.failed = nil
	n.mu.Unlock()
	if f != nil {
		f(err)
	}
}
