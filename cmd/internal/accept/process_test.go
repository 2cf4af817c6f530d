package accept

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/uring"
	"sluice/testenv"
)

// Tests of this file change or count what belongs to the whole process, so
// each runs alone in a child.

// Out of descriptors: the listener stays, clients wait, the trouble is told
// once, and all is well again by itself as soon as there are descriptors.
func TestOutOfDescriptors(t *testing.T) {
	if !child(t) {
		return
	}
	for _, b := range backends {
		for _, mode := range []Mode{One, All} {
			t.Run(b.name+"/"+mode.String(), func(t *testing.T) {
				if b.name != "epoll" {
					if err := uring.Probe(); err != nil {
						t.Skipf("no io_uring here: %v", err)
					}
				}
				x := newBench(t, b.make())
				ln := x.add(1, 16)
				x.dial(ln.Addr(), 3, 1)
				x.queued(ln, 3)

				null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
				x.must(err)
				defer unix.Close(null)
				var old unix.Rlimit
				x.must(unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
				x.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}))
				armed := x.loop.Arm(1, mode)
				f := <-x.faults
				retried(x, 3, null)
				queued, err := ln.Queued()
				delivered := len(x.conns)
				x.must(unix.Setrlimit(unix.RLIMIT_NOFILE, &old))

				x.must(armed)
				x.must(err)
				if f.id != 1 || !errors.Is(f.err, unix.EMFILE) {
					t.Errorf("told %d %v, want EMFILE of 1", f.id, f.err)
				}
				t.Logf("told: %v", f.err)
				if queued != 3 || delivered != 0 {
					t.Errorf("%d queued, %d delivered, want 3 and 0", queued, delivered)
				}
				for len(x.faults) > 0 {
					if f := <-x.faults; f.id == 1 {
						t.Errorf("told again: %v", f.err)
					}
				}
				want := 3
				if mode == One {
					want = 1
				}
				for range want {
					x.next(1)
				}
				x.quiet()
				x.queued(ln, 3-want)
			})
		}
	}
}

// retried returns when the loop has tried again n times. A listener that is
// broken in two ways by turns shows it: a new kind of trouble is told.
func retried(x *bench, n, notSocket int) {
	x.Helper()
	const id = 1000
	ln := &Listener{fd: -1}
	x.must(x.loop.Add(id, ln))
	x.must(x.loop.Arm(id, All))
	var last error
	for i := range n + 1 {
		f := <-x.faults
		if f.id != id || errors.Is(f.err, unix.EBADF) != (i%2 == 0) {
			x.Errorf("round %d: told %d %v after %v", i, f.id, f.err, last)
		}
		last = f.err
		ln.mu.Lock()
		if ln.fd < 0 {
			ln.fd = notSocket
		} else {
			ln.fd = -1
		}
		ln.mu.Unlock()
	}
	x.must(x.loop.Remove(id))
}

// Close gives back every descriptor, thread of execution and port.
func TestCloseLeavesNothing(t *testing.T) {
	if !child(t) {
		return
	}
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			if b.name != "epoll" {
				if err := uring.Probe(); err != nil {
					t.Skipf("no io_uring here: %v", err)
				}
			}
			x := &bench{TB: t, ns: testenv.NewNS(t, "host"), conns: make(chan Conn, 100)}
			lns := []*Listener{x.listen("127.0.0.1:0", 64), x.listen("127.0.0.1:0", 64), x.listen("127.0.0.1:0", 64)}
			x.dial(lns[0].Addr(), 20, 1)
			fds, goroutines := descriptors(t), runtime.NumGoroutine()
			for round := range 20 {
				l, err := open(Config{Deliver: func(c Conn) { x.conns <- c }}, b.make())
				x.must(err)
				for i, ln := range lns {
					x.must(l.Add(uint64(i), ln))
					x.must(l.Arm(uint64(i), Mode(i)))
				}
				if round%2 == 0 {
					x.must(l.Arm(0, One))
					x.next(0)
				}
				x.must(l.Close())
			}
			// Closing a ring's file is finished by the kernel a moment later,
			// and a finished goroutine is counted a moment longer.
			testenv.Eventually(t, patience, func() (bool, string) {
				now := descriptors(t)
				return len(now) == len(fds), fmt.Sprintf("descriptors: %v, want %v", now, fds)
			})
			testenv.Eventually(t, patience, func() (bool, string) {
				var s strings.Builder
				pprof.Lookup("goroutine").WriteTo(&s, 1)
				n := runtime.NumGoroutine()
				return n <= goroutines, fmt.Sprintf("%d goroutines, want %d:\n%s", n, goroutines, s.String())
			})
			x.queued(lns[0], 10)
		})
	}
}

func descriptors(t *testing.T) map[string]string {
	t.Helper()
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	fds := make(map[string]string)
	for _, e := range dir {
		// The directory's own descriptor is gone by now.
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			fds[e.Name()] = to
		}
	}
	return fds
}

// The ring is torn out from under the loop: it makes a new one, says so, and
// nobody in the accept queues is lost.
func TestReopen(t *testing.T) {
	if !child(t) {
		return
	}
	for _, b := range backends {
		t.Run(b.name, func(t *testing.T) {
			kind := "anon_inode:[io_uring]"
			if b.name == "epoll" {
				kind = "anon_inode:[eventpoll]"
			} else if err := uring.Probe(); err != nil {
				t.Skipf("no io_uring here: %v", err)
			}
			before := descriptors(t)
			x := newBench(t, b.make())
			null, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
			x.must(err)
			defer unix.Close(null)
			one, all, off := x.add(1, 16), x.add(2, 16), x.add(3, 16)
			x.must(x.loop.Arm(1, One))
			x.must(x.loop.Arm(2, All))
			x.quiet()

			torn := 0
			for name, to := range descriptors(t) {
				if to == kind && before[name] != kind {
					fd, err := strconv.Atoi(name)
					x.must(err)
					x.must(unix.Dup3(null, fd, unix.O_CLOEXEC))
					torn++
				}
			}
			if torn != 1 {
				t.Fatalf("%d descriptors of kind %s, want 1", torn, kind)
			}
			x.must(x.loop.Arm(3, Off))
			x.must(x.loop.Arm(probeID, One)) // wakes it
			f := <-x.faults
			for f.id != 0 { // arming may have noticed first
				f = <-x.faults
			}
			if !errors.Is(f.err, ErrLoop) {
				t.Errorf("told %v, want ErrLoop", f.err)
			}
			t.Logf("told: %v", f.err)
			x.quiet()
			x.dial(one.Addr(), 2, 1)
			x.next(1)
			x.queued(one, 1)
			x.dial(all.Addr(), 2, 1)
			x.next(2)
			x.next(2)
			x.dial(off.Addr(), 2, 1)
			x.quiet()
		})
	}
}

// Where io_uring is forbidden, as it is by default in Podman's containers,
// Auto comes down to epoll and says why; asking for io_uring fails.
func TestFallback(t *testing.T) {
	if !child(t) {
		return
	}
	deny(t, unix.SYS_IO_URING_SETUP, unix.ENOSYS)
	var why []error
	cfg := Config{Deliver: func(Conn) {}, Fallback: func(err error) { why = append(why, err) }}
	l, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if l.Name() != Epoll {
		t.Errorf("backend %s, want %s", l.Name(), Epoll)
	}
	const want = "epoll: io_uring_setup: function not implemented (blocked by seccomp, or not in this kernel)"
	if len(why) != 1 || why[0].Error() != want || !errors.Is(why[0], unix.ENOSYS) {
		t.Errorf("told %q, want once %q", why, want)
	}
	cfg.Backend = Uring
	if _, err := Open(cfg); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("io_uring by name: %v, want ENOSYS", err)
	}
	if err := uring.Probe(); !errors.Is(err, unix.ENOSYS) {
		t.Errorf("probe: %v, want ENOSYS", err)
	}
}

// TestFallbackLater: when io_uring is refused under a loop that runs on it, the
// loop goes on with epoll and says so; nobody is lost.
func TestFallbackLater(t *testing.T) {
	if !child(t) {
		return
	}
	if err := uring.Probe(); err != nil {
		t.Skipf("no io_uring here: %v", err)
	}
	x := &bench{TB: t, ns: testenv.NewNS(t, "host"), conns: make(chan Conn, 100)}
	why := make(chan error, 10)
	l, err := Open(Config{
		Deliver:  func(c Conn) { x.conns <- c },
		Error:    func(_ uint64, err error) { t.Errorf("told %v", err) },
		Fallback: func(err error) { why <- err },
	})
	x.must(err)
	defer l.Close()
	one, all := x.listen("127.0.0.1:0", 16), x.listen("127.0.0.1:0", 16)
	for i, ln := range []*Listener{one, all} {
		x.must(l.Add(uint64(i), ln))
		x.must(l.Arm(uint64(i), One+Mode(i)))
	}
	x.dial(all.Addr(), 1, 1)
	x.next(1)
	if l.Name() != Uring {
		t.Errorf("backend %s, want %s", l.Name(), Uring)
	}
	deny(t, unix.SYS_IO_URING_ENTER, unix.EPERM)
	x.dial(all.Addr(), 3, 1) // the first ends the wait that is under way
	x.next(1)
	x.next(1)
	x.next(1)
	x.dial(one.Addr(), 2, 1)
	x.next(0)
	x.queued(one, 1)
	if err := <-why; !errors.Is(err, unix.EPERM) || l.Name() != Epoll || len(why) != 0 {
		t.Errorf("told %v, and %d more; backend %s", err, len(why), l.Name())
	}
}

// deny lets a system call fail in this process from now on.
func deny(t *testing.T, nr uint32, errno unix.Errno) {
	t.Helper()
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		t.Fatalf("set no_new_privs: %v", err)
	}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		t.Fatalf("seccomp: %v", e)
	}
}

func TestOpenDefault(t *testing.T) {
	t.Parallel()
	l, err := Open(Config{Deliver: func(Conn) {}, Fallback: func(err error) { t.Log(err) }})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if want := uring.Probe() == nil; (l.Name() == Uring) != want {
		t.Errorf("backend %s, io_uring usable: %v", l.Name(), want)
	}
	if _, err := Open(Config{Deliver: func(Conn) {}, Backend: "select"}); err == nil {
		t.Error("opened an unknown backend")
	}
	if _, err := Open(Config{}); err == nil {
		t.Error("opened without Deliver")
	}
}
