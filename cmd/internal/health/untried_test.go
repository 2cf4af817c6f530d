package health

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// TestUntried: an attempt that could not be made is no word against a backend,
// nor for one: it takes Fall real failures, whatever is between them.
func TestUntried(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var posted []Result
		answers := make(chan error)
		c := Check{Type: Exec, Interval: time.Second, Timeout: time.Second, Rise: 1, Fall: 2}
		pool := NewPool()
		defer pool.Close()
		pool.Probe(c, Target{Healthy: true, Exec: func(ctx context.Context, _ []string) (int, string, error) {
			select {
			case err := <-answers:
				return 1, "", err
			case <-ctx.Done():
				return 0, "", ctx.Err()
			}
		}}, func(r Result) { posted = append(posted, r) })
		untried := fmt.Errorf("podman: %w", ErrUntried)
		for i, a := range []error{untried, untried, untried, nil, untried, untried} {
			answers <- a
			synctest.Wait()
			if len(posted) != 0 {
				t.Fatalf("attempt %d: posted %v", i, posted)
			}
		}
		answers <- nil // exit code 1, the second time
		synctest.Wait()
		if len(posted) != 1 || posted[0].Healthy || errors.Is(posted[0].Err, ErrUntried) {
			t.Errorf("posted %v, want one failure", posted)
		}
	})
}

// TestShort: what this process has run short of is told from what the backend
// has done.
func TestShort(t *testing.T) {
	t.Parallel()
	p := &Prober{}
	for errno, want := range map[syscall.Errno]bool{
		unix.EMFILE: true, unix.ENFILE: true, unix.ENOMEM: true, unix.ENOBUFS: true, unix.EADDRNOTAVAIL: true,
		unix.ECONNREFUSED: false, unix.EHOSTUNREACH: false, unix.ECONNRESET: false, unix.ENETUNREACH: false,
	} {
		if got := errors.Is(p.explain("dial", errno), ErrUntried); got != want {
			t.Errorf("%v: untried %v", errno, got)
		}
	}
}
