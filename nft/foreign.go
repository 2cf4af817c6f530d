package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
)

// A Foreign is a base chain of another table, at one of the hooks that the
// packets of services pass. A packet has to be let through by every base chain
// of a hook: what one drops, no other can save.
type Foreign struct {
	Family   string // ip, ip6 or inet
	Table    string
	Chain    string
	Hook     string // prerouting, input or forward
	NAT      bool
	Priority int
	Drop     bool // by policy: what no rule of it accepts
}

func (f Foreign) String() string { return f.Family + " " + f.Table + " " + f.Chain }

// Others lists the base chains that other programs have in the calling thread's
// network namespace, whatever they hold: rules are not read. Those of
// iptables-nft are among them, those of iptables-legacy are not.
func Others() ([]Foreign, error) {
	nl, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	chains, err := nl.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	families := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
	}
	hooks := map[nftables.ChainHook]string{
		*nftables.ChainHookPrerouting: "prerouting", *nftables.ChainHookInput: "input", *nftables.ChainHookForward: "forward",
	}
	var list []Foreign
	for _, c := range chains {
		if c.Hooknum == nil || c.Priority == nil || families[c.Table.Family] == "" || hooks[*c.Hooknum] == "" {
			continue
		}
		if c.Table.Family == nftables.TableFamilyINet && (c.Table.Name == Name || strings.HasPrefix(c.Table.Name, HoldPrefix)) {
			continue
		}
		list = append(list, Foreign{
			Family: families[c.Table.Family], Table: c.Table.Name, Chain: c.Name, Hook: hooks[*c.Hooknum],
			NAT: c.Type == nftables.ChainTypeNAT, Priority: int(*c.Priority),
			Drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		})
	}
	return list, nil
}
