package conntrack

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// sampleFlows are written by the tests' own encoding, which writes what Entry
// has no need of: the attributes that only the kernel sends.
func sampleFlows() []Flow {
	v4 := Flow{
		Orig:  Tuple{Src: addrPort("198.51.100.7:40000"), Dst: addrPort("192.0.2.10:80"), Proto: unix.IPPROTO_TCP},
		Reply: Tuple{Src: addrPort("10.88.0.5:8080"), Dst: addrPort("198.51.100.7:40000"), Proto: unix.IPPROTO_TCP},
		ID:    0xdeadbeef, Mark: 0x51000003, Status: 0x18e, State: StateFinWait, Timeout: 119 * time.Second,
		Start: 1_700_000_000_000_000_001, Stop: 1_700_000_001_000_000_002,
		OrigCount: Counter{5, 400}, ReplyCount: Counter{4, 1 << 40},
		OrigScale: 7, ReplyScale: 9, OrigFlags: FlagWindowScale | FlagSACK, ReplyFlags: FlagLiberal,
		OrigSeqAdj: SeqAdj{1, 2, 3}, ReplySeqAdj: SeqAdj{4, 0xfffffff0, 0xfffffff1},
	}
	v6 := Flow{
		Orig:  Tuple{Src: addrPort("[2001:db8:1::7]:40000"), Dst: addrPort("[2001:db8::10]:53"), Proto: unix.IPPROTO_UDP, Zone: 9},
		Reply: Tuple{Src: addrPort("[fd99::1]:5353"), Dst: addrPort("[2001:db8:1::7]:40000"), Proto: unix.IPPROTO_UDP, Zone: 9},
		ID:    1, Mark: 0x51ffffff, Status: 0x8, Timeout: 30 * time.Second,
	}
	return []Flow{v4, v6}
}

func encodeFlow(f *Flow, typ uint8, flags uint16) []byte {
	var e encoder
	start := e.start(typ, flags, familyOf(f.Orig.Src.Addr()), 0)
	e.tuple(ctaTupleOrig, &f.Orig)
	e.tuple(ctaTupleReply, &f.Reply)
	e.u32(ctaID, f.ID)
	e.u32(ctaStatus, uint32(f.Status))
	e.u32(ctaTimeout, seconds(f.Timeout))
	for typ, c := range map[uint16]Counter{ctaCountersOrig: f.OrigCount, ctaCountersReply: f.ReplyCount} {
		if c != (Counter{}) {
			o := e.open(typ)
			e.bytes(ctaCountersPackets, binary.BigEndian.AppendUint64(nil, c.Packets))
			e.bytes(ctaCountersBytes, binary.BigEndian.AppendUint64(nil, c.Bytes))
			e.close(o)
		}
	}
	if f.Start != 0 {
		o := e.open(ctaTimestamp)
		e.bytes(ctaTimestampStart, binary.BigEndian.AppendUint64(nil, uint64(f.Start)))
		e.bytes(ctaTimestampStop, binary.BigEndian.AppendUint64(nil, uint64(f.Stop)))
		e.close(o)
	}
	if f.Orig.Proto == unix.IPPROTO_TCP {
		e.tcp(&Entry{State: f.State, OrigScale: f.OrigScale, ReplyScale: f.ReplyScale, OrigFlags: f.OrigFlags, ReplyFlags: f.ReplyFlags})
	}
	if f.OrigSeqAdj != (SeqAdj{}) {
		e.seqAdj(ctaSeqAdjOrig, f.OrigSeqAdj)
		e.seqAdj(ctaSeqAdjReply, f.ReplySeqAdj)
	}
	if f.Orig.Zone != 0 {
		e.u16(ctaZone, f.Orig.Zone)
	}
	e.u32(ctaMark, f.Mark)
	e.end(start)
	return e.b
}

// compareLibrary reads a message with the library and tells how its view
// differs from ours. ok is false if the library refuses the message.
func compareLibrary(m message, f *Flow) (ok bool, diff error) {
	var ev conntrack.Event
	err := ev.Unmarshal(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(m.typ), Flags: netlink.HeaderFlags(m.flags)},
		Data:   m.data,
	})
	if err != nil || ev.Flow == nil {
		return false, nil
	}
	l := ev.Flow
	tuple := func(t conntrack.Tuple, zone uint16) Tuple {
		if zone == 0 {
			zone = t.Zone
		}
		return Tuple{
			Src:   netip.AddrPortFrom(t.IP.SourceAddress, t.Proto.SourcePort),
			Dst:   netip.AddrPortFrom(t.IP.DestinationAddress, t.Proto.DestinationPort),
			Proto: t.Proto.Protocol, Zone: zone,
		}
	}
	want := Flow{
		Orig: tuple(l.TupleOrig, l.Zone), Reply: tuple(l.TupleReply, l.Zone),
		ID: l.ID, Mark: l.Mark, Status: l.Status, Timeout: time.Duration(l.Timeout) * time.Second,
		OrigCount:   Counter{l.CountersOrig.Packets, l.CountersOrig.Bytes},
		ReplyCount:  Counter{l.CountersReply.Packets, l.CountersReply.Bytes},
		OrigSeqAdj:  SeqAdj{l.SeqAdjOrig.Position, l.SeqAdjOrig.OffsetBefore, l.SeqAdjOrig.OffsetAfter},
		ReplySeqAdj: SeqAdj{l.SeqAdjReply.Position, l.SeqAdjReply.OffsetBefore, l.SeqAdjReply.OffsetAfter},
	}
	if !l.Timestamp.Start.IsZero() {
		want.Start = l.Timestamp.Start.UnixNano()
	}
	if !l.Timestamp.Stop.IsZero() {
		want.Stop = l.Timestamp.Stop.UnixNano()
	}
	if p := l.ProtoInfo.TCP; p != nil {
		want.State = State(p.State)
		want.OrigScale, want.ReplyScale = p.OriginalWindowScale, p.ReplyWindowScale
		want.OrigFlags, want.ReplyFlags = uint8(p.OriginalFlags>>8), uint8(p.ReplyFlags>>8)
	}
	if *f != want {
		diff = fmt.Errorf("decoded\n%+v, the library\n%+v", *f, want)
	}
	kinds := map[kind]uint8{kindNew: uint8(conntrack.EventNew), kindUpdate: uint8(conntrack.EventUpdate), kindDestroy: uint8(conntrack.EventDestroy)}
	if k := kindOf(m.typ, m.flags); kinds[k] != uint8(ev.Type) {
		diff = fmt.Errorf("kind %d, the library's %d", k, ev.Type)
	}
	return true, diff
}

func TestDecode(t *testing.T) { // not parallel: it counts allocations
	for _, want := range sampleFlows() {
		b := encodeFlow(&want, msgDelete, 0)
		m, rest, err := nextMessage(b)
		if err != nil || len(rest) != 0 {
			t.Fatalf("nextMessage: %v, %d bytes left", err, len(rest))
		}
		got := Flow{ID: 77, OrigScale: 3} // must be overwritten
		if err := decode(m.data, &got); err != nil {
			t.Fatal(err)
		}
		if got != want {
			t.Errorf("got\n%+v, want\n%+v", got, want)
		}
		ok, diff := compareLibrary(m, &got)
		if !ok || diff != nil {
			t.Errorf("library: ok %v, %v", ok, diff)
		}
		if n := testing.AllocsPerRun(100, func() { _ = decode(m.data, &got) }); n != 0 {
			t.Errorf("decode allocates %v times", n)
		}
	}
}

// Any message cut short, or with a length made wrong, is an error or leaves
// out whole attributes; it never reads past the end.
func TestDecodeTruncated(t *testing.T) {
	t.Parallel()
	f := sampleFlows()[0]
	b := encodeFlow(&f, msgNew, unix.NLM_F_CREATE)[unix.NLMSG_HDRLEN:]
	whole := 0
	for n := range b {
		var got Flow
		if decode(b[:n:n], &got) == nil {
			whole++
		}
	}
	if top := 12; whole > top {
		t.Errorf("%d of %d prefixes decode, at most the %d that end between attributes should", whole, len(b), top)
	}
	for i := nfgenLen; i < len(b); i++ {
		for _, v := range []byte{0, 1, 3, 0xff} {
			c := append([]byte(nil), b...)
			c[i] = v
			var got Flow
			_ = decode(c, &got)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range sampleFlows() {
		f.Add(uint16(unix.NFNL_SUBSYS_CTNETLINK<<8|msgNew), uint16(unix.NLM_F_CREATE), encodeFlow(&s, msgNew, 0)[unix.NLMSG_HDRLEN:])
		f.Add(uint16(unix.NFNL_SUBSYS_CTNETLINK<<8|msgDelete), uint16(0), encodeFlow(&s, msgNew, 0)[unix.NLMSG_HDRLEN:])
	}
	f.Add(uint16(0), uint16(0), []byte{})
	f.Fuzz(func(t *testing.T, typ, flags uint16, b []byte) {
		var got Flow
		if decode(b, &got) != nil || odd(b[nfgenLen:], 0) {
			return
		}
		m := message{typ: typ, flags: flags, data: b}
		if _, diff := compareLibrary(m, &got); diff != nil {
			t.Error(diff)
		}
	})
}

// odd tells of messages that the kernel does not send and that the two sides
// may read differently: with an attribute twice side by side, of which one wins,
// or with a type that does not fit into the eight bits the library looks at.
func odd(b []byte, depth int) bool {
	seen := map[uint16]bool{}
	a := attrs{rest: b}
	for a.next() {
		if seen[a.typ] || a.typ > 0xff {
			return true
		}
		seen[a.typ] = true
		if depth < 3 && odd(a.data, depth+1) {
			return true
		}
	}
	// IPv4 and IPv6 addresses in one tuple, too, say the same thing twice.
	return depth == 2 && (seen[ctaIPv4Src] && seen[ctaIPv6Src] || seen[ctaIPv4Dst] && seen[ctaIPv6Dst])
}

func FuzzNextMessage(f *testing.F) {
	s := sampleFlows()[0]
	b := encodeFlow(&s, msgNew, 0)
	f.Add(append(append([]byte(nil), b...), b...))
	f.Add([]byte{16, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		for len(b) > 0 {
			m, rest, err := nextMessage(b)
			if err != nil {
				return
			}
			if len(rest) >= len(b) || len(m.data)+unix.NLMSG_HDRLEN > len(b) {
				t.Fatalf("no progress: %d bytes left of %d", len(rest), len(b))
			}
			b = rest
		}
	})
}
