package control

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// subnets are those of the networks that replicas are on. Safe for concurrent
// use.
type subnets struct {
	mu sync.RWMutex
	by map[string][]netip.Prefix
}

func (n *subnets) set(network string, list []netip.Prefix) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.by == nil {
		n.by = map[string][]netip.Prefix{}
	}
	n.by[network] = list
}

func (n *subnets) contain(a netip.Addr) bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, list := range n.by {
		if slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true
		}
	}
	return false
}

// Beside tells whether a client is on a network that replicas are on. It may be
// called from any goroutine.
func (c *Control) Beside(client netip.Addr) bool { return c.subnets.contain(client.Unmap()) }

// noteSubnets notes the subnets of a network, before datagrams are passed on to a
// replica that is on it.
func (c *Control) noteSubnets(ctx context.Context, network string) {
	net, err := c.opt.Replicas.Network(ctx, network)
	if err != nil {
		c.log.Warn().Err(err).Str("network", network).Msg("first datagrams of clients on this network may stay unanswered")
		return
	}
	c.subnets.set(network, net.Subnets)
}
