package firstbyte

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const patience = 10 * time.Second

func pair(t *testing.T) (ours, theirs int) {
	t.Helper()
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return p[0], p[1]
}

func open(t *testing.T) (*Poll, func() uint64) {
	t.Helper()
	ids := make(chan uint64, 10_000)
	p, err := Open(func(id uint64) { ids <- id })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, func() uint64 {
		t.Helper()
		select {
		case id := <-ids:
			return id
		case <-time.After(patience):
			t.Fatal("nothing is told")
			return 0
		}
	}
}

// TestPoll: data, an end and an error are told once each, by ids of 64 bits,
// and what was there before too.
func TestPoll(t *testing.T) {
	t.Parallel()
	p, next := open(t)
	for i, act := range []func(fd int) error{
		func(fd int) error { _, err := unix.Write(fd, []byte{0}); return err },
		func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) },
		unix.Close,
	} {
		for _, before := range []bool{true, false} {
			id := uint64(i)<<40 | 1<<31 | 7
			a, b := pair(t)
			if before {
				if err := act(b); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Add(a, id); err != nil {
				t.Fatal(err)
			}
			if !before {
				if err := act(b); err != nil {
					t.Fatal(err)
				}
			}
			if got := next(); got != id {
				t.Errorf("told of %x, want %x", got, id)
			}
			if err := p.Remove(a); err != nil {
				t.Error(err)
			}
			_ = unix.Close(a)
			if i < 2 {
				_ = unix.Close(b)
			}
		}
	}
}

// TestMany: each of some thousand, in whatever order, and none that was removed.
func TestMany(t *testing.T) {
	t.Parallel()
	p, next := open(t)
	const n = 400
	var theirs []int
	for id := range uint64(n) {
		a, b := pair(t)
		t.Cleanup(func() { _ = unix.Close(a); _ = unix.Close(b) })
		if err := p.Add(a, id); err != nil {
			t.Fatal(err)
		}
		if id%2 == 1 {
			if err := p.Remove(a); err != nil {
				t.Fatal(err)
			}
		}
		theirs = append(theirs, b)
	}
	for _, fd := range theirs {
		if _, err := unix.Write(fd, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	seen := map[uint64]bool{}
	for range n / 2 {
		id := next()
		if id%2 == 1 || seen[id] {
			t.Errorf("told of %d, removed or told before", id)
		}
		seen[id] = true
	}
}
