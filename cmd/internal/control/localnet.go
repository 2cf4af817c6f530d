package control

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"sluice/nft"
	"sluice/podman"
)

// localnet lets clients at 127.0.0.1 reach containers through the table, if the
// service has such an address: without route_localnet on the bridge the kernel
// drops what leaves it for there. Podman sets it for every published port.
func (c *Control) localnet(s *service) {
	for _, name := range s.kinds.networks() {
		c.localnetOf(s, name)
	}
}

func (c *Control) localnetOf(s *service, name string) {
	bridge, known := c.localnets[name]
	if !slices.ContainsFunc(s.endpoints, func(ep nft.Endpoint) bool {
		return ep.Addr == netip.IPv4Unspecified() || ep.Addr.Is4() && ep.Addr.IsLoopback()
	}) {
		return
	}
	c.localnets[name] = bridge
	c.work.Go(func() {
		var err error
		if bridge == "" && !known {
			var net podman.Network
			if net, err = c.opt.Replicas.Network(c.ctx, name); err == nil {
				bridge = net.Bridge
				c.box.post(func(time.Time) { c.localnets[name] = bridge })
			}
		}
		if err == nil && bridge != "" {
			_, err = routeLocalnet(bridge)
		}
		if err != nil {
			c.log.Warn().Err(err).Str("network", name).Msg("clients at 127.0.0.1 may not reach containers")
			c.box.post(func(time.Time) { delete(c.localnets, name) }) // the next replica tries again
		}
	})
}

// bridges are those of Podman's bridges that route_localnet is needed on.
func (c *Control) bridges() (list []string) {
	for _, b := range c.localnets {
		if b != "" {
			list = append(list, b)
		}
	}
	return list
}

// settleLocalnets puts route_localnet right where others have changed it.
func (c *Control) settleLocalnets() {
	list := c.bridges()
	if len(list) == 0 {
		return
	}
	c.work.Go(func() {
		for _, b := range list {
			changed, err := routeLocalnet(b)
			switch {
			case errors.Is(err, os.ErrNotExist): // no container is up on it
			case err != nil:
				c.log.Debug().Err(err).Msg("setting not changed")
			case changed:
				c.log.Warn().Str("setting", "net.ipv4.conf."+b+".route_localnet").Msg("setting was changed by others and is put right")
			}
		}
	})
}

// routeLocalnet sets it and reports whether it was not.
func routeLocalnet(bridge string) (changed bool, err error) {
	path := fmt.Sprintf("/proc/sys/net/ipv4/conf/%s/route_localnet", bridge)
	have, err := os.ReadFile(path) //nolint:gosec // of Podman's bridge
	if err != nil {
		return false, fmt.Errorf("route_localnet: %w", err)
	}
	if strings.TrimSpace(string(have)) == "1" {
		return false, nil
	}
	if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
		return false, fmt.Errorf("route_localnet: %w", err)
	}
	return true, nil
}
