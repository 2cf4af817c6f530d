package conntrack

import (
	"encoding/binary"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// encoder appends netlink messages to a buffer that is kept between uses.
type encoder struct{ b []byte }

// start appends the head of a request, end completes it.
func (e *encoder) start(typ uint8, flags uint16, family uint8, seq uint32) int {
	start := len(e.b)
	e.b = binary.NativeEndian.AppendUint32(e.b, 0)
	e.b = binary.NativeEndian.AppendUint16(e.b, unix.NFNL_SUBSYS_CTNETLINK<<8|uint16(typ))
	e.b = binary.NativeEndian.AppendUint16(e.b, unix.NLM_F_REQUEST|flags)
	e.b = binary.NativeEndian.AppendUint32(e.b, seq)
	e.b = binary.NativeEndian.AppendUint32(e.b, 0)
	e.b = append(e.b, family, unix.NFNETLINK_V0, 0, 0)
	return start
}

func (e *encoder) end(start int) {
	binary.NativeEndian.PutUint32(e.b[start:], uint32(len(e.b)-start))
}

// open begins a nested attribute, close ends it.
func (e *encoder) open(typ uint16) int {
	start := len(e.b)
	e.b = binary.NativeEndian.AppendUint16(e.b, 0)
	e.b = binary.NativeEndian.AppendUint16(e.b, typ|unix.NLA_F_NESTED)
	return start
}

func (e *encoder) close(start int) {
	binary.NativeEndian.PutUint16(e.b[start:], uint16(len(e.b)-start))
}

func (e *encoder) bytes(typ uint16, v []byte) {
	e.b = binary.NativeEndian.AppendUint16(e.b, uint16(nlaHeader+len(v)))
	e.b = binary.NativeEndian.AppendUint16(e.b, typ)
	e.b = append(e.b, v...)
	for len(e.b)%4 != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) u8(typ uint16, v uint8) { e.bytes(typ, []byte{v}) }

func (e *encoder) u16(typ uint16, v uint16) {
	e.bytes(typ, []byte{byte(v >> 8), byte(v)})
}

func (e *encoder) u32(typ uint16, v uint32) {
	e.bytes(typ, []byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

func (e *encoder) addr(typ uint16, a netip.Addr) {
	if a.Is4() {
		b := a.As4()
		e.bytes(typ, b[:])
		return
	}
	b := a.As16()
	e.bytes(typ, b[:])
}

func (e *encoder) tuple(typ uint16, t *Tuple) {
	outer := e.open(typ)
	ip := e.open(ctaTupleIP)
	src, dst := uint16(ctaIPv4Src), uint16(ctaIPv4Dst)
	if !t.Src.Addr().Is4() {
		src, dst = ctaIPv6Src, ctaIPv6Dst
	}
	e.addr(src, t.Src.Addr())
	e.addr(dst, t.Dst.Addr())
	e.close(ip)
	p := e.open(ctaTupleProto)
	e.u8(ctaProtoNum, t.Proto)
	e.u16(ctaProtoSrcPort, t.Src.Port())
	e.u16(ctaProtoDstPort, t.Dst.Port())
	e.close(p)
	e.close(outer)
}

func (e *encoder) seqAdj(typ uint16, s SeqAdj) {
	o := e.open(typ)
	e.u32(ctaSeqAdjPosition, s.Position)
	e.u32(ctaSeqAdjBefore, s.Before)
	e.u32(ctaSeqAdjAfter, s.After)
	e.close(o)
}

// nat writes a range of one address and one port.
func (e *encoder) nat(typ uint16, to netip.AddrPort) {
	lo, hi := uint16(ctaNatMinIP), uint16(ctaNatMaxIP)
	if !to.Addr().Is4() {
		lo, hi = ctaNatMinV6, ctaNatMaxV6
	}
	o := e.open(typ)
	e.addr(lo, to.Addr())
	e.addr(hi, to.Addr())
	p := e.open(ctaNatProto)
	e.u16(ctaProtoNatPortMin, to.Port())
	e.u16(ctaProtoNatPortMax, to.Port())
	e.close(p)
	e.close(o)
}

// dump asks for all entries whose mark is mark under mask; mask 0 asks for all.
func (e *encoder) dump(mark, mask, seq uint32) {
	start := e.start(msgGet, unix.NLM_F_DUMP, unix.AF_UNSPEC, seq)
	if mask != 0 {
		e.u32(ctaMark, mark)
		e.u32(ctaMarkMask, mask)
	}
	e.end(start)
}

// delete asks for the removal of one entry. With an id other than zero the
// entry must also be that very one, and not a later one of the same tuple.
func (e *encoder) delete(t *Tuple, id, seq uint32) {
	start := e.start(msgDelete, 0, familyOf(t.Src.Addr()), seq)
	e.tuple(ctaTupleOrig, t)
	if t.Zone != 0 {
		e.u16(ctaZone, t.Zone)
	}
	if id != 0 {
		e.u32(ctaID, id)
	}
	e.end(start)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// seconds rounds up: an entry must not expire before it was asked to.
func seconds(d time.Duration) uint32 {
	return uint32((d + time.Second - 1) / time.Second)
}
