package nft

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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

	// Ends is the chain, it or one that it leads to, with a rule that drops or
	// rejects: some packets, or none that matter here. "" if there is none.
	Ends string
}

func (f Foreign) String() string { return f.Family + " " + f.Table + " " + f.Chain }

// Others lists the base chains that other programs have in the calling thread's
// network namespace. Those of iptables-nft are among them, those of
// iptables-legacy are not.
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
		f := Foreign{
			Family: families[c.Table.Family], Table: c.Table.Name, Chain: c.Name, Hook: hooks[*c.Hooknum],
			NAT: c.Type == nftables.ChainTypeNAT, Priority: int(*c.Priority),
			Drop: c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
		}
		if f.Ends, err = ends(nl, c.Table, c.Name, map[string]bool{}); err != nil {
			return nil, fmt.Errorf("list rules of %s: %w", f, err)
		}
		list = append(list, f)
	}
	return list, nil
}

// ends looks for a rule that drops or rejects, in a chain and those it leads to.
// Podman's own are passed over: its networks work with them.
func ends(nl *nftables.Conn, t *nftables.Table, name string, seen map[string]bool) (string, error) {
	if seen[name] || t.Name == "netavark" || strings.HasPrefix(name, "NETAVARK") {
		return "", nil
	}
	seen[name] = true
	rules, err := nl.GetRules(t, &nftables.Chain{Name: name, Table: t})
	if err != nil {
		return "", err
	}
	for _, r := range rules {
		verdicts, err := leads(nl, t, r.Exprs)
		if err != nil {
			return "", err
		}
		for _, v := range verdicts {
			in := ""
			switch v.Kind {
			case expr.VerdictDrop:
				if !invalid(r.Exprs) {
					in = name
				}
			case expr.VerdictJump, expr.VerdictGoto:
				if in, err = ends(nl, t, v.Chain, seen); err != nil {
					return "", err
				}
			}
			if in != "" {
				return in, nil
			}
		}
	}
	return "", nil
}

// leads are the verdicts that a rule can come to. To reject is to drop, and to
// say so.
func leads(nl *nftables.Conn, t *nftables.Table, rule []expr.Any) (list []expr.Verdict, err error) {
	for _, e := range rule {
		switch e := e.(type) {
		case *expr.Verdict:
			list = append(list, *e)
		case *expr.Reject:
			list = append(list, expr.Verdict{Kind: expr.VerdictDrop})
		case *expr.Target: // of iptables
			if e.Name == "REJECT" {
				list = append(list, expr.Verdict{Kind: expr.VerdictDrop})
			}
		case *expr.Lookup:
			if !e.IsDestRegSet || e.DestRegister != unix.NFT_REG_VERDICT {
				continue
			}
			elements, err := nl.GetSetElements(&nftables.Set{Table: t, Name: e.SetName, IsMap: true, DataType: nftables.TypeVerdict})
			if err != nil {
				return nil, err
			}
			for _, m := range elements {
				kind, chain, err := parseVerdict(m.Val)
				if err != nil {
					return nil, err
				}
				list = append(list, expr.Verdict{Kind: kind, Chain: chain})
			}
		}
	}
	return list, nil
}

// invalid says that a rule is about packets that conntrack calls invalid, which
// are dropped for services anyway.
func invalid(rule []expr.Any) bool {
	for i, e := range rule {
		ct, ok := e.(*expr.Ct)
		if !ok || ct.Key != expr.CtKeySTATE || i+1 == len(rule) {
			continue
		}
		if b, ok := rule[i+1].(*expr.Bitwise); ok && bytes.Equal(b.Mask, native(expr.CtStateBitINVALID)) {
			return true
		}
	}
	return false
}
