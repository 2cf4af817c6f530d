package nft

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// A screened service lets only its allowed clients come to the host itself,
// where they would wake it. It is told by two sets: screened has the service
// for as long as that holds, allowed has its clients for as long as it lives,
// since to change a set of intervals is to copy it.
//
// A flow that meets a slot never comes to the host's input hook, so neither
// flows to services that are awake nor packets of any that the kernel forwards
// know of this. Where a service is screened though it has slots (to backends
// that are paused), the chain of its limits sends clients that are not allowed
// past the slots, to the host, where they are turned away like all others.

// span returns the first and the last address of a prefix.
func span(p netip.Prefix) (first, last netip.Addr) {
	p = p.Masked()
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	last, _ = netip.AddrFromSlice(b)
	return p.Addr(), last
}

// prefixOf is the inverse of span; ok is false if the two are no prefix's.
func prefixOf(first, last netip.Addr) (p netip.Prefix, ok bool) {
	a, b := first.AsSlice(), last.AsSlice()
	bits := 0
	for bits < 8*len(a) && (a[bits/8]^b[bits/8])&(0x80>>(bits%8)) == 0 {
		bits++
	}
	p = netip.PrefixFrom(first, bits)
	f, l := span(p)
	return p, f == first && l == last
}

// screens brings prefixes into the form in which they are kept: masked, sorted,
// and none inside another, which the kernel would take for a conflict.
func screens(list []netip.Prefix) []netip.Prefix {
	all := make([]netip.Prefix, 0, len(list))
	for _, p := range list {
		all = append(all, p.Masked())
	}
	slices.SortFunc(all, comparePrefix)
	kept := all[:0]
	for _, p := range all {
		// Sorted so, a prefix comes behind the one that holds it.
		if n := len(kept); n == 0 || !kept[n-1].Contains(p.Addr()) {
			kept = append(kept, p)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return kept
}

func comparePrefix(p, q netip.Prefix) int {
	if c := p.Addr().Compare(q.Addr()); c != 0 {
		return c
	}
	return p.Bits() - q.Bits()
}

func checkAllow(list []netip.Prefix, at Endpoint) error {
	for _, p := range list {
		if !p.IsValid() || p.Addr().Is4() != at.Addr.Is4() || p.Addr().Is4In6() {
			return fmt.Errorf("allowed client %s: %w", p, ErrInvalid)
		}
	}
	return nil
}

// screenElements are those that a service needs for its clients.
func (s Service) screenElements() (es []element) {
	if s.Screen {
		es = append(es, element{kind: screened})
		if len(s.Slots) > 0 && s.Limits.round() == (Limits{}) {
			es = append(es, element{kind: limited})
		}
	}
	for _, p := range screens(s.Allow) {
		es = append(es, element{kind: allowed, from: p})
	}
	return es
}

// appendClients makes of a service's key the bounds of one with its clients.
func appendClients(key []byte, p netip.Prefix) (first, last []byte) {
	from, to := span(p)
	return appendAddr(slices.Clone(key), from), appendAddr(slices.Clone(key), to)
}

// parseClients reads the bounds of an element of allowed.
func parseClients(first, last []byte, f family) (netip.Prefix, error) {
	const service = 8 // less the address
	n := int(f.size) + service
	if len(first) < n+int(f.size) || len(last) < n+int(f.size) {
		return netip.Prefix{}, errShort("clients", first)
	}
	from, _ := netip.AddrFromSlice(first[n : n+int(f.size)])
	to, _ := netip.AddrFromSlice(last[n : n+int(f.size)])
	p, ok := prefixOf(from, to)
	if !ok {
		return p, fmt.Errorf("decode clients %s to %s: %w", from, to, ErrInvalid)
	}
	return p, nil
}

// screenChains turn away who is not allowed. The chain turn is for packets that
// have come to the host, detour for new flows that have not met the slots yet.
func screenChains() []chain {
	input := chain{name: chainInput, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookInput, priority: 5}
	arrive := chain{name: chainArrive}
	turn, turnAny := chain{name: chainTurn}, chain{name: chainTurnAny}
	detour, detourAny := chain{name: chainDetour}, chain{name: chainDetourAny}

	input.add(ctState(expr.CtStateBitNEW|expr.CtStateBitUNTRACKED), jump(chainArrive))
	for _, f := range families() {
		service := []field{daddr(f), l4proto(), dport()}
		anywhere := []field{wild(f, daddr(f)), l4proto(), dport()}
		arrive.add(isFamily(f), concat(service...), in(setScreened+f.name), jump(chainTurn))
		arrive.add(isFamily(f), concat(anywhere...), in(setScreened+f.name),
			concat(service...), notIn(setKnown+f.name), jump(chainTurnAny))
		for _, c := range []struct {
			of           []field
			turn, detour *chain
		}{{service, &turn, &detour}, {anywhere, &turnAny, &detourAny}} {
			client := concat(append(slices.Clip(c.of), saddr(f))...)
			c.turn.add(isFamily(f), client, in(setAllowed+f.name), accept())
			c.detour.add(isFamily(f), client, notIn(setAllowed+f.name), accept())
		}
	}
	for _, c := range []*chain{&turn, &turnAny} {
		c.add(isTCP(), reject(unix.NFT_REJECT_TCP_RST, 0))
		c.add(reject(unix.NFT_REJECT_ICMPX_UNREACH, unix.NFT_REJECT_ICMPX_PORT_UNREACH))
	}
	return []chain{input, arrive, turn, turnAny, detour, detourAny}
}

// screen is the part of the chain of limits that comes before all limits: who
// is not allowed uses none of them up.
func (c *chain) screen(f family, service []expr.Any, detour string) {
	c.add(isFamily(f), service, in(setScreened+f.name), jump(detour))
}

// reject is "reject with", as a closed port would answer.
func reject(kind uint32, code uint8) []expr.Any {
	return []expr.Any{&expr.Reject{Type: kind, Code: code}}
}
