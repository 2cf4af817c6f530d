package main

import (
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/cmd/internal/control"

	"golang.org/x/sys/unix"
)

// wardenEnv in its environment has the command report some of its system calls;
// the descriptor that it names leads to whoever decides about them.
const wardenEnv = "SLUICE_TEST_WARDEN"

// A warden lets system calls of a daemon fail at will, as a kernel does that is
// short of memory.
type warden struct {
	refused atomic.Int32 // what fails
	wake    int          // an eventfd, for its end
}

// What can fail.
const (
	allowAll    = iota
	refuseTable // changes of nftables: ENOMEM
	refuseNet   // all that netfilter is asked: ENOMEM
	refuseRing  // io_uring: EPERM
)

// newWarden lets all pass at first.
func newWarden(t *testing.T) *warden {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &warden{wake: fd}
}

func (w *warden) say(what int32) { w.refused.Store(what) }

// watch has a command that is about to start report to the warden.
func (w *warden) watch(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "warden"), os.NewFile(uintptr(pair[1]), "warden")
	cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%d", wardenEnv, 3+len(cmd.ExtraFiles)))
	cmd.ExtraFiles = append(cmd.ExtraFiles, theirs)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer ours.Close()
		if err := w.keep(ours); err != nil {
			t.Errorf("warden: %v", err)
		}
	}()
	t.Cleanup(func() {
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		_ = theirs.Close()
		<-done
	})
}

// keep decides about the calls of a process until it has ended.
func (w *warden) keep(from *os.File) error {
	var pid, number int
	if _, err := fmt.Fscanln(from, &pid, &number); err != nil {
		return nil // it has not begun
	}
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(process)
	fd, err := unix.PidfdGetfd(process, number, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_getfd", err)
	}
	defer unix.Close(fd)
	if _, err := from.Write([]byte{1}); err != nil {
		return err
	}
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(w.wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if p[1].Revents != 0 || p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
			return nil
		}
		if p[0].Revents&unix.POLLIN == 0 {
			continue
		}
		if err := answer(fd, w.verdict); err != nil {
			return err
		}
	}
}

// verdict says with what a call fails; 0: it does not.
func (w *warden) verdict(c syscallMade) unix.Errno {
	what := w.refused.Load()
	switch c.nr {
	case unix.SYS_SENDMSG, unix.SYS_WRITE:
		const ctnetlink, nftables = unix.NFNL_SUBSYS_CTNETLINK, unix.NFNL_SUBSYS_NFTABLES
		if what != refuseTable && what != refuseNet {
			break
		}
		msg := c.message()
		if len(msg) < reportLeast {
			break
		}
		// A transaction begins with NFNL_MSG_BATCH_BEGIN, of the number of
		// RTM_NEWLINK, and says in its header what it is about.
		batch := msg[4] == unix.NFNL_MSG_BATCH_BEGIN&0xff && msg[5] == 0 && msg[16] == unix.AF_UNSPEC && msg[18] == 0 && msg[19] == nftables
		if batch || what == refuseNet && (msg[5] == ctnetlink || msg[5] == nftables) {
			return unix.ENOMEM
		}
	case unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_SETUP:
		if what == refuseRing {
			return unix.EPERM
		}
	}
	return 0
}

// obey has this process report to a warden.
func obey(fd string) {
	conn := os.NewFile(func() (n uintptr) {
		if _, err := fmt.Sscan(fd, &n); err != nil {
			log.Fatal(err)
		}
		return n
	}(), "warden")
	listener := reportCalls()
	if _, err := fmt.Fprintln(conn, os.Getpid(), listener); err != nil {
		log.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		log.Fatal(err)
	}
	_ = unix.Close(listener)
	_ = conn.Close()
}

func memoryFaults() []fault {
	refused := func(l line) bool { return strings.Contains(l.text, "cannot allocate memory") }
	return []fault{
		{name: "no memory for a map for 2 s", early: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.warden.say(refuseTable)
			s.d.waitFrom(t, b.log, refused)
			s.last(2 * time.Second)
			s.warden.say(allowAll)
		}},
		{name: "no memory for netlink for 2 s", early: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.warden.say(refuseNet)
			s.d.waitFrom(t, b.log, refused)
			s.last(2 * time.Second)
			s.warden.say(allowAll)
		}},
		{name: "nft flush ruleset, no memory for 1 s", exposes: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.warden.say(refuseTable)
			s.nft(t, "flush ruleset")
			s.d.waitFrom(t, b.log, refused)
			s.last(time.Second)
			s.warden.say(allowAll)
			s.putRight(t, b)
		}},
		{name: "io_uring refused at run time", early: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.warden.say(refuseRing)
			s.d.waitFrom(t, b.log, func(l line) bool { return strings.Contains(l.field("message"), "accepting with epoll") })
		}},
	}
}

// TestMend: a table that is flushed while the kernel has no memory for another is
// put right when it has, though nothing else changes.
func TestMend(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.warden = newWarden(t)
	d := h.start(t, h.configure(t, web("min = 1", "", "")))
	d.until(t, "a replica", func(st control.ServiceStatus) bool { return st.Ready == 1 })
	from := d.mark()
	h.warden.say(refuseTable)
	h.Host.Run(t, "nft", "flush", "ruleset")
	d.waitFrom(t, from, func(l line) bool { return strings.Contains(l.field("message"), "cannot be restored") })
	h.warden.say(allowAll)
	d.waitFrom(t, from, func(l line) bool { return strings.Contains(l.field("message"), "put right") })
	h.Host.Run(t, "nft", "list", "table", "inet", "sluice")
	h.get(t, "/who")
}
