package handover

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// TCP flags, RFC 9293 §3.1.
const (
	flagFIN = 1 << iota
	flagSYN
	flagRST
	flagPSH
	flagACK
	flagURG
	flagECE
	flagCWR
)

const (
	protoTCP = 6
	ipHeader = 20
	v6Header = 40
	tcpLen   = 20
)

var errNotTCP = errors.New("not a whole TCP header")

// segment is a TCP segment with the addresses of its IP header.
type segment struct {
	src, dst netip.AddrPort
	seq, ack uint32
	flags    uint8
	window   uint16 // as on the wire, not scaled
	opts     options
	data     []byte
}

// options are the TCP options a handshake may carry over. Nothing else is ever
// replayed: Fast Open cookies, Multipath TCP and signatures in a client's SYN
// were meant for a peer that answers them.
type options struct {
	mss     uint16 // 0: absent
	scaled  bool
	scale   uint8 // 0-14, if scaled
	sack    bool
	stamped bool // timestamps; understood but never sent
}

// append adds the options in wire form, padded to whole words.
func (o options) append(b []byte) []byte {
	if o.mss != 0 {
		b = append(b, 2, 4, byte(o.mss>>8), byte(o.mss))
	}
	if o.sack {
		b = append(b, 1, 1, 4, 2)
	}
	if o.scaled {
		b = append(b, 1, 3, 3, o.scale)
	}
	return b
}

// parseOptions skips what it does not know and stops at what it cannot follow.
func parseOptions(b []byte) options {
	var o options
	for len(b) > 0 {
		switch b[0] {
		case 0:
			return o
		case 1:
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return o
		}
		opt := b[:b[1]]
		b = b[b[1]:]
		switch {
		case opt[0] == 2 && len(opt) == 4:
			o.mss = binary.BigEndian.Uint16(opt[2:])
		case opt[0] == 3 && len(opt) == 3:
			// RFC 7323 §2.3: more than 14 is read as 14.
			o.scaled, o.scale = true, min(opt[2], 14)
		case opt[0] == 4 && len(opt) == 2:
			o.sack = true
		case opt[0] == 8 && len(opt) == 10:
			o.stamped = true
		}
	}
	return o
}

// append adds the whole packet, IP header and checksums included, in the family
// of the source. Both addresses must be of that family.
func (s *segment) append(b []byte) []byte {
	start := len(b)
	var opts [12]byte
	o := s.opts.append(opts[:0])
	length := tcpLen + len(o) + len(s.data)
	var sum uint32
	if s.src.Addr().Is4() {
		src, dst := s.src.Addr().As4(), s.dst.Addr().As4()
		b = append(b, 0x45, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(ipHeader+length))
		// Identification 0: the kernel fills it in. Don't fragment, TTL 64.
		b = append(b, 0, 0, 0x40, 0, 64, protoTCP, 0, 0)
		b = append(append(b, src[:]...), dst[:]...)
		binary.BigEndian.PutUint16(b[start+10:], fold(add(0, b[start:])))
		sum = add(add(protoTCP+uint32(length), src[:]), dst[:])
	} else {
		src, dst := s.src.Addr().As16(), s.dst.Addr().As16()
		b = append(b, 0x60, 0, 0, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(length))
		b = append(b, protoTCP, 64)
		b = append(append(b, src[:]...), dst[:]...)
		sum = add(add(protoTCP+uint32(length), src[:]), dst[:])
	}
	t := len(b)
	b = binary.BigEndian.AppendUint16(b, s.src.Port())
	b = binary.BigEndian.AppendUint16(b, s.dst.Port())
	b = binary.BigEndian.AppendUint32(b, s.seq)
	b = binary.BigEndian.AppendUint32(b, s.ack)
	b = append(b, byte((tcpLen+len(o))/4<<4), s.flags)
	b = binary.BigEndian.AppendUint16(b, s.window)
	b = append(b, 0, 0, 0, 0)
	b = append(append(b, o...), s.data...)
	binary.BigEndian.PutUint16(b[t+16:], fold(add(sum, b[t:])))
	return b
}

// parse reads a packet that starts at its IP header and may have been cut
// anywhere behind the TCP header. Checksums are not looked at: between veth
// devices they are not yet filled in. The data alias b.
func parse(b []byte) (segment, error) {
	var s segment
	if len(b) == 0 {
		return s, errNotTCP
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		n := int(b[0]&15) * 4
		if n < ipHeader || len(b) < n || b[9] != protoTCP || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return s, errNotTCP
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		b = trim(b, int(binary.BigEndian.Uint16(b[2:])), n)
	case 6:
		// Linux puts no extension header before TCP.
		if len(b) < v6Header || b[6] != protoTCP {
			return s, errNotTCP
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		b = trim(b, v6Header+int(binary.BigEndian.Uint16(b[4:])), v6Header)
	default:
		return s, errNotTCP
	}
	if len(b) < tcpLen {
		return s, errNotTCP
	}
	n := int(b[12]>>4) * 4
	if n < tcpLen || n > len(b) {
		return s, errNotTCP
	}
	s.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(b))
	s.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(b[2:]))
	s.seq = binary.BigEndian.Uint32(b[4:])
	s.ack = binary.BigEndian.Uint32(b[8:])
	s.flags = b[13]
	s.window = binary.BigEndian.Uint16(b[14:])
	s.opts = parseOptions(b[tcpLen:n])
	s.data = b[n:]
	return s, nil
}

// trim cuts off link padding behind the IP length and the header before it. A
// length of 0 stands for a packet larger than the field can say.
func trim(b []byte, length, header int) []byte {
	if length > header && length < len(b) {
		b = b[:length]
	}
	return b[header:]
}

func add(sum uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// before reports a < b in sequence space.
func before(a, b uint32) bool { return int32(a-b) < 0 }
