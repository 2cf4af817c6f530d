package control

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/nft"
	"sluice/policy"
)

// A service with a list of allowed clients is screened while it is not awake:
// the table turns all others away, so that they neither wake it nor wait.

// allowed are the clients of a list that can call an address.
func allowed(list []netip.Prefix, ep nft.Endpoint) (of []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() == ep.Addr.Is4() {
			of = append(of, p)
		}
	}
	return of
}

// cold is what the table holds of an address before anything runs.
func cold(cfg config.Service, ep nft.Endpoint) *nft.Service {
	return &nft.Service{Screen: len(cfg.Allow) > 0, Allow: allowed(cfg.Allow, ep), Patient: cfg.WakeAfter == config.WakeAfterData}
}

// awake says that some backend takes new flows, and is not paused.
func (s *service) awake() bool {
	return slices.ContainsFunc(s.shares, func(sh policy.Share) bool {
		r := s.replicas[sh.Index]
		return r != nil && !r.asleep
	})
}

// stranger says whether a client may not wake the service, now that it would.
// The table has let it pass all the same: its flow began before the list was in
// force, or before the table was there again after others had flushed it.
func (s *service) stranger(h held) bool {
	if len(s.cfg.Allow) == 0 || s.awake() {
		return false
	}
	client := h.client
	if h.dg == nil {
		peer, err := unix.Getpeername(h.fd)
		if err != nil {
			return true // reset by the client
		}
		client = addrPort(peer).Addr()
	}
	return unknown(s.cfg.Allow, client)
}

// unknown says that there is a list, and that the client is not in it.
func unknown(allow []netip.Prefix, client netip.Addr) bool {
	return len(allow) > 0 && !slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(client.Unmap().WithZone("")) })
}

// screen brings the table up to date after a replica was put to sleep, or has
// woken, with its slots in place.
func (c *Control) screen(s *service) {
	if len(s.cfg.Allow) > 0 {
		c.app.apply(c.slotted(s, false))
	}
}
