package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"sluice/cmd/internal/config"
	"sluice/nft"
)

// Status is the answer of `sluice status -o json`.
type Status struct {
	Services    []ServiceStatus `json:"services"`
	ConfigError string          `json:"config_error"` // why the files are not in force; "" if they are
}

// ServiceStatus is one service's part of [Status].
type ServiceStatus struct {
	Name       string          `json:"name"`
	Listen     []string        `json:"listen"`
	Phase      string          `json:"phase"`
	Desired    int             `json:"desired"`
	Ready      int             `json:"ready"`
	Flows      int             `json:"flows"`
	Held       int             `json:"held"`
	Relayed    uint64          `json:"relayed"`
	HandedOver uint64          `json:"handed_over"`
	LastError  string          `json:"last_error"`
	Backends   []BackendStatus `json:"backends"`
	Canary     *CanaryStatus   `json:"canary,omitempty"`

	Relaying   int    `json:"relaying"`    // relayed connections open now
	FlowsTotal uint64 `json:"flows_total"` // since the daemon started
	Silent     int    `json:"silent"`      // accepted, have said nothing yet, and so wake nothing
	Traffic
	RelayedIn  uint64 `json:"relayed_bytes_in"` // payload of relayed connections that have ended
	RelayedOut uint64 `json:"relayed_bytes_out"`
	Limited    uint64 `json:"limited"` // packets that would have begun a flow, dropped for the service's limits
}

// BackendStatus is one backend's part of [ServiceStatus].
type BackendStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	State   string `json:"state"`
	Flows   int    `json:"flows"`
	Weight  int    `json:"weight"`
	Canary  bool   `json:"canary,omitempty"`

	FlowsTotal uint64 `json:"flows_total"`
	Traffic
}

// Traffic is what kernel flows have carried since the daemon started: IP packets
// and their bytes, headers included. In is from clients, out to them.
type Traffic struct {
	BytesIn    uint64 `json:"bytes_in"`
	BytesOut   uint64 `json:"bytes_out"`
	PacketsIn  uint64 `json:"packets_in"`
	PacketsOut uint64 `json:"packets_out"`
}

func (t *traffic) status() Traffic {
	return Traffic{t.in.Bytes, t.out.Bytes, t.in.Packets, t.out.Packets}
}

// Status tells how all services are, or the named ones.
func (c *Control) Status(ctx context.Context, names ...string) (Status, error) {
	var st Status
	var all []*service
	var limits bool
	var unknown error
	err := c.ask(ctx, func() {
		for _, n := range names {
			if c.services[n] == nil {
				unknown = fmt.Errorf("%w: %q", ErrUnknown, n)
				return
			}
		}
		for _, s := range c.services {
			if len(names) == 0 || slices.Contains(names, s.name) {
				all = append(all, s)
			}
		}
		st.ConfigError, limits = c.configError, c.limits()
	})
	if err != nil || unknown != nil {
		return Status{}, cmp.Or(err, unknown)
	}
	var limited map[nft.Endpoint]uint64
	if limits { // the table may be busy
		if limited, err = c.opt.Table.AllLimited(); err != nil {
			c.log.Warn().Err(err).Msg("what the limits have dropped is not known")
		}
	}
	slices.SortFunc(all, func(x, y *service) int { return strings.Compare(x.name, y.name) })
	st.Services = make([]ServiceStatus, 0, len(all))
	for part := range slices.Chunk(all, statusPart) {
		err := c.ask(ctx, func() {
			for _, s := range part {
				if c.services[s.name] != s {
					continue // gone meanwhile
				}
				sv := c.status(s)
				for _, ep := range s.endpoints {
					sv.Limited += limited[ep]
				}
				st.Services = append(st.Services, sv)
			}
		})
		if err != nil {
			return Status{}, err
		}
	}
	return st, nil
}

// statusPart is how many services are told of in one turn of the owner. All of
// many at once would keep it from its work for tens of milliseconds.
const statusPart = 100

// ask runs f in the owner and waits for it. After an error f may still run.
func (c *Control) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	c.box.post(func(time.Time) { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("status: %w", ctx.Err())
	}
}

// limits says whether any service has some.
func (c *Control) limits() bool {
	for _, s := range c.services {
		if s.cfg.Limits != (config.Limits{}) {
			return true
		}
	}
	return false
}

// ConfigError notes for [Control.Status] why the configuration files are not
// in force, or with nil that they are.
func (c *Control) ConfigError(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	c.box.post(func(time.Time) { c.configError = text })
}

func (c *Control) status(s *service) ServiceStatus {
	v := s.policy.View()
	st := ServiceStatus{
		Name: s.name, Phase: v.Phase.String(), Desired: v.Desired, Ready: v.Ready, Held: v.Held,
		Relayed: s.counts.relays, HandedOver: s.counts.handedOver, Relaying: s.relaying(), Silent: len(s.silents.by),
		Listen: []string{}, Backends: []BackendStatus{},
	}
	for _, ep := range s.endpoints {
		st.Listen = append(st.Listen, ep.String())
	}
	if v.Err != nil {
		st.LastError = v.Err.Error()
	}
	st.Canary = c.canary(s, v)
	if st.LastError == "" && v.Trial != nil {
		st.LastError = "canary: " + v.Trial.Error()
	}
	load := c.load(s)
	st.FlowsTotal, st.Traffic = load.New, s.counts.status()
	st.RelayedIn, st.RelayedOut = s.counts.relayedIn, s.counts.relayedOut
	for _, b := range v.Backends {
		bs := BackendStatus{Name: s.backendName(b.Index), State: b.State.String(), Flows: load.Flows[b.Index], Weight: b.Weight, Canary: b.Canary}
		if r := s.replicas[b.Index]; r != nil && r.known() {
			bs.Address = r.any().String()
		}
		if r := s.replicas[b.Index]; r != nil && r.sum != nil {
			bs.FlowsTotal, bs.Traffic = r.sum.flows+r.sum.relays, r.sum.status()
		}
		st.Flows += bs.Flows
		st.Backends = append(st.Backends, bs)
	}
	return st
}
