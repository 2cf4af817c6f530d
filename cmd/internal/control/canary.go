package control

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/verdict"
	"sluice/podman"
	"sluice/policy"
)

// kinds are the specs of a service's replicas: of the stable ones, and of the
// canary's, of which percent says what part of the new flows they get. Without
// a canary both are zero.
type kinds struct {
	stable, canary podman.Spec
	percent        int
}

// kindsOf applies a verdict: a promoted canary is what stable replicas are, an
// aborted one gets nothing.
func kindsOf(cfg config.Service, word verdict.Word) kinds {
	k := kinds{stable: podmanSpec(cfg, cfg.Container)}
	if cfg.Canary == nil {
		return k
	}
	k.canary, k.percent = podmanSpec(cfg, &cfg.Canary.Container), cfg.Canary.Percent
	switch word {
	case verdict.Promoted:
		return kinds{stable: k.canary}
	case verdict.Aborted:
		k.percent = 0
	}
	return k
}

// rules are what the policy is told of a service.
func (k kinds) rules(cfg config.Service) policy.Spec {
	p := policySpec(cfg, k.stable)
	if k.canary.Image != "" {
		p.Canary = policy.Canary{Hash: k.canary.Hash(), Percent: k.percent}
	}
	return p
}

// of is what a replica is made from.
func (k kinds) of(canary bool) podman.Spec {
	if canary {
		return k.canary
	}
	return k.stable
}

// networks are those that replicas are on.
func (k kinds) networks() []string {
	list := []string{k.stable.Network}
	if n := k.canary.Network; n != "" && n != list[0] {
		list = append(list, n)
	}
	return list
}

// stopTimeout is how long a replica has to end by itself.
func (s *service) stopTimeout(r *replica) time.Duration {
	switch {
	case s.cfg.Container == nil: // its backends are fixed by now
		return s.lastStop
	case s.cfg.Canary != nil && r.prepared.SpecHash == podmanSpec(s.cfg, &s.cfg.Canary.Container).Hash():
		return s.cfg.Canary.Container.StopTimeout
	}
	return s.cfg.Container.StopTimeout
}

// verdicts are those in force, owned by the owner, and what keeps them.
type verdicts struct {
	of    map[string]verdict.Verdict
	dir   string
	asked uint64

	mu    sync.Mutex
	saved uint64
}

// recall reads what an earlier run has kept.
func (c *Control) recall() {
	c.verdicts = &verdicts{dir: c.opt.State, of: map[string]verdict.Verdict{}}
	if c.opt.State == "" {
		return
	}
	all, err := verdict.Load(c.opt.State)
	if err != nil {
		c.log.Warn().Err(err).Msg("no canary counts as promoted or aborted")
	}
	maps.Copy(c.verdicts.of, all)
}

// word is the verdict on a service's canary as it is configured.
func (c *Control) word(cfg config.Service) verdict.Word {
	if v, ok := c.verdicts.of[cfg.Name]; ok && cfg.Canary != nil && v.Canary == cfg.Canary.Digest {
		return v.Word
	}
	return ""
}

// lapse forgets verdicts on canaries that are not configured any more.
func (c *Control) lapse(services []config.Service) {
	canary := map[string]string{}
	for _, s := range services {
		if s.Canary != nil {
			canary[s.Name] = s.Canary.Digest
		}
	}
	n := len(c.verdicts.of)
	maps.DeleteFunc(c.verdicts.of, func(name string, v verdict.Verdict) bool {
		if v.Canary == canary[name] {
			return false
		}
		c.log.Info().Str("service", name).Str("verdict", string(v.Word)).Msg("verdict on a canary that is not configured any more forgotten")
		return true
	})
	if len(c.verdicts.of) != n {
		c.record(func(error) {})
	}
}

// record keeps the verdicts for the next run and then calls done.
func (c *Control) record(done func(error)) {
	v := c.verdicts
	v.asked++
	seq, all := v.asked, maps.Clone(v.of)
	if v.dir == "" {
		done(nil)
		return
	}
	c.call(func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		var err error
		if seq > v.saved { // else a later one has come first
			if err = verdict.Save(v.dir, all); err == nil {
				v.saved = seq
			} else {
				c.log.Error().Err(err).Msg("verdicts on canaries will be lost with the end of the daemon: see daemon.state")
			}
		}
		done(err)
	})
}

// Judge puts a verdict on a service's canary in force, or with "" takes it
// back, and keeps it for the next run.
func (c *Control) Judge(ctx context.Context, name string, word verdict.Word) error {
	answer := make(chan error, 1)
	c.box.post(func(now time.Time) {
		s := c.services[name]
		switch {
		case s == nil:
			answer <- fmt.Errorf("%w: %q", ErrUnknown, name)
			return
		case s.cfg.Canary == nil || s.removed:
			answer <- fmt.Errorf("service %s has no canary: configure [service.%s.canary]", name, name)
			return
		}
		if word == "" {
			delete(c.verdicts.of, name)
		} else {
			c.verdicts.of[name] = verdict.Verdict{Canary: s.cfg.Canary.Digest, Word: word}
		}
		c.judged(s, now, word)
		c.record(func(err error) {
			if err != nil {
				err = fmt.Errorf("done, but a restart of the daemon will forget it: %w", err)
			}
			answer <- err
		})
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Kinds of events about canaries.
const (
	eventPromoted policy.Kind = "canary-promoted"
	eventAborted  policy.Kind = "canary-aborted"
	eventResumed  policy.Kind = "canary-resumed"
)

// judged puts a verdict in force.
func (c *Control) judged(s *service, now time.Time, word verdict.Word) {
	kind := eventResumed
	switch word {
	case verdict.Promoted:
		kind = eventPromoted
	case verdict.Aborted:
		kind = eventAborted
	}
	c.say(s, now, zerolog.InfoLevel, kind, 0, nil, canaryStatus(s.cfg, word).String())
	s.kinds = kindsOf(s.cfg, word)
	c.step(s, now, policy.Configure{Spec: s.kinds.rules(s.cfg)})
}

// CanaryStatus is what [ServiceStatus] says of a canary.
type CanaryStatus struct {
	Percent int          `json:"percent"`         // of new flows, as configured
	Verdict verdict.Word `json:"verdict"`         // promoted, aborted or ""
	Error   string       `json:"error,omitempty"` // why it last failed
	Advice  string       `json:"advice,omitempty"`
}

// String says it to a person.
func (st CanaryStatus) String() string {
	if st.Verdict == "" {
		return fmt.Sprintf("canary gets %d %% of new flows", st.Percent)
	}
	return fmt.Sprintf("canary %s: %s", st.Verdict, st.Advice)
}

// canary describes the service's canary, nil if it has none.
func (c *Control) canary(s *service, v policy.View) *CanaryStatus {
	if s.cfg.Canary == nil {
		return nil
	}
	st := canaryStatus(s.cfg, c.word(s.cfg))
	if v.Trial != nil {
		st.Error = v.Trial.Error()
	}
	return &st
}

func canaryStatus(cfg config.Service, word verdict.Word) CanaryStatus {
	st := CanaryStatus{Percent: cfg.Canary.Percent, Verdict: word}
	switch word {
	case verdict.Promoted:
		st.Advice = fmt.Sprintf("write what [service.%[1]s.canary.container] has (image = %[2]q) into [service.%[1]s.container] and remove [service.%[1]s.canary]",
			cfg.Name, cfg.Canary.Container.Image)
	case verdict.Aborted:
		st.Advice = fmt.Sprintf("remove [service.%s.canary], or change its container to try another", cfg.Name)
	}
	return st
}
