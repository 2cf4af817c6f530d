package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Attributes of nfnetlink_conntrack.h, named as there.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaProtoInfo     = 4
	ctaNatSrc        = 6
	ctaTimeout       = 7
	ctaMark          = 8
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaID            = 12
	ctaNatDst        = 13
	ctaSeqAdjOrig    = 15
	ctaSeqAdjReply   = 16
	ctaZone          = 18
	ctaTimestamp     = 20
	ctaMarkMask      = 21

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum     = 1
	ctaProtoSrcPort = 2
	ctaProtoDstPort = 3

	ctaProtoInfoTCP           = 1
	ctaProtoInfoTCPState      = 1
	ctaProtoInfoTCPScaleOrig  = 2
	ctaProtoInfoTCPScaleReply = 3
	ctaProtoInfoTCPFlagsOrig  = 4
	ctaProtoInfoTCPFlagsReply = 5

	ctaCountersPackets = 1
	ctaCountersBytes   = 2

	ctaTimestampStart = 1
	ctaTimestampStop  = 2

	ctaSeqAdjPosition = 1
	ctaSeqAdjBefore   = 2
	ctaSeqAdjAfter    = 3

	ctaNatMinIP = 1 // CTA_NAT_V4_MINIP
	ctaNatMaxIP = 2
	ctaNatProto = 3
	ctaNatMinV6 = 4 // CTA_NAT_V6_MINIP
	ctaNatMaxV6 = 5

	ctaProtoNatPortMin = 1
	ctaProtoNatPortMax = 2

	nlaTypeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
	nlaHeader   = 4
	nfgenLen    = 4 // struct nfgenmsg
)

// errMalformed reports a message that does not have the shape the kernel gives
// it: a length past the end, or a value of the wrong size.
var errMalformed = errors.New("malformed attribute")

// attrs walks over netlink attributes without copying.
type attrs struct {
	rest []byte
	typ  uint16
	data []byte
	bad  bool
}

func (a *attrs) next() bool {
	if len(a.rest) == 0 {
		return false
	}
	if len(a.rest) < nlaHeader {
		a.bad = true
		return false
	}
	n := int(binary.NativeEndian.Uint16(a.rest))
	if n < nlaHeader || n > len(a.rest) {
		a.bad = true
		return false
	}
	a.typ = binary.NativeEndian.Uint16(a.rest[2:]) & nlaTypeMask
	a.data = a.rest[nlaHeader:n]
	a.rest = a.rest[min(align4(n), len(a.rest)):]
	return true
}

func (a *attrs) nested() attrs { return attrs{rest: a.data} }

// join takes over the verdict of a nested walk.
func (a *attrs) join(n *attrs) { a.bad = a.bad || n.bad }

func (a *attrs) u8() uint8 {
	if len(a.data) != 1 {
		a.bad = true
		return 0
	}
	return a.data[0]
}

func (a *attrs) u16() uint16 {
	if len(a.data) != 2 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint16(a.data)
}

func (a *attrs) u32() uint32 {
	if len(a.data) != 4 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint32(a.data)
}

func (a *attrs) u64() uint64 {
	if len(a.data) != 8 {
		a.bad = true
		return 0
	}
	return binary.BigEndian.Uint64(a.data)
}

func (a *attrs) addr4() netip.Addr {
	if len(a.data) != 4 {
		a.bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom4([4]byte(a.data))
}

func (a *attrs) addr6() netip.Addr {
	if len(a.data) != 16 {
		a.bad = true
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte(a.data))
}

func align4(n int) int { return (n + 3) &^ 3 }

// decode reads the payload of a conntrack message (what follows the netlink
// header) into f, which is overwritten. It does not allocate and keeps no
// reference to b. Attributes that Flow has no field for are skipped.
func decode(b []byte, f *Flow) error {
	*f = Flow{}
	if len(b) < nfgenLen {
		return fmt.Errorf("decode flow: header of %d bytes: %w", len(b), errMalformed)
	}
	a := attrs{rest: b[nfgenLen:]}
	for a.next() {
		switch a.typ {
		case ctaTupleOrig:
			decodeTuple(&a, &f.Orig)
		case ctaTupleReply:
			decodeTuple(&a, &f.Reply)
		case ctaStatus:
			f.Status = Status(a.u32())
		case ctaProtoInfo:
			decodeProtoInfo(&a, f)
		case ctaTimeout:
			f.Timeout = time.Duration(a.u32()) * time.Second
		case ctaMark:
			f.Mark = a.u32()
		case ctaCountersOrig:
			decodeCounter(&a, &f.OrigCount)
		case ctaCountersReply:
			decodeCounter(&a, &f.ReplyCount)
		case ctaID:
			f.ID = a.u32()
		case ctaSeqAdjOrig:
			decodeSeqAdj(&a, &f.OrigSeqAdj)
		case ctaSeqAdjReply:
			decodeSeqAdj(&a, &f.ReplySeqAdj)
		case ctaZone: // both directions; a zone of one is in its tuple
			z := a.u16()
			f.Orig.Zone, f.Reply.Zone = z, z
		case ctaTimestamp:
			decodeTimestamp(&a, f)
		}
	}
	if a.bad {
		return fmt.Errorf("decode flow: %w", errMalformed)
	}
	return nil
}

func decodeTuple(a *attrs, t *Tuple) {
	var src, dst netip.Addr
	var sport, dport uint16
	n := a.nested()
	for n.next() {
		switch n.typ {
		case ctaTupleIP:
			ip := n.nested()
			for ip.next() {
				switch ip.typ {
				case ctaIPv4Src:
					src = ip.addr4()
				case ctaIPv4Dst:
					dst = ip.addr4()
				case ctaIPv6Src:
					src = ip.addr6()
				case ctaIPv6Dst:
					dst = ip.addr6()
				}
			}
			n.join(&ip)
		case ctaTupleProto:
			p := n.nested()
			for p.next() {
				switch p.typ {
				case ctaProtoNum:
					t.Proto = p.u8()
				case ctaProtoSrcPort:
					sport = p.u16()
				case ctaProtoDstPort:
					dport = p.u16()
				}
			}
			n.join(&p)
		case ctaTupleZone:
			t.Zone = n.u16()
		}
	}
	t.Src, t.Dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	a.join(&n)
}

func decodeProtoInfo(a *attrs, f *Flow) {
	n := a.nested()
	for n.next() {
		if n.typ != ctaProtoInfoTCP {
			continue
		}
		t := n.nested()
		for t.next() {
			switch t.typ {
			case ctaProtoInfoTCPState:
				f.State = State(t.u8())
			case ctaProtoInfoTCPScaleOrig:
				f.OrigScale = t.u8()
			case ctaProtoInfoTCPScaleReply:
				f.ReplyScale = t.u8()
			case ctaProtoInfoTCPFlagsOrig: // struct nf_ct_tcp_flags: flags, mask
				f.OrigFlags = uint8(t.u16() >> 8)
			case ctaProtoInfoTCPFlagsReply:
				f.ReplyFlags = uint8(t.u16() >> 8)
			}
		}
		n.join(&t)
	}
	a.join(&n)
}

func decodeCounter(a *attrs, c *Counter) {
	n := a.nested()
	for n.next() {
		switch n.typ {
		case ctaCountersPackets:
			c.Packets = n.u64()
		case ctaCountersBytes:
			c.Bytes = n.u64()
		}
	}
	a.join(&n)
}

func decodeSeqAdj(a *attrs, s *SeqAdj) {
	n := a.nested()
	for n.next() {
		switch n.typ {
		case ctaSeqAdjPosition:
			s.Position = n.u32()
		case ctaSeqAdjBefore:
			s.Before = n.u32()
		case ctaSeqAdjAfter:
			s.After = n.u32()
		}
	}
	a.join(&n)
}

func decodeTimestamp(a *attrs, f *Flow) {
	n := a.nested()
	for n.next() {
		switch n.typ {
		case ctaTimestampStart:
			f.Start = int64(n.u64())
		case ctaTimestampStop:
			f.Stop = int64(n.u64())
		}
	}
	a.join(&n)
}

// kind is what a message says about a flow.
type kind uint8

const (
	kindNone kind = iota
	kindNew
	kindUpdate
	kindDestroy
)

const (
	msgNew    = 0 // IPCTNL_MSG_CT_NEW
	msgGet    = 1
	msgDelete = 2
)

// kindOf classifies a message by its netlink type and flags. A dump's entries
// are of the same type as updates.
func kindOf(typ, flags uint16) kind {
	switch typ {
	case unix.NFNL_SUBSYS_CTNETLINK<<8 | msgNew:
		if flags&(unix.NLM_F_CREATE|unix.NLM_F_EXCL) != 0 {
			return kindNew
		}
		return kindUpdate
	case unix.NFNL_SUBSYS_CTNETLINK<<8 | msgDelete:
		return kindDestroy
	}
	return kindNone
}

// message is one netlink message in a receive buffer.
type message struct {
	typ, flags uint16
	seq        uint32
	data       []byte
}

// nextMessage cuts the first message off b.
func nextMessage(b []byte) (m message, rest []byte, err error) {
	if len(b) < unix.NLMSG_HDRLEN {
		return m, nil, fmt.Errorf("read netlink message: %d bytes: %w", len(b), errMalformed)
	}
	n := binary.NativeEndian.Uint32(b)
	if n < unix.NLMSG_HDRLEN || uint64(n) > uint64(len(b)) {
		return m, nil, fmt.Errorf("read netlink message: length %d of %d: %w", n, len(b), errMalformed)
	}
	m = message{
		typ:   binary.NativeEndian.Uint16(b[4:]),
		flags: binary.NativeEndian.Uint16(b[6:]),
		seq:   binary.NativeEndian.Uint32(b[8:]),
		data:  b[unix.NLMSG_HDRLEN:n],
	}
	return m, b[min(align4(int(n)), len(b)):], nil
}
