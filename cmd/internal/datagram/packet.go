package datagram

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	header4   = 20
	header6   = 40
	headerUDP = 8
	headerFrg = 8 // IPv6 fragment header

	// largest is the most UDP data that IPv4 and IPv6 can carry in one packet.
	largest4 = 1<<16 - 1 - header4 - headerUDP
	largest6 = 1<<16 - 1 - headerUDP

	// smallMTU is the smallest that IPv6 allows, and fits any IPv4 link of today.
	smallMTU = 1280
	// wholeMTU is the largest IPv4 packet.
	wholeMTU = 1<<16 - 1

	// fallbackHops is what the packets get if the client's are not known.
	fallbackHops = 64
)

// flow is one client of one service address.
type flow struct{ client, service netip.AddrPort }

// datagram is what a client has sent.
type datagram struct {
	data []byte
	hops uint8 // TTL or hop limit it arrived with
	tos  uint8 // with the ECN bits
}

// packets calls f for the IP packets that make up one datagram: one, or
// fragments of at most mtu bytes. id is that of the fragments. The packet is
// overwritten by the next; the buffer is returned to be used again.
func packets(buf []byte, fl flow, d datagram, id uint32, mtu int, f func([]byte) error) ([]byte, error) {
	buf = append(buf[:0], make([]byte, header6+headerFrg)...)
	buf = appendUDP(buf, fl, d.data)
	const start = header6 + headerFrg
	whole := len(buf) - start
	v4 := fl.client.Addr().Is4()
	head := header6
	if v4 {
		head = header4
	}
	if head+whole <= mtu {
		p := buf[start-head:]
		if v4 {
			putHeader4(p, fl, d, 0)
		} else {
			putHeader6(p, fl, d, unix.IPPROTO_UDP)
		}
		return buf, f(p)
	}
	// Each header is written over the end of the fragment before, which has
	// been sent by then.
	if !v4 {
		head += headerFrg
	}
	size := (mtu - head) &^ 7
	for at := 0; at < whole; at += size {
		n := min(size, whole-at)
		p := buf[start+at-head : start+at+n]
		place := uint16(at / 8)
		more := at+n < whole
		if v4 {
			if more {
				place |= 0x2000
			}
			// Zero would let the kernel choose, another for each.
			binary.BigEndian.PutUint16(p[4:], max(1, uint16(id)))
			putHeader4(p, fl, d, place)
		} else {
			putHeader6(p, fl, d, unix.IPPROTO_FRAGMENT)
			place <<= 3
			if more {
				place |= 1
			}
			p[header6], p[header6+1] = unix.IPPROTO_UDP, 0
			binary.BigEndian.PutUint16(p[header6+2:], place)
			binary.BigEndian.PutUint32(p[header6+4:], id)
		}
		if err := f(p); err != nil {
			return buf, err
		}
	}
	return buf, nil
}

// putHeader4 leaves checksum and, of a packet that is no fragment, the
// identification to the kernel.
func putHeader4(p []byte, fl flow, d datagram, place uint16) {
	if place == 0 {
		p[4], p[5] = 0, 0
	}
	p[0], p[1] = 0x45, d.tos
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	binary.BigEndian.PutUint16(p[6:], place)
	p[8], p[9] = d.hops, unix.IPPROTO_UDP
	p[10], p[11] = 0, 0
	src, dst := fl.client.Addr().As4(), fl.service.Addr().As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
}

func putHeader6(p []byte, fl flow, d datagram, next uint8) {
	binary.BigEndian.PutUint32(p, 6<<28|uint32(d.tos)<<20)
	binary.BigEndian.PutUint16(p[4:], uint16(len(p)-header6))
	p[6], p[7] = next, d.hops
	src, dst := fl.client.Addr().As16(), fl.service.Addr().As16()
	copy(p[8:], src[:])
	copy(p[24:], dst[:])
}

func appendUDP(b []byte, fl flow, data []byte) []byte {
	start := len(b)
	b = binary.BigEndian.AppendUint16(b, fl.client.Port())
	b = binary.BigEndian.AppendUint16(b, fl.service.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(headerUDP+len(data)))
	b = append(b, 0, 0)
	b = append(b, data...)
	sum := add(0, fl.client.Addr().AsSlice())
	sum = add(sum, fl.service.Addr().AsSlice())
	sum = add(sum+unix.IPPROTO_UDP+uint64(len(b)-start), b[start:])
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	check := ^uint16(sum)
	if check == 0 {
		check = 0xffff // zero says that there is none, RFC 768
	}
	binary.BigEndian.PutUint16(b[start+6:], check)
	return b
}

// add sums 16-bit words; carries are folded in later.
func add(sum uint64, b []byte) uint64 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}
