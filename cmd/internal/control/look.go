package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"sluice/podman"
	"sluice/policy"
)

// Others may do to a container what they like: pause, rename, disconnect or
// remove it. Podman's events and the checks give the hint, and Podman is asked
// what is true.

const lookEvery = time.Second // and not more often, for one replica

var errPaused = errors.New("paused by hand: 'podman unpause' brings it back")

// look asks Podman how a replica is, at once or as soon as it may.
func (c *Control) look(s *service, now time.Time, r *replica) {
	wait := lookEvery - now.Sub(r.looked)
	switch {
	case r.id == "" || r.index >= policy.FirstMember || r.again:
		return
	case r.looking:
		r.again = true // when the answer has come, which may be older than the hint
		return
	case wait > 0:
		r.again = true
		time.AfterFunc(wait, func() {
			c.box.post(func(now time.Time) { c.lookAgain(s, now, r) })
		})
		return
	}
	r.looking = true
	id, asked := r.id, now
	c.work.Go(func() {
		p, err := c.opt.Replicas.Inspect(c.ctx, id)
		if err == nil && p.State.Live() {
			c.cut([]podman.Replica{p})
		}
		c.box.post(func(now time.Time) {
			r.looking, r.looked = false, now
			switch {
			case s.replicas[r.index] != r || r.id != id || r.since.After(asked):
			case errors.Is(err, podman.ErrGone):
				c.step(s, now, policy.Died{Index: r.index, Detail: r.name + " does not exist any more"})
			case err != nil:
				s.log.Debug().Err(err).Str("backend", r.name).Msg("container not looked at")
			default:
				c.compare(s, now, r, p)
			}
			if r.again {
				c.lookAgain(s, now, r)
			}
		})
	})
}

func (c *Control) lookAgain(s *service, now time.Time, r *replica) {
	r.again = false
	if s.replicas[r.index] == r && c.services[s.name] == s {
		c.look(s, now, r)
	}
}

// compare holds a replica against what Podman tells of its container.
func (c *Control) compare(s *service, now time.Time, r *replica, p podman.Replica) {
	if r.called() != p.Name && p.Name != "" {
		s.log.Warn().Str("backend", r.name).Str("name", p.Name).Msg("container renamed by hand, shown by its new name from now on")
		r.alias = p.Name
	}
	switch {
	case p.State == podman.Unknown:
	case !p.State.Live():
		c.step(s, now, policy.Died{Index: r.index, Detail: fmt.Sprintf("%s does not run any more", r.name)})
	case p.Addr4 != r.addr4.Addr() || p.Addr6 != r.addr6.Addr():
		c.step(s, now, policy.Died{Index: r.index, Detail: fmt.Sprintf("%s is not on network %s any more at %s", r.name, strings.Join(s.kinds.networks(), " or "), r.any().Addr())})
	case p.State == podman.Paused:
		c.halt(s, now, r)
	case r.halted && p.State == podman.Running:
		c.resume(s, r)
	}
}

// halt takes a replica that somebody else has paused for unhealthy. A check
// would not tell: the kernel accepts connections for a frozen program.
func (c *Control) halt(s *service, now time.Time, r *replica) {
	if r.halted || r.asleep || r.unprobe == nil {
		return // it is paused by us, or not in use
	}
	r.halted = true
	r.endProbe()
	c.step(s, now, policy.Health{Index: r.index, Err: errPaused})
}

// resume lets the check decide again.
func (c *Control) resume(s *service, r *replica) {
	r.halted = false
	c.probe(s, r, false)
}

// ref is what Podman knows a replica's container by, whatever it is called.
func (r *replica) ref() string {
	if r.id != "" {
		return r.id
	}
	return r.name
}

// noticed takes something that was done to a container, by whomever.
func (c *Control) noticed(now time.Time, ev podman.Event) {
	s := c.services[ev.Service]
	if s == nil {
		return
	}
	r := s.replicas[ev.Index]
	if r == nil || r.id != ev.ID {
		return
	}
	switch ev.Action {
	case podman.OnDeath, podman.OnRemove:
		c.ended(now, ev)
	case podman.OnPause, podman.OnUnpause, podman.OnRename:
		r.looked = time.Time{} // such an event is no mere hint
		c.look(s, now, r)
	}
}

// stepped reports whether the wall clock, by which Podman's events are asked
// for, was set back in an interval of which both clocks tell the length.
func stepped(wall, steady time.Duration) bool { return wall < steady-clockSlack }

const clockSlack = time.Second

// survey lists the containers every so often until ctx ends, since events may be
// lost. It ends early, without an error, when the wall clock has been set back:
// Podman would keep quiet until the old time has come again.
func (c *Control) survey(ctx context.Context) {
	last, lastWall := time.Now(), c.wall().Round(0) // without the steady clock's part
	tick := time.NewTicker(surveyTick)
	defer tick.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now, nowWall := time.Now(), c.wall().Round(0)
		if wall, steady := nowWall.Sub(lastWall), now.Sub(last); stepped(wall, steady) {
			c.log.Warn().Dur("by", steady-wall).Msg("the clock was set back, listening to podman's events anew")
			return
		}
		last, lastWall = now, nowWall
		if n%surveyEvery != 0 {
			continue
		}
		found, err := c.opt.Replicas.List(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.log.Debug().Err(err).Msg("containers not listed")
			}
			continue
		}
		c.box.post(func(at time.Time) { c.reconcile(at, now, found) })
	}
}

const (
	surveyTick  = 5 * time.Second
	surveyEvery = 12 // ticks
)
