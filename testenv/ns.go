package testenv

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrOrigin reports an attempt to act in the network namespace the process was
// started in.
var ErrOrigin = errors.New("refused: not a namespace made by this package")

// NS is a network namespace made by this package. It is held by a file
// descriptor alone (no mount in /run/netns): concurrent tests share no file
// for it, and it ends with its last holder even if the process is killed.
type NS struct {
	// Name is for messages only.
	Name string

	inode uint64

	mu   sync.RWMutex
	file *os.File
}

// NewNS makes a namespace with lo up and duplicate address detection off. It is
// closed when t ends; a process still running in it by then is an error of the
// test and is killed.
func NewNS(t TB, name string) *NS {
	t.Helper()
	requireRoot(t)
	ns := requireNS(t, name)
	t.Cleanup(func() {
		ns.reap(t)
		if err := ns.Close(); err != nil {
			t.Errorf("close namespace %s: %v", name, err)
		}
	})
	ns.setup(t)
	return ns
}

func newNS(name string) (*NS, error) {
	ns := &NS{Name: name}
	err := onThread(func() (bool, error) {
		origin, err := threadNS()
		if err != nil {
			return true, err
		}
		defer origin.Close()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("unshare network namespace: %w", err)
		}
		f, err := threadNS()
		if err != nil {
			return false, err
		}
		old, err := inode(origin)
		if err != nil {
			return false, errors.Join(err, f.Close())
		}
		if ns.inode, err = inode(f); err != nil {
			return false, errors.Join(err, f.Close())
		}
		if ns.inode == old {
			return false, errors.Join(ErrOrigin, f.Close())
		}
		ns.file = f
		return restore(origin), nil
	})
	if err != nil {
		return nil, fmt.Errorf("make namespace %s: %w", name, err)
	}
	return ns, nil
}

func (ns *NS) setup(t TB) {
	t.Helper()
	for _, key := range []string{"all", "default", "lo"} {
		ns.Sysctl(t, "net.ipv6.conf."+key+".accept_dad", "0")
	}
	ns.IP(t, "link set lo up")
}

// Path names the namespace for programs such as nsenter --net=PATH and for
// "ip link set DEV netns PATH". It is valid while the process lives and the
// namespace is not closed.
func (ns *NS) Path() string {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.file == nil {
		return "/nonexistent/closed-namespace"
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.file.Fd())
}

// Open returns a new descriptor of the namespace, owned by the caller, for
// interfaces that take one (setns, netlink.Config.NetNS).
func (ns *NS) Open() (*os.File, error) {
	ns.mu.RLock()
	defer ns.mu.RUnlock()
	if ns.file == nil {
		return nil, os.ErrClosed
	}
	fd, err := unix.FcntlInt(ns.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("dup namespace %s: %w", ns.Name, err)
	}
	return os.NewFile(uintptr(fd), ns.Name), nil
}

// Inode is the number in the link text "net:[N]" under /proc/PID/ns/net.
func (ns *NS) Inode() uint64 { return ns.inode }

// Close gives up the descriptor. NewNS has arranged for it already.
func (ns *NS) Close() error {
	ns.mu.Lock()
	defer ns.mu.Unlock()
	if ns.file == nil {
		return nil
	}
	err := ns.file.Close()
	ns.file = nil
	return err
}

// Do runs f on a thread of its own inside the namespace. Sockets that f opens
// and processes that f starts stay in the namespace; goroutines that f starts
// do not run in it. If f ends its goroutine (t.FailNow), Do ends the caller's.
func (ns *NS) Do(f func() error) error {
	fd, err := ns.Open()
	if err != nil {
		return fmt.Errorf("enter namespace %s: %w", ns.Name, err)
	}
	defer fd.Close()
	return onThread(func() (bool, error) {
		origin, err := threadNS()
		if err != nil {
			return true, err
		}
		defer origin.Close()
		if err := unix.Setns(int(fd.Fd()), unix.CLONE_NEWNET); err != nil {
			return true, fmt.Errorf("enter namespace %s: %w", ns.Name, err)
		}
		// A guard rather than a formality: everything that writes rules or
		// sysctls goes through here.
		if err := ns.inside(origin); err != nil {
			restore(origin)
			return false, err
		}
		err = f()
		return restore(origin), err
	})
}

func (ns *NS) inside(origin *os.File) error {
	old, err := inode(origin)
	if err != nil {
		return err
	}
	f, err := threadNS()
	if err != nil {
		return err
	}
	defer f.Close()
	now, err := inode(f)
	if err != nil {
		return err
	}
	if now == old || now != ns.inode {
		return fmt.Errorf("enter namespace %s: %w", ns.Name, ErrOrigin)
	}
	return nil
}

// onThread runs f on a fresh goroutine locked to its thread. f says whether the
// thread may serve others again; if not, or if f never returns, the thread ends
// with the goroutine.
func onThread(f func() (clean bool, err error)) error {
	var (
		err      error
		returned bool
		done     = make(chan struct{})
	)
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var clean bool
		clean, err = f()
		returned = true
		if clean {
			runtime.UnlockOSThread()
		}
	}()
	<-done
	if !returned {
		runtime.Goexit()
	}
	return err
}

// threadNS opens the calling thread's namespace. /proc/self/ns/net would be
// that of the main thread, which may itself be inside some Do.
func threadNS() (*os.File, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid()))
	if err != nil {
		return nil, fmt.Errorf("open namespace of thread: %w", err)
	}
	return f, nil
}

func restore(origin *os.File) bool {
	return unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET) == nil
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("stat %s: %w", f.Name(), err)
	}
	return st.Ino, nil
}
