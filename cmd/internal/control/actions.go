package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/health"
	"sluice/podman"
	"sluice/policy"
)

// do carries out one action. What may block runs as an effect.
func (c *Control) do(s *service, now time.Time, a policy.Action) {
	switch a := a.(type) {
	case policy.Accept:
		c.arm(s, accept.Mode(a.Mode))
	case policy.Prepare:
		r := s.replica(a.Index)
		spec, limit := s.kinds.stable, callTimeout(s)
		c.call(func() { c.prepare(s, spec, limit, r.name, a.Index) })
	case policy.Start:
		if s.wake.start.IsZero() {
			s.wake.start = now
		}
		r := s.replica(a.Index)
		spec, limit, prepared, udp := s.kinds.of(a.Canary), callTimeout(s), r.prepared, datagrams(s.cfg)
		c.call(func() {
			if udp {
				c.noteSubnets(c.ctx, spec.Network)
			}
			c.start(s, spec, limit, r.name, a.Index, prepared)
		})
	case policy.Pause:
		c.paused[s] = true
		r := s.replica(a.Index)
		r.asleep = true
		c.screen(s) // before it is frozen, and commits faster
		names, id := c.backends(s, r), r.ref()
		c.call(func() { c.pause(s, r, id, names) })
	case policy.Thaw:
		r := s.replica(a.Index)
		names, id := c.backends(s, r), r.ref()
		c.call(func() { c.thaw(s, r, id, names) })
	case policy.Stop:
		c.stop(s, a)
	case policy.Probe:
		c.probe(s, s.replica(a.Index), a.Assume)
	case policy.Unprobe:
		r := s.replica(a.Index)
		r.endProbe()
		r.halted = false
	case policy.Map:
		if len(a.Shares) > 0 && s.wake.ready.IsZero() {
			s.wake.ready = now
		}
		if s.cfg.Balance == config.LeastConnections && len(a.Shares) > 1 {
			c.levelled[s] = true
		} else {
			delete(c.levelled, s)
		}
		ch := c.table(s, a.Shares, a.Percent)
		ch.seq = a.Seq
		s.holdBack()
		c.app.apply(ch)
	case policy.Count:
		r := s.replica(a.Index)
		names, allow := c.backends(s, r), s.cfg.Allow
		carries := r.carries // what is being handed over now may be a flow too late for the dump
		c.work.Go(func() {
			n, barred, err := c.live(names, allow)
			c.box.post(func(now time.Time) {
				if err != nil && !r.uncounted { // told once
					s.log.Warn().Err(err).Str("backend", r.name).Msg("connections not counted: taken to be busy")
				}
				r.uncounted = err != nil
				s.log.Debug().Err(err).Str("backend", r.name).Int("flows", n).Int("barred", barred).Msg("flows counted")
				c.step(s, now, policy.Counted{Index: a.Index, Seq: a.Seq, Flows: n + max(carries, r.carries), Barred: barred, Known: err == nil})
			})
		})
	case policy.Serve:
		c.take(s, now, a.Conn, a.Index)
	case policy.Reset:
		c.refuse(s.held[a.Conn])
		delete(s.held, a.Conn)
	case policy.Note:
		c.note(s, now, a)
	}
}

func (c *Control) arm(s *service, mode accept.Mode) {
	s.mode = mode
	mode = s.acceptMode(mode)
	for _, l := range s.listeners {
		if l.ln == nil || l.off {
			continue // datagrams are held or passed on, see pass
		}
		if err := c.opt.Accept.Arm(l.id, mode); err != nil {
			s.log.Error().Err(err).Stringer("listen", l.endpoint).Msg("listener not armed")
		}
	}
}

// accepted holds a connection and lets the policy decide.
func (c *Control) accepted(now, at time.Time, conn accept.Conn) {
	l := c.listeners[conn.Listener]
	if l == nil || l.service == nil || c.stopping && c.opt.Keep == nil {
		c.reset(conn.FD)
		return
	}
	h := held{fd: conn.FD, endpoint: l.endpoint, at: at}
	if l.service.stranger(h) {
		l.service.log.Debug().Msg("connection of a client that is not allowed reset")
		c.reset(conn.FD)
		c.arm(l.service, l.service.mode) // it may have been the one that was asked for
		return
	}
	if !c.silent(l.service, h) {
		c.hold(l.service, now, h)
	}
}

// hold lets the policy decide about a client that waits for a backend.
func (c *Control) hold(s *service, now time.Time, h held) {
	c.nextConn++
	s.held[c.nextConn] = h
	if s.patient() && len(s.held) == spokenMost {
		c.arm(s, s.mode)
	}
	phase, queued := s.policy.Phase(), 0
	if phase == policy.Cold || phase != policy.Warm && s.wake.accepted.IsZero() {
		s.wake.accepted = h.at
	}
	if phase != policy.Warm { // then the queue is no load that nobody serves
		queued = s.queued()
	}
	if phase != policy.Warm && phase != policy.Failed {
		s.log.Debug().Int("held", len(s.held)).Int("queued", queued).Msg("connection held")
	}
	id := c.nextConn
	c.step(s, now, policy.Accepted{Conn: id, Queued: queued})
	if h, waits := s.held[id]; waits { // it was not served at once
		c.keep(&h)
		s.held[id] = h
	}
}

// prepare initialises a replica.
func (c *Control) prepare(s *service, spec podman.Spec, limit time.Duration, name string, index int) {
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	_, err := c.opt.Replicas.Create(ctx, spec, index)
	var r podman.Replica
	if err == nil {
		r, err = c.opt.Replicas.Init(ctx, name)
	}
	c.box.post(func(now time.Time) {
		if err == nil {
			c.know(s, r)
		}
		c.step(s, now, policy.Prepared{Index: index, Err: err})
	})
}

// start starts a replica; a prepared one exists already.
func (c *Control) start(s *service, spec podman.Spec, limit time.Duration, name string, index int, prepared podman.Replica) {
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	var r podman.Replica
	var err error
	if prepared.State == podman.Initialized {
		r, err = c.opt.Replicas.StartPrepared(ctx, prepared)
	} else if _, err = c.opt.Replicas.Create(ctx, spec, index); err == nil {
		r, err = c.opt.Replicas.Start(ctx, name)
	}
	if err == nil && !r.Addr4.IsValid() && !r.Addr6.IsValid() {
		err = fmt.Errorf("%s has no address on network %q", name, spec.Network)
	}
	c.box.post(func(now time.Time) {
		if err == nil {
			if s.wake.started.IsZero() {
				s.wake.started = now
			}
			c.know(s, r)
		}
		c.step(s, now, policy.Started{Index: index, Err: err, Permanent: errors.Is(err, podman.ErrImage) || errors.Is(err, podman.ErrSpec)})
	})
}

// callTimeout bounds a start: it may have to pull an image first.
func callTimeout(s *service) time.Duration { return s.cfg.Start.Timeout + time.Minute }

// know takes over a running or prepared replica's address and watches for its
// death.
func (c *Control) know(s *service, p podman.Replica) {
	r := s.replica(p.Index)
	r.id, r.since, r.prepared = p.ID, time.Now(), p
	r.alias = ""
	if p.Name != r.name {
		r.alias = p.Name
	}
	was4, was6 := r.addr4, r.addr6
	r.addr4, r.addr6 = netip.AddrPort{}, netip.AddrPort{}
	if p.Addr4.IsValid() {
		r.addr4 = netip.AddrPortFrom(p.Addr4, p.Port)
	}
	if p.Addr6.IsValid() {
		r.addr6 = netip.AddrPortFrom(p.Addr6, p.Port)
	}
	if r.addr4 != was4 || r.addr6 != was6 {
		c.part(r)
	}
	c.localnet(s)
	r.endWatch()
	ctx, cancel := context.WithCancel(c.ctx)
	r.unwatch = cancel
	c.work.Go(func() {
		err := c.opt.Replicas.Exited(ctx, p)
		for try := 1; err != nil && try < watchTries && wait(ctx, watchAgain); try++ {
			err = c.opt.Replicas.Exited(ctx, p) // the daemon may have been out of descriptors
		}
		if ctx.Err() != nil {
			return // no longer of interest
		}
		if err != nil {
			// Podman's events, later by a tenth of a second, must do.
			s.log.Debug().Err(err).Str("backend", p.Name).Msg("process not watched")
			return
		}
		c.gone(ctx, s, p.Index, "its process has ended")
	})
}

const (
	watchTries = 10
	watchAgain = time.Second
)

// wait waits and reports whether the time has passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// gone reports the end of a replica with what Podman knows of it.
func (c *Control) gone(ctx context.Context, s *service, index int, detail string) {
	c.box.post(func(now time.Time) {
		if ctx.Err() == nil {
			c.step(s, now, policy.Died{Index: index, Detail: detail})
		}
	})
}

// stop ends a replica and removes all traces of it, its conntrack entries
// last: until its program has ended they carry its last bytes.
func (c *Control) stop(s *service, a policy.Stop) {
	r := s.replica(a.Index)
	r.endProbe()
	r.halted = false
	r.endWatch()
	r.endExchanges()
	all, asleep, id := c.backends(s, r), r.asleep, r.ref()
	timeout := s.stopTimeout(r)
	c.call(func() {
		if asleep {
			c.unwatch(s.log, r.name, all)
		}
		ctx, cancel := context.WithTimeout(c.ctx, timeout+time.Minute)
		defer cancel()
		var err error
		if r.index < policy.FirstMember {
			if err = c.opt.Replicas.Stop(ctx, id, timeout); err == nil {
				err = c.opt.Replicas.Remove(ctx, id)
			}
		}
		for _, t := range targets(all) {
			if err == nil {
				_, err = c.opt.Flows.Forget(ctx, t.addr, t.proto)
			}
		}
		c.box.post(func(now time.Time) {
			switch {
			case err != nil:
			case r.index < policy.FirstMember:
				c.remove(s, r)
			default:
				c.part(r)
			}
			c.step(s, now, policy.Stopped{Index: a.Index, Err: err})
			c.prune(s, r)
		})
	})
}

// probe runs the checks of a replica until endProbe.
func (c *Control) probe(s *service, r *replica, assume bool) {
	r.endProbe()
	r.halted = false
	h := s.cfg.Health
	check := health.Check{
		Type: health.Type(h.Type), Path: h.Path, Command: h.Command,
		Interval: h.Interval, Timeout: h.Timeout, Rise: h.Rise, Fall: h.Fall,
		Header: checkHeader(s),
	}
	target := health.Target{Addr: r.any(), Healthy: assume, Urgent: r.index < policy.FirstMember}
	if id := r.ref(); check.Type == health.Exec {
		target.Exec = func(ctx context.Context, _ []string) (int, string, error) {
			return c.exec(ctx, id, h.Timeout)
		}
	}
	turn := r.probes
	c.await(r)
	post := func(res health.Result) {
		c.box.post(func(now time.Time) {
			if r.probes == turn {
				c.step(s, now, policy.Health{Index: r.index, Healthy: res.Healthy, Err: res.Err})
				c.checked(r)
				if !res.Healthy {
					c.look(s, now, r)
				}
			}
		})
	}
	if pid, port := r.prepared.PID, r.prepared.Port; check.Type == health.None && s.udp() && pid > 0 {
		ctx, cancel := context.WithCancel(c.ctx)
		r.unprobe = cancel
		c.work.Go(func() { awaitBound(ctx, pid, port, post) })
		return
	}
	r.unprobe = c.health.Probe(check, target, post).Stop
}

// udp says whether the service has no address but of UDP.
func (s *service) udp() bool {
	return !slices.ContainsFunc(s.cfg.Listen, func(l config.Listen) bool { return l.Proto != config.UDP })
}

// exec runs the health command that the container was made with. That Podman
// does not answer says nothing about the container.
func (c *Control) exec(ctx context.Context, id string, timeout time.Duration) (int, string, error) {
	healthy, err := c.opt.Replicas.Probe(ctx, id, timeout)
	if errors.Is(err, podman.ErrUnreachable) || errors.Is(err, context.DeadlineExceeded) && c.opt.Replicas.Ping(c.ctx) != nil {
		err = fmt.Errorf("%w: %w", health.ErrUntried, err)
	}
	if err != nil || healthy {
		return 0, "", err
	}
	return 1, "", nil
}

func (r *replica) endProbe() {
	r.probes++ // what is under way still is of no interest
	if r.unprobe != nil {
		r.unprobe()
		r.unprobe = nil
	}
}

func (r *replica) endWatch() {
	if r.unwatch != nil {
		r.unwatch()
		r.unwatch = nil
	}
}
