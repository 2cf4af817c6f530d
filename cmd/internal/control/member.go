package control

import (
	"net/netip"

	"sluice/policy"
)

// resolve tells a service the backends that sluice does not start. An address
// keeps its index for as long as the service lives.
func (c *Control) resolve(s *service) {
	var list []policy.Member
	for _, b := range s.cfg.Backends {
		if !b.Addr.IsValid() {
			continue
		}
		r := s.member(b.Addr)
		list = append(list, policy.Member{Index: r.index, Weight: b.Weight, Priority: b.Priority})
	}
	c.event(s.name, policy.Members{Members: list})
}

// member returns the replica entry of a fixed address.
func (s *service) member(addr netip.AddrPort) *replica {
	for _, r := range s.replicas {
		if (r.addr4 == addr || r.addr6 == addr) && r.index >= policy.FirstMember {
			return r
		}
	}
	s.members++
	r := &replica{index: policy.FirstMember + s.members, name: addr.String()}
	if addr.Addr().Is4() {
		r.addr4 = addr
	} else {
		r.addr6 = addr
	}
	s.replicas[r.index] = r
	return r
}
