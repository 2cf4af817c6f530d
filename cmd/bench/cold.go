package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/sandbox"
	"sluice/podman"
	"sluice/testenv"
)

func ready(st control.ServiceStatus) bool { return st.Ready == 1 }

func prepared(st control.ServiceStatus) bool { return sandbox.Asleep(st) && len(st.Backends) == 1 }

// cold measures starts from zero: from the client's SYN to the first byte of
// the answer, and in turn with them the same calls of Podman's API, made here,
// until a connection to the container succeeds.
func cold(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, rounds int) {
	var pod *podman.Client
	err := s.Host.Do(func() (err error) {
		pod, err = podman.Open(ctx, s.Podman.URI(), podman.Options{})
		return err
	})
	if err != nil {
		t.Fatalf("open podman: %v", err)
	}
	defer pod.Close()
	b := bare{ctx, t, s, pod}
	r.part("from the client's SYN to the first byte of the answer, and without: from Podman's call to a connection")

	for _, kind := range []struct {
		sleep, addr string
		rest        func(control.ServiceStatus) bool
		bare        func() time.Duration
	}{
		{"stop", stopAddr, sandbox.Asleep, b.start},
		{"prepared", prepAddr, prepared, b.startPrepared},
	} {
		var with, without, added []time.Duration
		for i := range rounds {
			var pair [2]time.Duration
			for _, half := range []int{i % 2, 1 - i%2} {
				s.Until(ctx, t, kind.sleep, "sleep", kind.rest)
				settle(ctx, t)
				if half == 0 {
					pair[0] = wake(ctx, t, s, kind.addr)
				} else {
					pair[1] = kind.bare()
				}
			}
			with, without, added = append(with, pair[0]), append(without, pair[1]), append(added, pair[0]-pair[1])
		}
		r.row(fmt.Sprintf("sleep = %q: added, median of %d pairs", kind.sleep, rounds),
			msec(median(with)), msec(median(without)), msec(median(added)), "< 5 ms")
		r.row("  the same, best of all", msec(slices.Min(with)), msec(slices.Min(without)), msec(slices.Min(with)-slices.Min(without)), "")
	}
}

// settle lets pass what Podman still does for the container that was removed
// last: its monitor starts a clean-up that takes a tenth of a second.
func settle(ctx context.Context, t testenv.TB) {
	t.Helper()
	select {
	case <-time.After(300 * time.Millisecond):
	case <-ctx.Done():
		t.Fatalf("interrupted")
	}
}

// rest lets pass what goes on after a start.
func rest(ctx context.Context, t testenv.TB) {
	t.Helper()
	for range 10 {
		settle(ctx, t)
	}
}

func wake(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, addr string) time.Duration {
	t.Helper()
	call, err := s.Call(ctx, s.Client, addr+httpPort)
	if err != nil {
		t.Fatalf("call %s: %v", addr, err)
	}
	return call.FirstByte.Sub(call.SYN)
}

// bare starts containers without sluice.
type bare struct {
	ctx context.Context
	t   testenv.TB
	s   *sandbox.Sandbox
	pod *podman.Client
}

func (b bare) spec() podman.Spec {
	return podman.Spec{Service: "bare", Image: testenv.Image, Port: 8080, Pull: "never", StopTimeout: 2 * time.Second}
}

func (b bare) start() time.Duration {
	b.t.Helper()
	return b.until(time.Now(), func() (podman.Replica, error) {
		if _, err := b.pod.Create(b.ctx, b.spec(), 1); err != nil {
			return podman.Replica{}, err
		}
		return b.pod.Start(b.ctx, podman.Name("bare", 1))
	})
}

func (b bare) startPrepared() time.Duration {
	b.t.Helper()
	_, err := b.pod.Create(b.ctx, b.spec(), 1)
	var r podman.Replica
	if err == nil {
		r, err = b.pod.Init(b.ctx, podman.Name("bare", 1))
	}
	if err != nil {
		b.t.Fatalf("prepare a container: %v", err)
	}
	return b.until(time.Now(), func() (podman.Replica, error) { return b.pod.StartPrepared(b.ctx, r) })
}

// until takes the time from begin until the container that f starts accepts a
// connection, and removes it.
func (b bare) until(begin time.Time, f func() (podman.Replica, error)) time.Duration {
	b.t.Helper()
	r, err := f()
	if err != nil {
		b.t.Fatalf("start a container: %v", err)
	}
	var took time.Duration
	err = b.s.Host.Do(func() error {
		for {
			var d net.Dialer
			c, err := d.DialContext(b.ctx, "tcp", r.Addr().String())
			if err == nil {
				took = time.Since(begin)
				return c.Close()
			}
			if b.ctx.Err() != nil || time.Since(begin) > time.Minute {
				return err
			}
			time.Sleep(200 * time.Microsecond) // refused: it does not listen yet
		}
	})
	if err == nil {
		err = b.pod.Stop(b.ctx, r.Name, 2*time.Second)
	}
	if err == nil {
		err = b.pod.Remove(b.ctx, r.Name)
	}
	if err != nil {
		b.t.Fatalf("start a container: %v", err)
	}
	return took
}
