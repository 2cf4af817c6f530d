package health

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hang is a command that answers nothing.
func hang(ctx context.Context, _ []string) (int, string, error) {
	<-ctx.Done()
	return 0, "", ctx.Err()
}

// Thousands that do not answer do not keep others from being tried.
func TestSilentCrowd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool()
		defer p.Close()
		c := check(Exec)
		c.Timeout, c.Interval = time.Second, 2*time.Second
		for range 2000 {
			p.Probe(c, Target{Exec: hang}, func(Result) {})
		}
		begin := time.Now()
		up := time.Hour
		p.Probe(c, Target{Exec: func(context.Context, []string) (int, string, error) { return 0, "", nil }},
			func(Result) { up = time.Since(begin) })
		time.Sleep(3 * time.Second)
		if want := 2000 / atOnce * quick; up > want+time.Second {
			t.Errorf("healthy after %v, want at most about %v", up, want)
		}
	})
}

// What somebody waits for is tried at once, whatever else is to be done.
func TestUrgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool()
		defer p.Close()
		c := check(Exec)
		c.Timeout = time.Second
		for range 2000 {
			p.Probe(c, Target{Exec: hang}, func(Result) {})
		}
		begin := time.Now()
		var up time.Duration
		tries := 0
		p.Probe(c, Target{Urgent: true, Exec: func(context.Context, []string) (int, string, error) {
			if tries++; tries < 3 {
				return 1, "", nil
			}
			return 0, "", nil
		}}, func(r Result) {
			if r.Healthy {
				up = time.Since(begin)
			}
		})
		time.Sleep(time.Second)
		if up != 2*time.Millisecond {
			t.Errorf("healthy after %v, want 2ms: two pauses", up)
		}
	})
}

// No more than so many begin at a time, and all are begun.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool()
		defer p.Close()
		var now, most, up atomic.Int32
		c := check(Exec)
		c.Interval = time.Hour
		for range 1000 {
			p.Probe(c, Target{Exec: func(context.Context, []string) (int, string, error) {
				most.Store(max(most.Load(), now.Add(1)))
				time.Sleep(quick / 2)
				now.Add(-1)
				return 0, "", nil
			}}, func(Result) { up.Add(1) })
		}
		time.Sleep(time.Second)
		if most.Load() != atOnce || up.Load() != 1000 {
			t.Errorf("%d at once, want %d; %d of 1000 up", most.Load(), atOnce, up.Load())
		}
	})
}

// Many that are down cost no more than so much of the time.
func TestManyDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := NewPool()
		defer p.Close()
		var tries atomic.Int32
		c := check(Exec)
		c.Interval = 10 * time.Second
		for range 1000 {
			p.Probe(c, Target{Exec: func(context.Context, []string) (int, string, error) {
				tries.Add(1)
				return 1, "", nil
			}}, func(Result) {})
		}
		time.Sleep(3 * time.Second)
		most := 1000 + int32(3*time.Second/share)
		if n := tries.Load(); n > most || n < most*8/10 {
			t.Errorf("%d attempts in 3 s, want up to %d", n, most)
		}
	})
}

// What does not come up for long is tried once per interval in the end.
func TestPause(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ elapsed, interval, want time.Duration }{
		{0, time.Second, time.Millisecond},
		{640 * time.Millisecond, time.Second, 20 * time.Millisecond},
		{time.Minute, time.Second, 50 * time.Millisecond},
		{time.Minute + 8*time.Second, time.Second, 250 * time.Millisecond},
		{time.Hour, 2 * time.Second, 2 * time.Second},
		{time.Hour, 20 * time.Millisecond, 50 * time.Millisecond},
	} {
		if got := pause(test.elapsed, test.interval); got != test.want {
			t.Errorf("pause(%v, %v) = %v, want %v", test.elapsed, test.interval, got, test.want)
		}
	}
}

// After Stop has returned nothing is posted, and the pool forgets the prober.
func TestStop(t *testing.T) {
	t.Parallel()
	p := NewPool()
	c := check(Exec)
	c.Interval = time.Microsecond
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			var ended atomic.Bool
			news := make(chan struct{}, 1)
			b := p.Probe(c, Target{Exec: func(context.Context, []string) (int, string, error) {
				return 0, "", errors.New("no such container")
			}}, func(Result) {
				if ended.Load() {
					t.Error("posted after the end")
				}
				select {
				case news <- struct{}{}:
				default:
				}
			})
			await(t, news)
			b.Stop()
			ended.Store(true)
			b.Stop()
		})
	}
	wg.Wait()
	p.Close() // waits for attempts in flight
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.others)+len(p.urgent) != 0 || p.down != 0 {
		t.Errorf("%d probers left, %d down", len(p.others)+len(p.urgent), p.down)
	}
}
