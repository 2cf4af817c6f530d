package podman

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Exited waits for the death of a replica that Init, Start, Inspect or List
// returned, and returns nil within a millisecond or two of it, some 100 ms
// before Podman's own event. It needs no answer from Podman while it waits, so
// it outlasts restarts of the service. Podman may say Running for a moment
// longer; Ended waits for its last word.
//
// ErrNoPidfd if this replica's process cannot be watched from here: Podman
// lives in another PID namespace, or conmon, by which the process is
// recognised, is gone.
func (c *Client) Exited(ctx context.Context, r Replica) error {
	verb := "watch container " + r.Name
	if !c.local {
		return fmt.Errorf("%s: %w: podman is in another PID namespace", verb, ErrNoPidfd)
	}
	if r.PID <= 0 {
		return nil
	}
	process, err := openProcess(r.PID)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %w", verb, ErrNoPidfd, err)
	}
	defer process.Close()

	// Between Podman's answer and the pidfd the number may have got another
	// owner. A container's process is a child of its conmon; that both numbers
	// were reused in this very relation is as good as impossible.
	if parent(r.PID) != r.conmon || r.conmon == 0 {
		now, err := c.Inspect(ctx, r.Name)
		switch {
		case errors.Is(err, ErrGone):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", verb, err)
		case now.ID != r.ID && r.ID != "", now.PID != r.PID:
			return nil
		case parent(now.PID) != now.conmon:
			// Or it has just been reaped: Podman is the last to know.
			if ended(process) {
				return nil
			}
			return fmt.Errorf("%s: %w: process %d is not a child of its conmon", verb, ErrNoPidfd, now.PID)
		}
	}
	if err := awaitDeath(ctx, process); err != nil {
		return fmt.Errorf("%s: %w", verb, err)
	}
	return nil
}

// Ended waits until Podman too knows that a replica whose process died is dead,
// and returns it with its exit code: the thing to call after Exited. If it is
// live with another process by then, it is returned like that.
func (c *Client) Ended(ctx context.Context, r Replica) (Replica, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		now, err := c.Inspect(ctx, r.Name)
		if err != nil || !now.State.Live() && now.State != Unknown || now.PID != r.PID && now.State.Live() {
			return now, err
		}
		select {
		case <-ctx.Done():
			return now, fmt.Errorf("wait for podman to notice the end of %s: %w", r.Name, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// openProcess returns a pidfd that Go's network poller waits for. ESRCH if
// there is no such process.
func openProcess(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK) // non-blocking: Linux 5.10
	if errors.Is(err, unix.EINVAL) {
		if fd, err = unix.PidfdOpen(pid, 0); err == nil {
			err = unix.SetNonblock(fd, true)
		}
	}
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return os.NewFile(uintptr(fd), "pidfd "+strconv.Itoa(pid)), nil
}

// awaitDeath returns nil once the process has ended. It sets deadlines on the
// file, which must be nobody else's.
func awaitDeath(ctx context.Context, process *os.File) error {
	if err := process.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("%w: %w", ErrNoPidfd, err) // the poller does not know it
	}
	// It works once the first has, unless the file is closed: that ends the wait too.
	stop := context.AfterFunc(ctx, func() { _ = process.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	var poll error
	err = raw.Read(func(fd uintptr) bool {
		var dead bool
		dead, poll = readable(int(fd))
		return dead || poll != nil
	})
	switch {
	case poll != nil:
		return poll
	case errors.Is(err, os.ErrDeadlineExceeded):
		return ctx.Err()
	}
	return err
}

// ended reports whether the process is known to be dead at this moment.
func ended(process *os.File) (dead bool) {
	raw, err := process.SyscallConn() // Fd would put the file into blocking mode
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { dead, _ = readable(int(fd)) })
	return dead && err == nil
}

// readable reports whether a pidfd's process is dead.
func readable(fd int) (bool, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err == unix.EINTR {
			continue
		}
		return n > 0, os.NewSyscallError("poll", err)
	}
}

// parent is the process number of pid's parent, -1 if there is no such process.
func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return -1
	}
	// pid (comm) state ppid ...; comm may hold anything, a parenthesis too.
	rest := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(rest) < 2 {
		return -1
	}
	ppid, err := strconv.Atoi(string(rest[1]))
	if err != nil {
		return -1
	}
	return ppid
}
