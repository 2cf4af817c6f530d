package resolve

import (
	"math"
	"net/netip"

	"github.com/miekg/dns"
)

// maxAliases is how many CNAMEs are followed, in one answer and from answer to
// answer.
const maxAliases = 8

// answer is what a message says about a name.
type answer struct {
	records []dns.RR // of the type asked for
	name    string   // whose records they are: the name asked for, or what it is an alias of
	ttl     uint32   // the least of the records and aliases
}

// read takes from a message what it says about a name, in canonical form. It
// follows aliases; other records are none of its business.
func read(m *dns.Msg, name string, typ uint16) answer {
	a := answer{name: name, ttl: math.MaxUint32}
	for range maxAliases + 1 {
		alias := ""
		for _, rr := range m.Answer {
			h := rr.Header()
			if h.Class != dns.ClassINET || dns.CanonicalName(h.Name) != a.name {
				continue
			}
			if h.Rrtype == typ {
				a.records = append(a.records, rr)
				a.ttl = min(a.ttl, ttl(h))
			} else if c, ok := rr.(*dns.CNAME); ok && alias == "" {
				alias = dns.CanonicalName(c.Target)
				a.ttl = min(a.ttl, ttl(h))
			}
		}
		if len(a.records) > 0 {
			return a
		}
		if alias == "" {
			break
		}
		a.name = alias
	}
	return a
}

// glue takes the addresses of a host from the additional section. Without any
// there is nothing to be concluded.
func glue(m *dns.Msg, host string, typ uint16) (addrs []netip.Addr, least uint32) {
	least = math.MaxUint32
	for _, rr := range m.Extra {
		h := rr.Header()
		if h.Class != dns.ClassINET || h.Rrtype != typ || dns.CanonicalName(h.Name) != host {
			continue
		}
		if a, ok := address(rr); ok {
			addrs = append(addrs, a)
			least = min(least, ttl(h))
		}
	}
	return addrs, least
}

// ttl of a record. One with the highest bit set counts as 0 (RFC 2181 8).
func ttl(h *dns.RR_Header) uint32 {
	if h.Ttl > math.MaxInt32 {
		return 0
	}
	return h.Ttl
}

// address is what a record of type A or AAAA says, if a backend can have it.
// 0.0.0.0 and :: are how some servers say that a name is blocked.
func address(rr dns.RR) (netip.Addr, bool) {
	var a netip.Addr
	var ok bool
	switch rr := rr.(type) {
	case *dns.A:
		a, ok = netip.AddrFromSlice(rr.A)
	case *dns.AAAA:
		a, ok = netip.AddrFromSlice(rr.AAAA)
	}
	a = a.Unmap()
	return a, ok && !a.IsUnspecified() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
