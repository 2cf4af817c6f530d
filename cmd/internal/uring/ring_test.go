package uring

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// open gives a ring on the test's thread, or skips for the reason Probe has.
func open(t *testing.T, requests, completions uint32) *Ring {
	t.Helper()
	if err := Probe(); err != nil {
		t.Skipf("no io_uring here: %v", err)
	}
	runtime.LockOSThread()
	r, err := Open(requests, completions)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	return r
}

// next waits for one completion.
func next(t *testing.T, r *Ring) CQE {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		if c, ok := r.Next(); ok {
			return c
		}
		if err := r.Wait(time.Second); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("no completion")
	return CQE{}
}

func push(t *testing.T, r *Ring, s SQE) {
	t.Helper()
	if err := r.Push(s); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, c CQE, data uint64, errno unix.Errno) {
	t.Helper()
	var err error
	if errno != 0 {
		err = errno
	}
	if c.Data != data || !errors.Is(c.Err(), err) {
		t.Fatalf("completion %+v (%v), want data %d, %v", c, c.Err(), data, err)
	}
}

// More requests than the queue has slots: Push has to hand them over itself,
// also across the wrap of the indices, and more completions than fit are kept.
func TestNopAll(t *testing.T) {
	r := open(t, 4, 8)
	const n = 1000
	for i := range uint64(n) {
		push(t, r, Nop(i))
	}
	for i := range uint64(n) {
		want(t, next(t, r), i, 0)
	}
	if c, ok := r.Next(); ok {
		t.Fatalf("one too many: %+v", c)
	}
}

func TestWaitTimeout(t *testing.T) {
	r := open(t, 4, 8)
	for _, d := range []time.Duration{0, time.Millisecond} {
		if err := r.Wait(d); err != nil {
			t.Fatalf("wait %v: %v", d, err)
		}
	}
	if c, ok := r.Next(); ok {
		t.Fatalf("completion out of nothing: %+v", c)
	}
}

func TestWakeFromElsewhere(t *testing.T) {
	r := open(t, 4, 8)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(wake)
	push(t, r, PollMultishot(wake, 7))
	// Nobody reads the eventfd, so it is readable all the time: it has to be
	// the write that wakes.
	for range 3 {
		if err := r.Wait(time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if c, ok := r.Next(); ok {
			t.Fatalf("woken by nothing: %+v", c)
		}
		go unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		c := next(t, r)
		want(t, c, 7, 0)
		if !c.More() {
			t.Fatal("poll is over")
		}
	}
	push(t, r, Cancel(7, 8))
	got := map[uint64]CQE{}
	for range 2 {
		c := next(t, r)
		got[c.Data] = c
	}
	want(t, got[7], 7, unix.ECANCELED)
	want(t, got[8], 8, 0)
	if got[7].More() {
		t.Fatal("cancelled poll goes on")
	}
}

func TestCancelUnknown(t *testing.T) {
	r := open(t, 4, 8)
	push(t, r, Cancel(1, 2))
	want(t, next(t, r), 2, unix.ENOENT)
}

// A slot is written whole: flags of the request before must not leak into the
// next one in it.
func TestSlotReuse(t *testing.T) {
	r := open(t, 1, 2)
	push(t, r, AcceptMultishot(-1, 1))
	want(t, next(t, r), 1, unix.EBADF)
	push(t, r, Nop(2))
	want(t, next(t, r), 2, 0)
}

func TestOtherThreadIsRefused(t *testing.T) {
	r := open(t, 4, 8)
	errs := make(chan error)
	go func() { errs <- r.Wait(0) }()
	if err := <-errs; !errors.Is(err, unix.EEXIST) {
		t.Fatalf("wait on another thread: %v, want EEXIST", err)
	}
}

func TestSetupError(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errno    unix.Errno
		disabled string
		want     string
	}{
		{unix.EPERM, "2\n", "io_uring_setup: operation not permitted (kernel.io_uring_disabled=2)"},
		{unix.EPERM, "1\n", "io_uring_setup: operation not permitted (kernel.io_uring_disabled=1)"},
		{unix.EPERM, "0\n", "io_uring_setup: operation not permitted (refused by seccomp or a security module)"},
		{unix.EPERM, "", "io_uring_setup: operation not permitted (refused by seccomp or a security module)"},
		{unix.ENOSYS, "", "io_uring_setup: function not implemented (blocked by seccomp, or not in this kernel)"},
		{unix.EINVAL, "0\n", "io_uring_setup: invalid argument (needs Linux 6.1)"},
		{unix.EMFILE, "0\n", "io_uring_setup: too many open files"},
	} {
		path := filepath.Join(t.TempDir(), "io_uring_disabled")
		if c.disabled != "" {
			if err := os.WriteFile(path, []byte(c.disabled), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := setupError(c.errno, path)
		if err.Error() != c.want || !errors.Is(err, c.errno) {
			t.Errorf("%v with %q: %q, want %q", c.errno, strings.TrimSpace(c.disabled), err, c.want)
		}
	}
}

func BenchmarkNop(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := Open(4, 8)
	if err != nil {
		b.Skip(err)
	}
	defer r.Close()
	for b.Loop() {
		if err := r.Push(Nop(1)); err != nil {
			b.Fatal(err)
		}
		if err := r.Wait(-1); err != nil {
			b.Fatal(err)
		}
		if _, ok := r.Next(); !ok {
			b.Fatal("no completion")
		}
	}
}
