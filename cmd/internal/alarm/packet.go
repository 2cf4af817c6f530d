package alarm

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// destination is where an IPv4 or IPv6 packet of TCP or UDP goes, of which b
// is the beginning. It is not ok if that cannot be told: another protocol, a
// later fragment, or headers that go on behind the end of b.
func destination(b []byte) (to netip.AddrPort, proto uint8, ok bool) {
	if len(b) == 0 {
		return to, 0, false
	}
	var addr netip.Addr
	switch b[0] >> 4 {
	case 4:
		addr, proto, b, ok = ipv4(b)
	case 6:
		addr, proto, b, ok = ipv6(b)
	}
	if !ok || len(b) < 4 || proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP {
		return to, 0, false
	}
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(b[2:])), proto, true
}

func ipv4(b []byte) (dst netip.Addr, proto uint8, rest []byte, ok bool) {
	const header = 20
	if len(b) < header {
		return dst, 0, nil, false
	}
	n := int(b[0]&0xf) * 4
	fragment := binary.BigEndian.Uint16(b[6:]) & 0x1fff // its offset
	if n < header || len(b) < n || fragment != 0 {
		return dst, 0, nil, false
	}
	return netip.AddrFrom4([4]byte(b[16:20])), b[9], b[n:], true
}

func ipv6(b []byte) (dst netip.Addr, proto uint8, rest []byte, ok bool) {
	const header = 40
	if len(b) < header {
		return dst, 0, nil, false
	}
	dst, proto, rest = netip.AddrFrom16([16]byte(b[24:40])), b[6], b[header:]
	for {
		var n int
		switch proto {
		default:
			return dst, proto, rest, true
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(rest) < 2 {
				return dst, 0, nil, false
			}
			n = 8 + 8*int(rest[1])
		case unix.IPPROTO_FRAGMENT:
			n = 8
			if len(rest) < n || binary.BigEndian.Uint16(rest[2:])&0xfff8 != 0 {
				return dst, 0, nil, false
			}
		}
		if len(rest) < n {
			return dst, 0, nil, false
		}
		proto, rest = rest[0], rest[n:]
	}
}
