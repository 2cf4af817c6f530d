package podman

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containers/podman/v5/libpod/define"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	"golang.org/x/sys/unix"
)

// Create makes the service's Nth container and does not start it. The image is
// had by the Spec's pull policy; when it is in local storage and the policy is
// missing or never, that costs no request.
//
// A container of that name which an earlier run left dead is replaced; a live
// one made from the same Spec is returned as it is. ErrSpec if the container
// cannot be made as described, or if the name belongs to somebody else's;
// ErrImage if the image is not to be had.
func (c *Client) Create(ctx context.Context, s Spec, index int) (Replica, error) {
	name := Name(s.Service, index)
	if _, err := s.generator(index); err != nil {
		return Replica{}, fmt.Errorf("create container %s: %w", name, err)
	}
	if s.Pull == "always" || s.Pull == "newer" {
		if err := c.Pull(ctx, s); err != nil {
			return Replica{}, err
		}
	}
	r, err := c.create(ctx, s, index)
	if errors.Is(err, errNoImage) {
		if err := c.Pull(ctx, s); err != nil {
			return Replica{}, err
		}
		r, err = c.create(ctx, s, index)
	}
	if !errors.Is(err, errTaken) {
		return r, err
	}
	old, err := c.evict(ctx, name, s)
	if err != nil || old.State.Live() {
		return old, err
	}
	return c.create(ctx, s, index)
}

// create is one attempt.
func (c *Client) create(ctx context.Context, s Spec, index int) (Replica, error) {
	g, err := s.generator(index)
	if err != nil {
		return Replica{}, err
	}
	r := Replica{Name: g.Name, State: Created}
	r.label(g.Labels)
	err = c.do(ctx, "create container "+g.Name, func(ctx context.Context) error {
		answer, err := containers.CreateWithSpec(ctx, g, nil)
		r.ID = answer.ID
		return err
	})
	switch {
	case errors.Is(err, errNoNetwork):
		return Replica{}, fmt.Errorf("create container %s: %w", g.Name, missing(s.Network))
	case errors.Is(err, ErrImage):
		return Replica{}, fmt.Errorf("image %q: %w", s.Image, err)
	case err != nil:
		return Replica{}, err
	}
	return r, nil
}

// evict removes the dead container that has the name, or says why not. A live
// one that is just what s describes is returned.
func (c *Client) evict(ctx context.Context, name string, s Spec) (Replica, error) {
	old, err := c.Inspect(ctx, name)
	switch {
	case errors.Is(err, ErrGone):
		return Replica{}, nil
	case err != nil:
		return Replica{}, err
	case old.Service == "":
		return Replica{}, fmt.Errorf("create container %s: %w: the name belongs to container %.12s, which has no label %s: rename or remove it",
			name, ErrSpec, old.ID, LabelService)
	case old.Service != s.Service:
		return Replica{}, fmt.Errorf("create container %s: %w: the name belongs to a replica of service %s", name, ErrSpec, old.Service)
	case old.State.Live() && old.SpecHash == s.Hash():
		return old, nil
	case old.State.Live() && old.State != Initialized:
		return Replica{}, fmt.Errorf("create container %s: a replica of another configuration has the name and is %s", name, old.State)
	}
	return Replica{}, c.Remove(ctx, old.ID)
}

// Init brings a created container up to the point where only its program is
// missing: Start then takes a tenth of the time. It returns the replica with
// its address, which stays the same through that Start. One that is beyond that
// point is returned as it is.
//
// A container that has run, or was prepared, and ended is refused: Podman
// cleans up after a run in a process of its own, which comes 100 ms late or
// more, takes an initialised container for the dead one and tears it down.
// Remove and Create make a fresh one.
func (c *Client) Init(ctx context.Context, name string) (Replica, error) {
	verb := "init container " + name
	r, err := c.Inspect(ctx, name)
	if err != nil {
		return Replica{}, err
	}
	if r.used && !r.State.Live() {
		return Replica{}, fmt.Errorf("%s: it has been up before and is %s: only a fresh one can be prepared", verb, r.State)
	}
	leave, err := c.lanes.init(ctx)
	if err != nil {
		return Replica{}, fmt.Errorf("%s: %w", verb, err)
	}
	err = c.do(ctx, verb, func(ctx context.Context) error {
		err := containers.ContainerInit(ctx, name, nil)
		if errors.Is(err, define.ErrCtrStateInvalid) {
			return nil // 304: it stands already
		}
		return err
	})
	leave()
	if err != nil {
		return Replica{}, err
	}
	return c.up(ctx, name)
}

// Start makes a replica run, whatever state it is in, and returns it with its
// address. For one that runs already it does nothing but that.
//
// A program that ended within the few milliseconds of the call is an error; the
// Replica is returned with it and has the exit code.
func (c *Client) Start(ctx context.Context, name string) (Replica, error) {
	verb := "start container " + name
	leave, err := c.lanes.start(ctx)
	if err != nil {
		return Replica{}, fmt.Errorf("%s: %w", verb, err)
	}
	err = c.do(ctx, verb, func(ctx context.Context) error {
		return containers.Start(ctx, name, nil)
	})
	leave()
	if errors.Is(err, errState) {
		if r, ierr := c.Inspect(ctx, name); ierr == nil && r.State == Paused {
			err = c.Unpause(ctx, name)
		}
	}
	if err != nil {
		return Replica{}, err
	}
	r, err := c.up(ctx, name)
	if err == nil && !r.State.Live() {
		err = fmt.Errorf("%s: program ended at once with exit code %d", verb, r.ExitCode)
	}
	return r, err
}

// StartPrepared starts a replica as Init returned it, and takes for granted
// that it is still as it was then: process and address are not asked for anew,
// which saves a fifth of the time. If they did change, Exited(r) returns at
// once.
func (c *Client) StartPrepared(ctx context.Context, r Replica) (Replica, error) {
	if r.State != Initialized || r.ID == "" {
		return c.Start(ctx, r.Name)
	}
	verb := "start container " + r.Name
	leave, err := c.lanes.start(ctx)
	if err != nil {
		return Replica{}, fmt.Errorf("%s: %w", verb, err)
	}
	err = c.do(ctx, verb, func(ctx context.Context) error {
		return containers.Start(ctx, r.ID, nil)
	})
	leave()
	if err != nil {
		return Replica{}, err
	}
	// Init told the kernel whose the address is. To say it again, if it was
	// given to another replica meanwhile, would cut that one off.
	r.State = Running
	r.StartedAt = time.Now()
	return r, nil
}

// up reads back a replica that was brought up.
func (c *Client) up(ctx context.Context, name string) (Replica, error) {
	r, err := c.Inspect(ctx, name)
	if err != nil {
		return Replica{}, err
	}
	c.introduce(r)
	return r, nil
}

// introduce tells the kernel whose the replica's addresses are: it may know
// them as those of an earlier container. And it lets the replica call itself.
func (c *Client) introduce(r Replica) {
	mirror := c.local && r.State.Live() && translated()
	for addr, mac := range r.links {
		if err := c.neigh.set(addr, mac); err != nil {
			c.warn(fmt.Errorf("start container %s: refresh neighbour %s: %w", r.Name, addr, err))
		}
		if mirror {
			mirror = false // the other family's is the same port
			// A program that has ended at once needs nothing.
			if err := c.neigh.hairpin(r.PID, addr); err != nil && !errors.Is(err, unix.ESRCH) {
				c.warn(fmt.Errorf("start container %s: it may not reach itself by its service: %w", r.Name, err))
			}
		}
	}
}

// Stop tells the program to end (with the image's stop signal, SIGTERM by
// default), kills it after timeout, rounded up to whole seconds, and returns
// when it is dead. A timeout of 0 kills at once. A paused replica is unpaused
// first. Nothing to stop is no error.
func (c *Client) Stop(ctx context.Context, name string, timeout time.Duration) error {
	err := c.stop(ctx, name, timeout)
	if errors.Is(err, errState) {
		if r, ierr := c.Inspect(ctx, name); ierr == nil && r.State == Paused {
			if err = c.Unpause(ctx, name); err == nil {
				err = c.stop(ctx, name, timeout)
			}
		}
	}
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

func (c *Client) stop(ctx context.Context, name string, timeout time.Duration) error {
	return c.do(ctx, "stop container "+name, func(ctx context.Context) error {
		return containers.Stop(ctx, name, new(containers.StopOptions).WithTimeout(wholeSeconds(timeout)))
	})
}

// Pause freezes a running replica. One that is paused already is no error.
func (c *Client) Pause(ctx context.Context, name string) error {
	err := c.do(ctx, "pause container "+name, func(ctx context.Context) error {
		return containers.Pause(ctx, name, nil)
	})
	return c.settled(ctx, name, Paused, err)
}

// Unpause thaws a paused replica. One that runs already is no error.
func (c *Client) Unpause(ctx context.Context, name string) error {
	err := c.do(ctx, "unpause container "+name, func(ctx context.Context) error {
		return containers.Unpause(ctx, name, nil)
	})
	return c.settled(ctx, name, Running, err)
}

// settled forgives a refusal if the container is in the wanted state anyway.
func (c *Client) settled(ctx context.Context, name string, want State, err error) error {
	if errors.Is(err, errState) {
		if r, ierr := c.Inspect(ctx, name); ierr == nil && r.State == want {
			return nil
		}
	}
	return err
}

// Remove kills what runs in the container and removes it with its anonymous
// volumes. One that is absent is no error.
func (c *Client) Remove(ctx context.Context, name string) error {
	err := c.do(ctx, "remove container "+name, func(ctx context.Context) error {
		_, err := containers.Remove(ctx, name, new(containers.RemoveOptions).
			WithForce(true).
			WithTimeout(0).
			WithIgnore(true).
			WithVolumes(true))
		return err
	})
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}
