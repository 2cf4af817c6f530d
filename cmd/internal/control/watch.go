package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/podman"
	"sluice/policy"
)

// watch follows Podman's events, the second source after the processes
// themselves, and lists the containers anew whenever the stream has broken.
func (c *Control) watch(ctx context.Context) {
	const retryMin, retryMax = 100 * time.Millisecond, 5 * time.Second
	retry, lost, since := retryMin, false, time.Now()
	for ctx.Err() == nil {
		if lost {
			asked := time.Now()
			since = asked
			found, err := c.opt.Replicas.List(ctx)
			if err == nil {
				c.log.Info().Msg("podman is back")
				lost, retry = false, retryMin
				c.box.post(func(now time.Time) { c.reconcile(now, asked, found) })
			}
		}
		var err error
		if !lost {
			if err = c.listenTo(ctx, since); ctx.Err() != nil {
				return
			}
			lost = true
			if errors.Is(err, errClock) {
				continue
			}
			c.log.Warn().Err(err).Msg("podman's events have ended, connections go on, trying again")
		}
		if !wait(ctx, retry) {
			return
		}
		retry = min(2*retry, retryMax)
	}
}

var errClock = errors.New("clock set back")

// listenTo follows the events until they end, or the clock is set back.
func (c *Control) listenTo(ctx context.Context, since time.Time) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.work.Go(func() {
		c.survey(ctx)
		cancel(errClock)
	})
	err := c.opt.Replicas.Watch(ctx, since, func(ev podman.Event) {
		c.box.post(func(now time.Time) { c.noticed(now, ev) })
	})
	if errors.Is(context.Cause(ctx), errClock) {
		return errClock
	}
	return err
}

// ended takes the end of a container from Podman's events.
func (c *Control) ended(now time.Time, ev podman.Event) {
	s := c.services[ev.Service]
	if s == nil || s.replicas[ev.Index] == nil || !s.replicas[ev.Index].known() {
		return
	}
	if id := s.replicas[ev.Index].id; id != "" && id != ev.ID {
		return // of an earlier container of that name
	}
	c.step(s, now, policy.Died{Index: ev.Index, Detail: fmt.Sprintf("podman says %s, exit code %d", ev.Action, ev.ExitCode)})
}

// reconcile compares what ran when Podman was asked with what should have,
// after events were lost.
func (c *Control) reconcile(now, asked time.Time, found []podman.Replica) {
	there := map[string]podman.Replica{}
	for _, p := range found {
		there[p.ID] = p
	}
	for _, s := range c.services {
		for _, r := range s.replicas {
			if r.id == "" || !r.since.Before(asked) {
				continue
			}
			if p, ok := there[r.id]; ok {
				c.compare(s, now, r, p)
			} else {
				c.step(s, now, policy.Died{Index: r.index, Detail: fmt.Sprintf("%s does not exist any more", r.name)})
			}
		}
	}
}
