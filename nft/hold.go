package nft

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// A Hold is a table that others cannot remove while its process lives.
//
// The kernel tracks and translates the packets of a namespace only as long as
// some rule wants it to. When others flush the ruleset, as by a restart of
// nftables.service, the last such rule goes, and with it for a moment what keeps
// established flows on their way: a packet that comes then reaches this host
// itself, which resets its connection. Tables with an owner stay out of a flush,
// so one rule in such a table is enough. It decides nothing.
type Hold struct{ nl *nftables.Conn }

// HoldPrefix begins the name of a Hold's table; the rest is its owner's netlink
// port, so that two processes can each have one.
const HoldPrefix = "sluice-hold-"

// KeepNAT makes a Hold. It needs Linux 5.12, and ends with Close or the process.
func KeepNAT(o Options) (*Hold, error) {
	var h Hold
	t := new(Table) // for its way of dialling
	if err := t.dial(o); err != nil {
		return nil, fmt.Errorf("keep translation: %w", err)
	}
	h.nl = t.nl
	if err := t.events.Close(); err != nil {
		return nil, errors.Join(fmt.Errorf("keep translation: %w", err), h.Close())
	}
	own := &nftables.Table{
		Name:   fmt.Sprint(HoldPrefix, t.sock.PID()),
		Family: nftables.TableFamilyINet, Flags: nftables.TableFlagOwner,
	}
	h.nl.AddTable(own)
	chain := h.nl.AddChain(&nftables.Chain{
		Name: "keep", Table: own, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(holdPriority),
	})
	h.nl.AddRule(&nftables.Rule{Table: own, Chain: chain, Exprs: []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, // what makes the kernel track
	}})
	if err := h.nl.Flush(); err != nil {
		return nil, errors.Join(fmt.Errorf("keep translation: %w", err), h.Close())
	}
	return &h, nil
}

// holdPriority is behind all chains that translate.
const holdPriority = 300

// Close removes the table.
func (h *Hold) Close() error { return h.nl.CloseLasting() }
