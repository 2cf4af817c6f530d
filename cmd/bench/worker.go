package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// A worker is a process that holds many connections, since one process may not
// have enough file descriptors for all. It does one thing at a time, by blocking
// system calls, and answers each order on standard input with a line that holds
// a number.
const workerCommand = "worker"

func work(args []string, in io.Reader, out io.Writer) error {
	if len(args) < 2 {
		return errors.New("want a role and an address")
	}
	addr, err := netip.ParseAddrPort(args[1])
	if err != nil {
		return err
	}
	if args[0] == "server" {
		return acceptAll(addr, out)
	}
	c := &holder{to: addr}
	for _, a := range args[2:] {
		from, err := netip.ParseAddr(a)
		if err != nil {
			return err
		}
		c.from = append(c.from, from)
	}
	if len(c.from) < 2 {
		return errors.New("want two addresses to connect from, or more")
	}
	sc := bufio.NewScanner(in)
	for sc.Scan() {
		var verb string
		var n int
		var rate float64
		_, _ = fmt.Sscan(sc.Text(), &verb, &n, &rate)
		switch verb {
		case "hold":
			err = c.hold(n)
			n = len(c.fds)
		case "churn":
			n, err = c.churn(time.Duration(n)*time.Millisecond, rate)
		case "count":
			n, err = c.count()
		case "drop":
			c.drop()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", sc.Text(), err)
		}
		fmt.Fprintln(out, n)
	}
	return sc.Err()
}

// holder is a client. What it holds is from all its addresses but the first: the
// kernel looks long for a port at one where half of them are taken.
type holder struct {
	to   netip.AddrPort
	from []netip.Addr
	fds  []int
}

func (h *holder) dial(from netip.Addr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	for _, f := range []func() error{
		func() error { return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1) },
		func() error { // no TIME_WAIT
			return unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		},
		func() error { return unix.Bind(fd, &unix.SockaddrInet4{Addr: from.As4()}) },
		func() error {
			return again(func() error {
				return unix.Connect(fd, &unix.SockaddrInet4{Addr: h.to.Addr().As4(), Port: int(h.to.Port())})
			})
		},
	} {
		if err := f(); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("connect: %w", err)
		}
	}
	return fd, nil
}

// hold opens connections until there are n.
func (h *holder) hold(n int) error {
	for len(h.fds) < n {
		fd, err := h.dial(h.from[1+len(h.fds)%(len(h.from)-1)])
		if err != nil {
			return fmt.Errorf("after %d: %w", len(h.fds), err)
		}
		h.fds = append(h.fds, fd)
	}
	return nil
}

// churn opens and resets connections, no more than rate per second, and returns
// how many.
func (h *holder) churn(d time.Duration, rate float64) (n int, err error) {
	for begin := time.Now(); ; n++ {
		passed := time.Since(begin)
		if passed > d {
			return n, nil
		}
		if ahead := time.Duration(float64(n)/rate*float64(time.Second)) - passed; ahead > time.Millisecond {
			time.Sleep(ahead)
		}
		fd, err := h.dial(h.from[0])
		if err != nil {
			return n, fmt.Errorf("after %d: %w", n, err)
		}
		_ = unix.Close(fd)
	}
}

// count returns how many connections are established on this side.
func (h *holder) count() (n int, err error) {
	for _, fd := range h.fds {
		info, err := unix.GetsockoptTCPInfo(fd, unix.SOL_TCP, unix.TCP_INFO)
		if err != nil {
			return 0, err
		}
		if info.State == 1 { // TCP_ESTABLISHED
			n++
		}
	}
	return n, nil
}

func (h *holder) drop() {
	for _, fd := range h.fds {
		_ = unix.Close(fd)
	}
	h.fds = nil
}

// acceptAll accepts connections at an address that others may share, and closes
// each when its client has.
func acceptAll(addr netip.AddrPort, out io.Writer) error {
	runtime.LockOSThread()
	ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open epoll: %w", err)
	}
	for _, f := range []func() error{
		func() error { return unix.SetsockoptInt(ln, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) },
		func() error { return unix.SetsockoptInt(ln, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) },
		func() error {
			return unix.Bind(ln, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())})
		},
		func() error { return unix.Listen(ln, 1<<16) },
		func() error { return await(ep, ln, unix.EPOLLIN) },
	} {
		if err := f(); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	fmt.Fprintln(out, 0)
	events := make([]unix.EpollEvent, 512)
	for {
		n, err := unix.EpollWait(ep, events, -1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if int(e.Fd) != ln {
				_ = unix.Close(int(e.Fd))
			} else if err := acceptSome(ep, ln); err != nil {
				return err
			}
		}
	}
}

// acceptSome leaves the rest for later, so that what is closed is seen to.
func acceptSome(ep, ln int) error {
	for range 256 {
		fd, _, err := unix.Accept4(ln, unix.SOCK_CLOEXEC)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return nil
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
			continue
		case err == nil:
			err = await(ep, fd, unix.EPOLLRDHUP)
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
	}
	return nil
}

func await(ep, fd int, events uint32) error {
	return unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}) //nolint:gosec // a file descriptor
}

// works runs as a worker and ends the process, if it was started as one.
func works() {
	if len(os.Args) < 2 || os.Args[1] != workerCommand {
		return
	}
	if err := work(os.Args[2:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "worker: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}
