package control

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"sluice/nft"
)

// localnet lets clients at 127.0.0.1 reach containers through the table, if the
// service has such an address: without route_localnet on the bridge the kernel
// drops what leaves it for there. Podman sets it for every published port.
func (c *Control) localnet(s *service) {
	name := s.spec.Network
	if c.localnets[name] || !slices.ContainsFunc(s.endpoints, func(ep nft.Endpoint) bool {
		return ep.Addr == netip.IPv4Unspecified() || ep.Addr.Is4() && ep.Addr.IsLoopback()
	}) {
		return
	}
	c.localnets[name] = true
	c.work.Go(func() {
		net, err := c.opt.Replicas.Network(c.ctx, name)
		if err == nil && net.Bridge != "" {
			err = routeLocalnet(net.Bridge)
		}
		if err != nil {
			c.log.Warn().Err(err).Str("network", name).Msg("clients at 127.0.0.1 may not reach containers")
		}
	})
}

func routeLocalnet(bridge string) error {
	path := fmt.Sprintf("/proc/sys/net/ipv4/conf/%s/route_localnet", bridge)
	have, err := os.ReadFile(path) //nolint:gosec // of Podman's bridge
	if err != nil {
		return fmt.Errorf("route_localnet: %w", err)
	}
	if strings.TrimSpace(string(have)) == "1" {
		return nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
		return fmt.Errorf("route_localnet: %w", err)
	}
	return nil
}
