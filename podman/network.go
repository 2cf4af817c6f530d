package podman

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/containers/podman/v5/pkg/bindings/network"
)

// A Network is a network that replicas can be put on.
type Network struct {
	Name    string
	Driver  string         // bridge, macvlan, ...: only a bridge can be dialled from its host
	Bridge  string         // the interface on the host; absent until a container is up on it
	Subnets []netip.Prefix // what replicas get their addresses from
	IPv6    bool
	DNS     bool // Podman's resolver runs on it
}

// Network describes a network; "" means DefaultNetwork. One that does not exist
// is ErrSpec.
func (c *Client) Network(ctx context.Context, name string) (Network, error) {
	if name == "" {
		name = DefaultNetwork
	}
	verb := "inspect network " + name
	var n Network
	err := c.ask(ctx, verb, func(ctx context.Context) error {
		report, err := network.Inspect(ctx, name, nil)
		if err != nil {
			return err
		}
		n = Network{
			Name:   report.Name,
			Driver: report.Driver,
			Bridge: report.NetworkInterface,
			IPv6:   report.IPv6Enabled,
			DNS:    report.DNSEnabled,
		}
		for _, s := range report.Subnets {
			p, err := netip.ParsePrefix(s.Subnet.String())
			if err != nil {
				return fmt.Errorf("subnet: %w", err)
			}
			n.Subnets = append(n.Subnets, p)
		}
		return nil
	})
	if errors.Is(err, errNoNetwork) {
		return Network{}, fmt.Errorf("%s: %w", verb, missing(name))
	}
	return n, err
}

// missing says what to do about a network that does not exist.
func missing(name string) error {
	return fmt.Errorf("%w: network %s does not exist (podman network create %s)", ErrSpec, name, name)
}
