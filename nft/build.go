package nft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A chain of this name, less the layout's digest and that of its listing, is
// put in last: a table without it is unfinished, one with another is different.
const markPrefix = "layout-"

// build replaces the table by a new one that holds what is wanted, in one
// transaction. Two more add the timestamp rules and the mark of completeness.
func (t *Table) build() error {
	l := describe()
	digest, err := l.digest()
	if err != nil {
		return fmt.Errorf("build table: %w", err)
	}
	all := make(map[Endpoint]*Service, len(t.want))
	for at, s := range t.want {
		all[at] = &s
	}
	t.forget(time.Now())
	next := newState()
	c := next.plan(all).and(next.lull(t.lull))
	// A backend that lingers does so in the new table too.
	for _, b := range slices.SortedFunc(maps.Keys(t.have.backends), Endpoint.compare) {
		if !slices.ContainsFunc(c.adds, func(e entry) bool { return e.at == b && e.kind == backends }) {
			c.adds = append(c.adds, entry{b, element{kind: backends, lingers: true}})
		}
	}

	if _, err := t.nl.ListTableOfFamily(Name, nftables.TableFamilyINet); err == nil {
		t.nl.DelTable(table())
	} else if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("build table: %w", err)
	}
	t.nl.CreateTable(table())
	if err := t.queue(l); err != nil {
		return errors.Join(fmt.Errorf("build table: %w", err), t.abandon())
	}
	if err := t.each(plain(c.adds), t.nl.SetAddElements); err != nil {
		return errors.Join(fmt.Errorf("build table: %w", err), t.abandon())
	}
	if err := t.nl.Flush(); err != nil {
		return fmt.Errorf("build table: %w", err)
	}
	t.have = next
	t.applied(c, time.Now())
	if err := t.addSpecial(c.adds); err != nil {
		return fmt.Errorf("build table: %w", err)
	}

	if err := addStrip(t.sock); err != nil {
		return fmt.Errorf("build table: %w", err)
	}
	listing, err := t.fixed()
	if err != nil {
		return fmt.Errorf("build table: %w", err)
	}
	t.nl.AddChain(&nftables.Chain{Name: markPrefix + digest + "-" + listing.digest, Table: table()})
	if err := t.nl.Flush(); err != nil {
		return fmt.Errorf("build table: mark it complete: %w", err)
	}
	t.rebuilt = true
	return nil
}

// queue adds the fixed part to the transaction: sets, then all chains, since
// map elements and rules refer to both.
func (t *Table) queue(l layout) error {
	for _, s := range l.sets {
		if err := t.nl.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	policy := nftables.ChainPolicyAccept
	made := make([]*nftables.Chain, len(l.chains))
	for i, c := range l.chains {
		made[i] = &nftables.Chain{Name: c.name, Table: table()}
		if c.hook != nil {
			made[i].Type, made[i].Hooknum, made[i].Policy = c.kind, c.hook, &policy
			made[i].Priority = nftables.ChainPriorityRef(nftables.ChainPriority(c.priority))
		}
		t.nl.AddChain(made[i])
	}
	for i, c := range l.chains {
		for _, r := range c.rules {
			t.nl.AddRule(&nftables.Rule{Table: table(), Chain: made[i], Exprs: r})
		}
	}
	return nil
}

// whole tells whether the fixed part of the table is complete and unaltered.
func (l listing) whole() (bool, error) {
	digest, err := describe().digest()
	if err != nil {
		return false, err
	}
	return l.mark == markPrefix+digest+"-"+l.digest, nil
}

func isMark(chain string) bool { return strings.HasPrefix(chain, markPrefix) }

// Restore compares the table with what was last applied (or, before that,
// found) and mends what differs: another program may have flushed the ruleset,
// or altered the table. It tells whether there was anything to mend, be it that
// a change has found the table gone and built it anew before.
func (t *Table) Restore() (changed bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	changed, err = t.restore()
	if err == nil {
		changed, t.rebuilt = changed || t.rebuilt, false
	}
	return changed, err
}

func (t *Table) restore() (changed bool, err error) {
	same, err := t.reload()
	if err != nil {
		return false, fmt.Errorf("restore table: %w", err)
	}
	if !same {
		if err := t.build(); err != nil {
			return false, fmt.Errorf("restore table: %w", err)
		}
		return true, nil
	}
	all := make(map[Endpoint]*Service, len(t.want))
	for at, s := range t.want {
		all[at] = &s
	}
	for at := range t.have.at {
		if _, ok := t.want[at]; !ok {
			all[at] = nil
		}
	}
	c := t.have.plan(all).and(t.have.lull(t.sleepers()))
	if c.empty() {
		return false, nil
	}
	if err := t.commit(c); err != nil {
		return false, fmt.Errorf("restore table: %w", err)
	}
	return true, nil
}

// Remove deletes the table inet sluice of the namespace (see Options), if there
// is one, whoever made it. Established flows keep their translation.
func Remove(o Options) error {
	t := new(Table)
	if err := t.dial(o); err != nil {
		return fmt.Errorf("remove table: %w", err)
	}
	t.nl.DelTable(table())
	err := t.nl.Flush()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return errors.Join(fmt.Errorf("remove table: %w", err), t.Close())
	}
	return t.Close()
}
