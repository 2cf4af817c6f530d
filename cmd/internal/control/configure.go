package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/nft"
	"sluice/policy"
)

// Reload makes cfg the configuration in force, or changes nothing and says
// why. Services that it leaves as they are are not touched; no flow is cut.
func (c *Control) Reload(ctx context.Context, cfg *config.Config) error {
	answer := make(chan error, 1)
	c.box.post(func(now time.Time) { answer <- c.configure(now, cfg) })
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// configure builds what is new, and only when all of it stands swaps it in and
// retires what is not configured any more.
func (c *Control) configure(now time.Time, cfg *config.Config) error {
	fresh := c.announce(cfg.Services)
	opened, err := c.listen(cfg.Services)
	if err != nil {
		for ep := range fresh {
			fresh[ep] = nil
		}
		c.app.apply(change{endpoints: fresh})
		return err
	}
	maps.Copy(c.listeners, opened)
	by := c.byEndpoint()
	want := map[string]bool{}
	for _, sc := range cfg.Services {
		want[sc.Name] = true
	}
	for _, s := range c.services {
		if !want[s.name] && !s.removed {
			c.retire(s, now)
		}
	}
	for _, w := range opened {
		c.keepListener(w)
	}
	var added []*service
	for _, sc := range cfg.Services {
		s := c.services[sc.Name]
		switch {
		case s == nil:
			s = newService(sc, kindsOf(sc, c.word(sc)), c.log)
			c.services[s.name] = s
			c.attach(s, sc, by)
			added = append(added, s)
		case s.removed || !reflect.DeepEqual(s.cfg, sc):
			c.attach(s, sc, by)
			c.change(s, now, sc)
		}
	}
	c.detach()
	if c.adopted { // else another daemon may go on
		c.lapse(cfg.Services)
		for _, s := range added {
			c.begin(s, now, nil, nil)
		}
	}
	return nil
}

// endpoints are the keys of an address in the table: for every local address
// one of each family.
func endpoints(l config.Listen) []nft.Endpoint {
	proto := uint8(unix.IPPROTO_TCP)
	if l.Proto == config.UDP {
		proto = unix.IPPROTO_UDP
	}
	if l.Wildcard() {
		return []nft.Endpoint{
			{Addr: netip.IPv4Unspecified(), Proto: proto, Port: l.Port},
			{Addr: netip.IPv6Unspecified(), Proto: proto, Port: l.Port},
		}
	}
	return []nft.Endpoint{{Addr: l.Addr, Proto: proto, Port: l.Port}}
}

// allEndpoints are those of all addresses of a service.
func allEndpoints(s config.Service) (list []nft.Endpoint) {
	for _, l := range s.Listen {
		list = append(list, endpoints(l)...)
	}
	return list
}

// announce makes addresses known to the table before anyone can connect to them.
// Of a connection that came earlier the table would not have kept the timestamps
// off, and it could only be relayed.
func (c *Control) announce(services []config.Service) map[nft.Endpoint]*nft.Service {
	known := c.opt.Table.Services()
	fresh := map[nft.Endpoint]*nft.Service{}
	for _, s := range services {
		for _, ep := range allEndpoints(s) {
			if _, ok := known[ep]; !ok {
				fresh[ep] = cold(s, ep)
			}
		}
	}
	if len(fresh) == 0 {
		return fresh
	}
	if err := c.opt.Table.Apply(fresh); err != nil {
		c.log.Warn().Err(err).Msg("addresses not in the table yet, their first connections may have to be relayed")
	}
	return fresh
}

// listen opens a listener for each address that has none yet, or none at all.
func (c *Control) listen(services []config.Service) (map[uint64]*listener, error) {
	have := c.byEndpoint()
	opened := map[uint64]*listener{}
	fail := func(err error) (map[uint64]*listener, error) {
		for _, l := range opened {
			c.shut(l)
		}
		return nil, err
	}
	for _, s := range services {
		for _, ep := range allEndpoints(s) {
			if have[ep] != nil {
				continue
			}
			c.nextID++
			w := &listener{id: c.nextID, endpoint: ep}
			if err := c.openListener(w, s.Start.Backlog); err != nil {
				if ep.Addr == netip.IPv6Unspecified() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
					c.log.Info().Str("service", s.Name).Stringer("listen", ep).Msg("no IPv6 on this host")
					continue
				}
				return fail(fmt.Errorf("service %s: %w", s.Name, err))
			}
			opened[w.id] = w
			if w.ln != nil {
				if n, err := w.ln.Backlog(); err == nil && n < s.Start.Backlog {
					c.log.Warn().Str("service", s.Name).Int("backlog", s.Start.Backlog).Int("effective", n).
						Msg("the kernel caps the backlog: raise net.core.somaxconn or lower start.backlog")
				}
			}
			if !c.local(ep.Addr) {
				c.log.Warn().Str("service", s.Name).Stringer("listen", ep).
					Msgf("address is on no interface of this host: nothing arrives until it is, as by 'ip addr add %s dev lo'",
						netip.PrefixFrom(ep.Addr, ep.Addr.BitLen()))
			}
		}
	}
	return opened, nil
}

// openListener opens the socket of a listener and gives it to its loop.
func (c *Control) openListener(w *listener, backlog int) (err error) {
	addr := netip.AddrPortFrom(w.endpoint.Addr, w.endpoint.Port)
	left, err := c.inherited(w, backlog)
	if err != nil {
		return err
	}
	if w.endpoint.Proto == unix.IPPROTO_UDP {
		if !left {
			w.dg, err = c.opt.Datagrams.Listen(w.id, addr)
		}
		return err
	}
	if !left {
		if w.ln, err = accept.Listen(addr, backlog); err != nil {
			return err
		}
	}
	if err := c.opt.Accept.Add(w.id, w.ln); err != nil {
		_ = w.ln.Close()
		return fmt.Errorf("accept on %s: %w", w.endpoint, err)
	}
	return nil
}

// byEndpoint indexes the listeners.
func (c *Control) byEndpoint() map[nft.Endpoint]*listener {
	m := make(map[nft.Endpoint]*listener, len(c.listeners))
	for _, l := range c.listeners {
		m[l.endpoint] = l
	}
	return m
}

// attach gives a service the listeners of its addresses, those of others too
// that give them up. Addresses that it had before stay known for their flows.
func (c *Control) attach(s *service, cfg config.Service, by map[nft.Endpoint]*listener) {
	s.listeners = s.listeners[:0]
	for _, ep := range allEndpoints(cfg) {
		if w := by[ep]; w != nil {
			if w.service != nil && w.service != s {
				w.service.drop(w)
			}
			w.service = s
			s.listeners = append(s.listeners, w)
		}
		if !slices.Contains(s.endpoints, ep) {
			s.endpoints = append(s.endpoints, ep)
		}
		c.endpoints[ep] = s
	}
}

func (s *service) drop(w *listener) {
	s.listeners = slices.DeleteFunc(s.listeners, func(x *listener) bool { return x == w })
}

// owns says whether the service is configured to listen on an address.
func (s *service) owns(ep nft.Endpoint) bool {
	return slices.ContainsFunc(s.listeners, func(w *listener) bool { return w.endpoint == ep })
}

// detach closes listeners of addresses that are not configured any more and
// takes them out of the table. Flows through them go on.
func (c *Control) detach() {
	gone := change{endpoints: map[nft.Endpoint]*nft.Service{}}
	for id, w := range c.listeners {
		if w.service != nil && !w.service.removed && w.service.owns(w.endpoint) {
			continue
		}
		delete(c.listeners, id)
		if w.service != nil {
			w.service.drop(w)
		}
		c.unkeepListener(w)
		c.shut(w)
		if w.service == nil || !w.service.removed { // that of a removed service drains first
			gone.endpoints[w.endpoint] = nil
		}
	}
	if len(gone.endpoints) > 0 {
		c.app.apply(gone)
	}
}

func (c *Control) shut(w *listener) {
	if w.dg != nil {
		if err := w.dg.Close(); err != nil {
			c.log.Debug().Err(err).Stringer("listen", w.endpoint).Msg("listener not closed")
		}
		return
	}
	c.deafen(w)
	if err := w.ln.Close(); err != nil {
		c.log.Debug().Err(err).Stringer("listen", w.endpoint).Msg("listener not closed")
	}
}

// change gives a service a new configuration. Replicas made from the old one
// are replaced if what makes them has changed.
func (c *Control) change(s *service, now time.Time, cfg config.Service) {
	old, returns := s.cfg, s.removed
	s.cfg, s.kinds, s.removed = cfg, kindsOf(cfg, c.word(cfg)), false
	if cfg.Container != nil {
		s.lastStop = cfg.Container.StopTimeout
	}
	s.log.Info().Msg("configuration changed")
	c.step(s, now, policy.Configure{Spec: s.kinds.rules(cfg)})
	if returns || !reflect.DeepEqual(old.Backends, cfg.Backends) {
		c.resolve(s)
	}
	if returns && slices.ContainsFunc(s.policy.View().Backends, func(b policy.Backend) bool { return b.State == policy.DrainingFlows }) {
		c.step(s, now, policy.Wake{}) // or its flows would be cut all the same
	}
	if !reflect.DeepEqual(old.Health, cfg.Health) || old.Forward != cfg.Forward || old.ProxyProtocol != cfg.ProxyProtocol {
		for _, b := range s.policy.View().Backends {
			if r := s.replicas[b.Index]; r != nil && r.unprobe != nil {
				c.probe(s, r, b.State == policy.Ready)
			}
		}
	}
	if old.Start.Backlog != cfg.Start.Backlog {
		for _, w := range s.listeners {
			if w.ln == nil {
				continue
			}
			if err := unix.Listen(w.ln.FD(), cfg.Start.Backlog); err != nil {
				s.log.Warn().Err(err).Stringer("listen", w.endpoint).Msg("backlog not changed")
			}
		}
	}
	if old.WakeAfter != cfg.WakeAfter {
		c.admit(s, now)
	}
	// Addresses that are new to a warm service.
	c.app.apply(c.slotted(s, false))
	c.arm(s, s.mode)
}

// retire drains a service that is not configured any more.
func (c *Control) retire(s *service, now time.Time) {
	s.removed = true
	s.log.Info().Msg("not configured any more, draining what is left of it")
	if s.unresolve != nil {
		s.unresolve() // else what is found later would bring members back
	}
	min0 := s.kinds.rules(s.cfg)
	min0.Min, min0.Sleep = 0, policy.SleepStop
	c.step(s, now, policy.Configure{Spec: min0})
	c.step(s, now, policy.Members{})
	c.step(s, now, policy.Drain{})
}

// local says whether an address is on an interface of this host.
func (c *Control) local(a netip.Addr) bool {
	return a.IsLoopback() || a.IsUnspecified() || slices.Contains(c.locals(), a)
}

// locals are the addresses of this host.
func locals() (list []netip.Addr) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, n := range addrs {
		if p, ok := n.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				list = append(list, ip.Unmap())
			}
		}
	}
	return list
}
