package podman

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containers/podman/v5/libpod/define"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	"github.com/containers/podman/v5/pkg/domain/entities/types"
	"golang.org/x/sync/errgroup"
)

// State is what a replica's container is doing.
type State uint8

// The states, with Podman's own words for them.
const (
	Unknown     State = iota // not asked, or a word that is new to us
	Created                  // created: exists, nothing stands yet
	Initialized              // initialized: network and mounts stand, the program is not loaded
	Running                  // running
	Paused                   // paused: frozen; the kernel still accepts for it
	Stopping                 // stopping: told to end
	Stopped                  // stopped: ended, its network not torn down yet
	Exited                   // exited: ended
	Removing                 // removing
)

// String is Podman's word for the state.
func (s State) String() string {
	switch s {
	case Created:
		return "created"
	case Initialized:
		return "initialized"
	case Running:
		return "running"
	case Paused:
		return "paused"
	case Stopping:
		return "stopping"
	case Stopped:
		return "stopped"
	case Exited:
		return "exited"
	case Removing:
		return "removing"
	}
	return "unknown"
}

// Live reports whether a process stands behind the container, and with it an
// address.
func (s State) Live() bool {
	return s == Initialized || s == Running || s == Paused || s == Stopping
}

// stateOf is the state that Podman has this word for.
func stateOf(word string) State {
	switch strings.ToLower(word) {
	case "created", "configured":
		return Created
	}
	for s := Initialized; s <= Removing; s++ {
		if strings.EqualFold(word, s.String()) {
			return s
		}
	}
	return Unknown
}

// A Replica is one container of a service, as Podman saw it when asked.
type Replica struct {
	Name    string
	ID      string
	Service string
	Index   int // N of the name; 0 if its label is not a number
	State   State

	PID   int        // of the program, in Podman's PID namespace; 0 unless State.Live
	Addr4 netip.Addr // invalid unless State.Live; differs from start to start
	Addr6 netip.Addr // likewise; invalid on a network without IPv6
	Port  uint16     // where the program listens

	SpecHash  string    // Hash of the Spec it was made from
	ImageID   string    // what Spec.Image meant at that time
	ExitCode  int       // of the last run, once it ended
	OOMKilled bool      // the last run was ended by the kernel for want of memory; only Inspect tells of the dead
	StartedAt time.Time // zero if never started

	StopTimeout time.Duration // Podman's own, from Spec.StopTimeout; 0 from List of the dead

	used   bool                            // it was up before, and ended
	conmon int                             // parent of PID
	links  map[netip.Addr]net.HardwareAddr // whom the addresses belong to
}

// Addr is the address to dial, IPv4 first; invalid unless State.Live.
func (r Replica) Addr() netip.AddrPort {
	switch {
	case r.Addr4.IsValid():
		return netip.AddrPortFrom(r.Addr4, r.Port)
	case r.Addr6.IsValid():
		return netip.AddrPortFrom(r.Addr6, r.Port)
	}
	return netip.AddrPort{}
}

// label fills in what the container's labels say.
func (r *Replica) label(labels map[string]string) {
	r.Service = labels[LabelService]
	r.SpecHash = labels[LabelSpec]
	if n, err := strconv.Atoi(labels[LabelIndex]); err == nil && n > 0 {
		r.Index = n
	}
	if p, err := strconv.ParseUint(labels[LabelPort], 10, 16); err == nil {
		r.Port = uint16(p)
	}
}

// inspected reads a Replica out of Podman's answer to inspect.
func inspected(data *define.InspectContainerData) Replica {
	r := Replica{Name: data.Name, ID: data.ID, ImageID: data.Image}
	if data.Config != nil {
		r.label(data.Config.Labels)
		r.StopTimeout = time.Duration(data.Config.StopTimeout) * time.Second //nolint:gosec // seconds
	}
	if s := data.State; s != nil {
		r.State = stateOf(s.Status)
		r.ExitCode = int(s.ExitCode)
		r.OOMKilled = s.OOMKilled
		if s.StartedAt.Year() > 1 { // never started: 0001-01-01
			r.StartedAt = s.StartedAt
		}
		r.used = s.FinishedAt.Year() > 1
		if r.State.Live() {
			r.PID, r.conmon = s.Pid, s.ConmonPid
		}
	}
	if data.NetworkSettings == nil || !r.State.Live() {
		return r
	}
	r.links = make(map[netip.Addr]net.HardwareAddr)
	for _, n := range data.NetworkSettings.Networks {
		mac, _ := net.ParseMAC(n.MacAddress) // nil: the neighbour entry is dropped, not set
		if a, err := netip.ParseAddr(n.IPAddress); err == nil && !r.Addr4.IsValid() {
			r.Addr4, r.links[a] = a, mac
		}
		if a, err := netip.ParseAddr(n.GlobalIPv6Address); err == nil && !r.Addr6.IsValid() {
			r.Addr6, r.links[a] = a, mac
		}
	}
	return r
}

// listed reads a Replica out of an entry of Podman's list, which has no
// addresses.
func listed(e types.ListContainer) Replica {
	r := Replica{ID: e.ID, ImageID: e.ImageID, State: stateOf(e.State), ExitCode: int(e.ExitCode)}
	if len(e.Names) > 0 {
		r.Name = e.Names[0]
	}
	r.label(e.Labels)
	if e.StartedAt > 0 {
		r.StartedAt = time.Unix(e.StartedAt, 0)
	}
	return r
}

// Inspect asks for the present state of a container by name or ID. ErrGone if
// there is none.
func (c *Client) Inspect(ctx context.Context, name string) (Replica, error) {
	data, err := c.inspect(ctx, name)
	if err != nil {
		return Replica{}, err
	}
	return inspected(data), nil
}

func (c *Client) inspect(ctx context.Context, name string) (*define.InspectContainerData, error) {
	var data *define.InspectContainerData
	err := c.ask(ctx, "inspect container "+name, func(ctx context.Context) (err error) {
		data, err = containers.Inspect(ctx, name, nil)
		return err
	})
	return data, err
}

// List asks for the replicas of all services, dead ones too, ordered by service
// and index. Live ones are inspected one by one, since Podman's list has no
// addresses; one that goes meanwhile is left out.
func (c *Client) List(ctx context.Context) ([]Replica, error) {
	var entries []types.ListContainer
	err := c.ask(ctx, "list containers", func(ctx context.Context) (err error) {
		entries, err = containers.List(ctx, new(containers.ListOptions).
			WithAll(true).
			WithFilters(map[string][]string{"label": {LabelService}}))
		return err
	})
	if err != nil {
		return nil, err
	}
	all := make([]Replica, len(entries))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, e := range entries {
		all[i] = listed(e)
		if !all[i].State.Live() {
			continue
		}
		group.Go(func() error {
			r, err := c.Inspect(ctx, e.ID)
			if errors.Is(err, ErrGone) {
				err = nil
			}
			all[i] = r
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	all = slices.DeleteFunc(all, func(r Replica) bool { return r.ID == "" })
	slices.SortFunc(all, func(a, b Replica) int {
		if n := strings.Compare(a.Service, b.Service); n != 0 {
			return n
		}
		return a.Index - b.Index
	})
	return all, nil
}
