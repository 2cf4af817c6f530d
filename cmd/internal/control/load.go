package control

import (
	"net/netip"
	"slices"
	"time"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/relay"
	"sluice/conntrack"
	"sluice/policy"
)

// loads tells every service that is not asleep what it carries. A sleeping
// one costs nothing here, nor does one that has nothing to scale.
func (c *Control) loads(now time.Time) {
	for _, s := range c.services {
		if phase := s.policy.Phase(); phase != policy.Cold && (s.cfg.Container != nil || phase != policy.Warm) {
			c.step(s, now, c.load(s))
		}
	}
}

// correct lets a dump put the counts right, as often as syncs says.
func (c *Control) correct(now time.Time) {
	every := time.Duration(0)
	for _, s := range c.services {
		if s.policy.Phase() == policy.Cold {
			continue
		}
		need := syncs(s.cfg)
		if every == 0 || need < every {
			every = need
		}
	}
	if every == 0 || now.Sub(c.synced) < every {
		return
	}
	c.synced = now
	c.work.Go(func() {
		if err := c.opt.Flows.Sync(c.ctx); err != nil && c.ctx.Err() == nil {
			c.log.Warn().Err(err).Msg("connections not counted")
		}
	})
}

// syncs is how often the flows of a service are dumped: every syncEvery; four
// times in the time that makes it idle where events are not enough. The bytes
// of live flows are known by dumps alone. And a UDP flow that has timed out
// ends when the kernel next comes across it, which announces its end: in a
// dump, or else up to minutes later (nf_conntrack's gc_worker).
func syncs(cfg config.Service) time.Duration {
	if !datagrams(cfg) && cfg.Scale.IdleCounts != config.IdleBytes {
		return syncEvery
	}
	return min(max(cfg.Scale.Idle/4, loadEvery), syncEvery)
}

// datagrams says whether the service has an address of UDP.
func datagrams(cfg config.Service) bool {
	return slices.ContainsFunc(cfg.Listen, func(l config.Listen) bool { return l.Proto == config.UDP })
}

// load sums up what the service carries: what the kernel tracks and what the
// daemon relays.
func (c *Control) load(s *service) policy.Load {
	l := policy.Load{Known: true, Flows: map[int]int{}}
	for _, r := range s.replicas {
		l.Flows[r.index] = r.carries
		if !r.known() {
			continue
		}
		for _, b := range c.backends(s, r) {
			n, known := c.opt.Flows.Count(b)
			l.Known = l.Known && known
			l.Flows[r.index] += n.Live
			c.tally(s, r, b, n)
		}
	}
	l.New = s.counts.flows + s.counts.relays
	l.Bytes = s.counts.in.Bytes + s.counts.out.Bytes
	if s.cfg.Scale.IdleCounts == config.IdleBytes { // else nobody asks
		for client := range s.relayed {
			l.Bytes += relay.Moved(client)
		}
		for _, r := range s.replicas {
			for _, x := range r.exchanges {
				l.Bytes += x.Moved()
			}
		}
	}
	l.Queued = s.queued()
	return l
}

// queued counts the completed connections that wait in the kernel.
func (s *service) queued() (total int) {
	if s.listening() {
		return 0 // who has said nothing does not count
	}
	for _, w := range s.listeners {
		if w.ln == nil {
			continue
		}
		n, err := w.ln.Queued()
		if err != nil {
			s.log.Debug().Err(err).Msg("accept queue not read")
			continue
		}
		total += n
	}
	return total
}

// backends are the names under which conntrack counts a replica's flows. It
// knows a service at every local address by each of them.
func (c *Control) backends(s *service, r *replica) []conntrack.Backend {
	names := make([]conntrack.Backend, 0, len(s.endpoints))
	for _, ep := range s.endpoints {
		a := r.at(ep.Addr)
		if !a.IsValid() {
			continue
		}
		if !ep.Addr.IsUnspecified() {
			names = append(names, conntrack.Backend{
				Service: netip.AddrPortFrom(ep.Addr, ep.Port), Backend: a, Proto: ep.Proto,
			})
			continue
		}
		for _, l := range c.locals() {
			if l.Is4() == ep.Addr.Is4() {
				names = append(names, conntrack.Backend{
					Service: netip.AddrPortFrom(l, ep.Port), Backend: a, Proto: ep.Proto,
				})
			}
		}
	}
	return names
}

// locals are the addresses of this host as of a moment ago.
func (c *Control) locals() []netip.Addr {
	if now := time.Now(); now.Sub(c.hostAt) > localsEvery {
		c.host, c.hostAt = locals(), now
	}
	return c.host
}

const localsEvery = 2 * time.Second

// target is one address of a backend.
type target struct {
	addr  netip.AddrPort
	proto uint8
}

func targets(names []conntrack.Backend) (list []target) {
	for _, b := range names {
		if t := (target{b.Backend, b.Proto}); !slices.Contains(list, t) {
			list = append(list, t)
		}
	}
	return list
}

// live counts the flows of a backend by dumps, and those of them that wake
// nobody, if only these clients may.
func (c *Control) live(names []conntrack.Backend, allow []netip.Prefix) (total, barred int, err error) {
	for _, t := range targets(names) {
		n, b, err := c.opt.Flows.Live(t.addr, t.proto, func(f *conntrack.Flow) bool {
			return f.Half() || unknown(allow, f.Orig.Src.Addr())
		})
		if err != nil {
			return 0, 0, err
		}
		total, barred = total+n, barred+b
	}
	return total, barred, nil
}
