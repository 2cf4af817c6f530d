package control

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"sluice/podman"
)

// TestStepped: only a wall clock that has lost time against the steady one was
// set back; one set forward asks for nothing.
func TestStepped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		wall, steady time.Duration
		want         bool
	}{
		{5 * time.Second, 5 * time.Second, false},
		{5*time.Second - 500*time.Millisecond, 5 * time.Second, false}, // slewed
		{-time.Hour, 5 * time.Second, true},
		{3 * time.Second, 5 * time.Second, true},
		{time.Hour, 5 * time.Second, false},
	} {
		if got := stepped(c.wall, c.steady); got != c.want {
			t.Errorf("wall %s, steady %s: %v", c.wall, c.steady, got)
		}
	}
}

// listened counts what Podman is asked for.
type listened struct {
	Replicas
	listed, watched, watching atomic.Int32
}

func (l *listened) List(context.Context) ([]podman.Replica, error) {
	l.listed.Add(1)
	return nil, nil
}

func (l *listened) Watch(ctx context.Context, _ time.Time, _ func(podman.Event)) error {
	l.watched.Add(1)
	l.watching.Add(1)
	defer l.watching.Add(-1)
	<-ctx.Done()
	return ctx.Err()
}

// TestClockSetBack: when the clock is set back Podman's events are asked for
// anew, once, and what was missed is listed; a clock set forward changes nothing.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var offset atomic.Int64
		l := &listened{}
		c := &Control{
			opt: Options{Replicas: l}, log: zerolog.Nop(), box: newMailbox(),
			wall: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) },
		}
		ctx, cancel := context.WithCancel(t.Context())
		var done atomic.Bool
		go func() {
			c.watch(ctx)
			done.Store(true)
		}()
		for i, x := range []struct {
			set             time.Duration
			listed, watched int32
		}{{0, 0, 1}, {time.Hour, 0, 1}, {-time.Hour, 1, 2}, {-time.Hour, 1, 2}, {-2 * time.Hour, 2, 3}} {
			offset.Store(int64(x.set))
			time.Sleep(3 * surveyTick) // of the bubble's time
			synctest.Wait()
			if got := [3]int32{l.listed.Load(), l.watched.Load(), l.watching.Load()}; got != [3]int32{x.listed, x.watched, 1} {
				t.Errorf("step %d, set to %s: listed, watched, watching %v, want %d, %d, 1", i, x.set, got, x.listed, x.watched)
			}
		}
		cancel()
		synctest.Wait()
		c.work.Wait()
		if !done.Load() || l.watching.Load() != 0 {
			t.Error("it goes on after its end")
		}
	})
}
