package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/datagram"
	"sluice/cmd/internal/handover"
	"sluice/cmd/internal/relay"
	"sluice/nft"
	"sluice/policy"
)

// serving is a held connection on its way to a backend.
type serving struct {
	service *service
	held    held
	replica *replica
	backend netip.AddrPort
	cross   bool // backend is of another family than the client
	from    time.Time
}

const (
	dialTimeout     = 5 * time.Second
	handoverTimeout = 5 * time.Second
	openTimeout     = time.Second
	rehold          = 100 * time.Millisecond
)

// take notes that a connection goes to a backend. What one turn of the owner
// has collected is handed over together, by [Control.serve].
func (c *Control) take(s *service, now time.Time, conn uint64, index int) {
	r := s.replica(index)
	r.carries++
	h := s.held[conn]
	v := serving{service: s, held: h, replica: r, backend: r.at(h.endpoint.Addr), from: now}
	if !v.backend.IsValid() { // of the other family: relayed
		v.backend, v.cross = r.any(), true
	}
	c.todo = append(c.todo, v)
	delete(s.held, conn)
}

// serve makes flows of the connections that were taken, and relays those that
// cannot be one.
func (c *Control) serve() {
	if len(c.todo) == 0 {
		return
	}
	var move, pass []serving
	for _, v := range c.todo {
		switch {
		case v.held.dg != nil && (v.held.carry || v.cross):
			c.exchange(v)
		case v.held.dg != nil:
			c.release(v)
		case c.opt.Porter == nil || v.cross || v.service.cfg.Handover == config.HandoverRelay || v.service.cfg.Forward == config.ForwardProxy:
			pass = append(pass, v)
		default:
			move = append(move, v)
		}
	}
	c.todo = c.todo[:0]
	for _, v := range pass {
		c.relay(v, handover.Result{Reason: handover.Forced})
	}
	if len(move) > 0 {
		c.talk.Go(func() { c.handover(move) })
	}
}

// release passes the datagrams of a client on to the backend that the table
// gives them to.
func (c *Control) release(v serving) {
	s := v.service
	v.held.dg.Release(v.held.id, func(err error) {
		c.box.post(func(now time.Time) {
			result := handover.Done
			if err != nil {
				result = handover.Failed
				s.log.Warn().Err(err).Msg("held datagrams not passed on")
			} else {
				s.counts.handedOver++
				c.opt.Record.ColdStart("handover", now.Sub(v.from))
			}
			c.opt.Record.Handover(string(result))
			c.released(s, now, v.replica)
		})
	})
}

// exchange begins to carry the datagrams of a client and of its backend.
func (c *Control) exchange(v serving) {
	s, r := v.service, v.replica
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(v.backend))
	if err != nil {
		s.log.Warn().Err(err).Str("backend", r.name).Msg("held datagrams not passed on")
		c.refuse(v.held)
		c.opt.Record.Handover(string(handover.Failed))
		c.box.post(func(now time.Time) { c.released(s, now, r) })
		return
	}
	s.log.Debug().Stringer("client", v.held.client).Str("backend", r.name).Msg("datagrams relayed")
	why := handover.Forced
	if v.held.carry {
		why = handover.Loopback
	}
	c.opt.Record.Handover(string(why))
	s.counts.relays++
	r.carried().relays++
	r.relays++
	if r.exchanges == nil {
		r.exchanges = map[*serving]*datagram.Exchange{}
	}
	r.exchanges[&v] = v.held.dg.Carry(v.held.id, conn, func(in, out uint64) {
		c.box.post(func(now time.Time) {
			delete(r.exchanges, &v)
			c.relayed(s, now, r, in, out)
		})
	})
}

// endExchanges ends what is carried for a replica that is stopped: no peer tells.
func (r *replica) endExchanges() {
	for _, x := range r.exchanges {
		x.End()
	}
}

// relayed takes note of the end of what was relayed.
func (c *Control) relayed(s *service, now time.Time, r *replica, in, out uint64) {
	for _, t := range [...]*traffic{&s.counts.traffic, r.carried()} {
		t.relayedIn += in
		t.relayedOut += out
	}
	r.relays--
	c.released(s, now, r)
}

// handover moves connections into the kernel. It ends when each of them is a
// flow, a relay, held again or gone.
func (c *Control) handover(move []serving) {
	batch := make([]handover.Held, 0, len(move))
	sent := make([]serving, 0, len(move))
	for _, v := range move {
		client, service, err := ends(v.held.fd)
		if err != nil { // reset by the client
			_ = unix.Close(v.held.fd)
			c.box.post(func(now time.Time) { c.ported(now, v, handover.Result{Reason: handover.Gone, Err: err}) })
			continue
		}
		batch = append(batch, handover.Held{FD: v.held.fd, Client: client, Service: service, Backend: v.backend})
		sent = append(sent, v)
	}
	ctx, cancel := context.WithTimeout(c.ctx, handoverTimeout)
	defer cancel()
	c.opt.Porter.Handover(ctx, batch, func(i int, res handover.Result) {
		c.box.post(func(now time.Time) { c.ported(now, sent[i], res) })
	})
}

// ends returns the two ends of an accepted connection.
func ends(fd int) (client, service netip.AddrPort, err error) {
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return client, service, fmt.Errorf("peer of held connection: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return client, service, fmt.Errorf("address of held connection: %w", err)
	}
	return addrPort(peer), addrPort(name), nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)) //nolint:gosec // a port
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port)) //nolint:gosec // a port
	}
	return netip.AddrPort{}
}

// ported takes the result of one handover.
func (c *Control) ported(now time.Time, v serving, res handover.Result) {
	if res.Reason.Relay() {
		c.relay(v, res)
		return
	}
	s := v.service
	c.unkeep(&v.held)
	c.opt.Record.Handover(string(res.Reason))
	e := s.log.Debug()
	switch res.Reason {
	case handover.Done:
		s.counts.handedOver++
		c.opt.Record.ColdStart("handover", now.Sub(v.from))
	case handover.Failed:
		e = s.log.Warn()
	}
	e.AnErr("error", res.Err).Str("backend", v.replica.name).Str("result", string(res.Reason)).
		Dur("took", now.Sub(v.from)).Msg("held connection handed over")
	c.released(s, now, v.replica)
}

// relay begins to carry a connection for its whole life.
func (c *Control) relay(v serving, res handover.Result) {
	s := v.service
	c.unkeep(&v.held)
	s.log.Debug().AnErr("error", res.Err).Str("backend", v.replica.name).Str("reason", string(res.Reason)).Msg("held connection relayed")
	// A backend sees the client itself where its answers come back through
	// this host: those of containers do, unless the client is beside them.
	open := v.replica.index < policy.FirstMember && !v.cross &&
		res.Reason != handover.Loopback && res.Reason != handover.Hairpin &&
		s.cfg.Source == config.SourcePreserve && s.cfg.ProxyProtocol == config.ProxyOff
	version := headerVersion(s.cfg.ProxyProtocol)
	c.talk.Go(func() { c.carry(v, string(res.Reason), open, version) })
}

// headerVersion is that of the PROXY protocol; 0: no header.
func headerVersion(p config.ProxyProtocol) int {
	switch p {
	case config.ProxyV1:
		return 1
	case config.ProxyV2:
		return 2
	}
	return 0
}

// checkHeader is what goes before a health check: that it is the proxy's own,
// where replicas get nothing without a header. With forward = "nat" they have
// to take connections without one.
func checkHeader(s *service) []byte {
	version := headerVersion(s.cfg.ProxyProtocol)
	if version == 0 || s.cfg.Forward != config.ForwardProxy {
		return nil
	}
	b, err := relay.Header(version, netip.AddrPort{}, netip.AddrPort{})
	if err != nil {
		s.log.Error().Err(err).Msg("health checks go without a header") // only of a version that there is not
	}
	return b
}

// carry relays one connection. A backend that cannot be reached gives it back
// to be held again, until its time is up: nothing has been read from it yet.
func (c *Control) carry(v serving, reason string, open bool, version int) {
	s := v.service
	peer, service, err := ends(v.held.fd)
	if err != nil { // reset by the client
		_ = unix.Close(v.held.fd)
		c.box.post(func(now time.Time) { c.released(s, now, v.replica) })
		return
	}
	backend, err := c.dial(v.backend, peer, open)
	if err != nil {
		c.reholds(v, err)
		return
	}
	var header []byte
	if version > 0 {
		header, err = relay.Header(version, peer, service)
	}
	var client *net.TCPConn
	if err == nil {
		client, err = relay.FromFD(v.held.fd)
	} else {
		c.reset(v.held.fd)
	}
	if errors.Is(err, relay.ErrShort) {
		_ = backend.Close()
		c.reholds(v, err)
		return
	}
	if err != nil {
		s.log.Error().Err(err).Msg("held connection lost")
		_ = backend.Close()
		c.box.post(func(now time.Time) { c.released(s, now, v.replica) })
		return
	}
	c.opt.Record.Handover(reason)
	c.box.post(func(time.Time) {
		s.counts.relays++
		v.replica.carried().relays++
		v.replica.relays++
		s.relayed[client] = true
	})
	st, err := relay.RunWith(c.ctx, header, client, backend)
	if err != nil && !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, context.Canceled) {
		s.log.Debug().Err(err).Str("backend", v.replica.name).Int64("to_backend", st.ToBackend).Int64("to_client", st.ToClient).Msg("relay ended")
	}
	c.box.post(func(now time.Time) {
		delete(s.relayed, client)
		c.relayed(s, now, v.replica, uint64(st.ToBackend), uint64(st.ToClient)) //nolint:gosec // numbers of bytes
	})
}

// reholds gives a connection back that could not be carried, after a moment, and
// says so now and then.
func (c *Control) reholds(v serving, why error) {
	s := v.service
	c.box.post(func(now time.Time) {
		s.reheld++
		if now.Sub(s.lastReheld) < refusedEvery {
			return
		}
		s.log.Warn().Err(why).Str("backend", v.replica.name).Msg(count(s.reheld, "attempt") + " to reach the backend failed, connections are held again")
		s.lastReheld, s.reheld = now, 0
	})
	time.AfterFunc(rehold, func() {
		c.box.post(func(now time.Time) {
			c.released(s, now, v.replica)
			c.again(s, now, v.held)
		})
	})
}

// dial connects to a backend, with the client's address if open says so: the
// table translates this host's own, once the local port is known.
func (c *Control) dial(backend, client netip.AddrPort, open bool) (*net.TCPConn, error) {
	if !open {
		return relay.Dial(c.ctx, backend, dialTimeout)
	}
	conn, err := relay.DialPrepared(c.ctx, backend, openTimeout, func(local uint16) (func(), error) {
		src := []nft.Source{{Proto: unix.IPPROTO_TCP, Local: local, Backend: backend, Client: client}}
		if err := c.opt.Table.AddSources(src); err != nil {
			return nil, err
		}
		return func() {
			if err := c.opt.Table.RemoveSources(src); err != nil {
				c.log.Debug().Err(err).Msg("source left to expire")
			}
		}, nil
	})
	if err != nil && c.ctx.Err() == nil {
		c.log.Debug().Err(err).Stringer("client", client).Msg("backend not reached with the client's address, trying this host's")
		return relay.Dial(c.ctx, backend, dialTimeout)
	}
	return conn, err
}

// released takes a connection off its backend: the kernel carries it now, or
// it has ended.
func (c *Control) released(s *service, now time.Time, r *replica) {
	r.carries--
	if r.carries == 0 {
		c.quiet(s, now, r)
		c.prune(s, r)
	}
}

// again holds a connection that no backend could take.
func (c *Control) again(s *service, now time.Time, h held) {
	if now.Sub(h.at) > s.cfg.Start.Timeout || c.services[s.name] != s || c.stopping && c.opt.Keep == nil {
		c.refuse(h)
		return
	}
	c.hold(s, now, h)
}
