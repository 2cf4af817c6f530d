package resolve

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/miekg/dns"
)

// Target is one address of a service.
type Target struct {
	Addr     netip.AddrPort
	Priority int // lower first

	// Weight is the address's share among those of its priority and family.
	// It is at least 1, and 100 for each unit of weight in the DNS, so that
	// records without weight, which "should have a very small chance of being
	// selected" (RFC 2782), weigh 1. If no record of a priority has weight, all
	// of them weigh 100. Addresses of one host and family divide its weight.
	Weight int
}

// unit is what a weight of 1 in the DNS becomes.
const unit = 100

// targets joins records and the addresses of the hosts that they name. The
// order is that of priority and address. An address named twice counts at its
// lowest priority, there with the weights added.
func targets(records []*dns.SRV, addrs map[string][]netip.Addr) []Target {
	weighted := make(map[uint16]bool) // priorities
	for _, r := range records {
		if r.Weight > 0 {
			weighted[r.Priority] = true
		}
	}
	list := []Target{} // not nil: it may be an answer that there are none
	for _, r := range records {
		if r.Port == 0 {
			continue
		}
		weight := unit
		if weighted[r.Priority] {
			weight = max(unit*int(r.Weight), 1)
		}
		host := addrs[dns.CanonicalName(r.Target)]
		four := 0
		for _, a := range host {
			if a.Is4() {
				four++
			}
		}
		for _, a := range host {
			n := four
			if a.Is6() {
				n = len(host) - four
			}
			list = append(list, Target{netip.AddrPortFrom(a, r.Port), int(r.Priority), max(weight/n, 1)})
		}
	}
	return merge(list)
}

func merge(list []Target) []Target {
	slices.SortFunc(list, func(a, b Target) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Priority, b.Priority))
	})
	merged := list[:0]
	for _, t := range list {
		if n := len(merged); n > 0 && merged[n-1].Addr == t.Addr {
			if merged[n-1].Priority == t.Priority {
				merged[n-1].Weight += t.Weight
			}
			continue
		}
		merged = append(merged, t)
	}
	slices.SortFunc(merged, func(a, b Target) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), a.Addr.Compare(b.Addr))
	})
	return merged
}
