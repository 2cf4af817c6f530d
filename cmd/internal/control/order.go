package control

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sluice/policy"
)

// ErrUnknown says that a service is not configured.
var ErrUnknown = errors.New("no such service")

// Drain orders to drain the named backend of a service, or with "" all of them.
func (c *Control) Drain(ctx context.Context, name, backend string) error {
	return c.order(ctx, name, func(s *service) (policy.Event, error) {
		if backend == "" {
			return policy.Drain{}, nil
		}
		i, ok := s.index(backend)
		if !ok {
			return nil, fmt.Errorf("service %s: no backend %q: 'sluice status %s' lists them", name, backend, name)
		}
		return policy.Drain{Index: i}, nil
	})
}

// Do gives an order to a service.
func (c *Control) Do(ctx context.Context, name string, ev policy.Event) error {
	return c.order(ctx, name, func(*service) (policy.Event, error) { return ev, nil })
}

// order steps the named service with the event that f makes in the owner.
func (c *Control) order(ctx context.Context, name string, f func(*service) (policy.Event, error)) error {
	answer := make(chan error, 1)
	c.box.post(func(now time.Time) {
		s := c.services[name]
		if s == nil {
			answer <- fmt.Errorf("%w: %q", ErrUnknown, name)
			return
		}
		ev, err := f(s)
		if err == nil {
			err = s.allows(ev)
		}
		if err != nil {
			answer <- err
			return
		}
		c.step(s, now, ev)
		answer <- nil
	})
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// allows refuses orders that make no sense, in words for a person.
func (s *service) allows(ev policy.Event) error {
	switch ev := ev.(type) {
	case policy.Scale:
		switch {
		case s.cfg.Container == nil:
			return fmt.Errorf("service %s: cannot scale: it has no container, only backends that sluice does not start", s.name)
		case s.policy.Outranked():
			return fmt.Errorf("service %s: cannot scale: a backend of better priority serves, and replicas are started when none of these is healthy", s.name)
		case ev.N < 0 || ev.N > s.cfg.Scale.Max:
			return fmt.Errorf("service %s: cannot scale to %d: scale.max is %d", s.name, ev.N, s.cfg.Scale.Max)
		}
	}
	return nil
}
