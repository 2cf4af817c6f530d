package conntrack

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// Flags of one direction of a TCP flow (IP_CT_TCP_FLAG_*).
const (
	FlagWindowScale = 0x01 // the side announced a window scale
	FlagSACK        = 0x02 // the side permits selective acknowledgements
	FlagCloseInit   = 0x04 // the side has sent a FIN or RST
	FlagLiberal     = 0x08 // out-of-window packets are not invalid
)

// ErrEntry reports an Entry that cannot be created.
var ErrEntry = errors.New("invalid conntrack entry")

// Entry describes a flow to be created as if its first packets had been seen
// and translated by this host. It is a plain value; nothing happens before
// [Conn.Create].
//
// The kernel works out the reply direction from Orig, Backend and Source. All
// addresses are of one family, IPv4-mapped ones are not accepted.
type Entry struct {
	Orig    Tuple          // as the client sends it
	Backend netip.AddrPort // where Orig.Dst is translated to
	Source  netip.AddrPort // where Orig.Src is translated to; zero keeps it

	Mark    uint32
	Timeout time.Duration // from now until the first packet; at least 1 s
	Status  Status        // zero stands for seen-reply and assured; confirmed is implied

	// TCP alone.
	State                 State
	OrigScale, ReplyScale uint8 // window scales; used if both sides have FlagWindowScale
	OrigFlags, ReplyFlags uint8 // FlagWindowScale and so on

	// What the kernel adds to the sequence numbers each side sends. The
	// acknowledgements of the other side are shifted back to match.
	OrigSeqAdj, ReplySeqAdj SeqAdj
}

// Valid returns nil or an error that wraps ErrEntry.
func (e *Entry) Valid() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{ErrEntry}, args...)...)
	}
	switch {
	case e.Orig.Proto != unix.IPPROTO_TCP && e.Orig.Proto != unix.IPPROTO_UDP:
		return bad("protocol %d is neither TCP nor UDP", e.Orig.Proto)
	case e.Timeout < time.Second || e.Timeout > math.MaxInt32*time.Second:
		return bad("timeout %s", e.Timeout)
	case e.Orig.Proto == unix.IPPROTO_TCP && (e.State == StateNone || e.State > StateSynSent2):
		return bad("TCP %s", e.State)
	case e.Orig.Proto != unix.IPPROTO_TCP && (e.State != StateNone || e.OrigSeqAdj != SeqAdj{} || e.ReplySeqAdj != SeqAdj{}):
		return bad("TCP state or sequence offset without TCP")
	case e.OrigScale > 14 || e.ReplyScale > 14: // RFC 7323 section 2.3
		return bad("window scale %d/%d", e.OrigScale, e.ReplyScale)
	}
	addrs := []netip.AddrPort{e.Orig.Src, e.Orig.Dst, e.Backend}
	if e.Source != (netip.AddrPort{}) {
		addrs = append(addrs, e.Source)
	}
	for _, a := range addrs {
		switch {
		case !a.IsValid() || a.Port() == 0:
			return bad("address %s", a)
		case a.Addr().Is4In6() || a.Addr().Zone() != "" || a.Addr().IsUnspecified():
			return bad("address %s", a)
		case a.Addr().Is4() != e.Orig.Src.Addr().Is4():
			return bad("%s and %s are of different families", e.Orig.Src, a)
		}
	}
	return nil
}

// status is what the kernel wants to see: without IPS_CONFIRMED it answers
// EBUSY.
func (e *Entry) status() Status {
	if e.Status == 0 {
		return conntrack.StatusSeenReply | conntrack.StatusAssured | conntrack.StatusConfirmed
	}
	return e.Status | conntrack.StatusConfirmed
}

// create asks for a new entry. NLM_F_EXCL: an entry of this tuple that is there
// already may carry traffic by other rules and must not be changed into ours.
func (e *encoder) create(n *Entry, seq uint32) {
	start := e.start(msgNew, unix.NLM_F_CREATE|unix.NLM_F_EXCL, familyOf(n.Orig.Src.Addr()), seq)
	// The reply tuple is given untranslated; the kernel alters it as it sets up
	// the translations below.
	reply := Tuple{Src: n.Orig.Dst, Dst: n.Orig.Src, Proto: n.Orig.Proto}
	e.tuple(ctaTupleOrig, &n.Orig)
	e.tuple(ctaTupleReply, &reply)
	if n.Orig.Zone != 0 {
		e.u16(ctaZone, n.Orig.Zone)
	}
	e.u32(ctaStatus, uint32(n.status()))
	e.u32(ctaTimeout, seconds(n.Timeout))
	e.u32(ctaMark, n.Mark)
	if n.Orig.Proto == unix.IPPROTO_TCP {
		e.tcp(n)
	}
	e.nat(ctaNatDst, n.Backend)
	// Left to itself the kernel picks another source port if this one's reply
	// tuple is taken, and the backend would see a stranger. Pinned, the
	// creation fails with EEXIST instead.
	src := n.Source
	if !src.IsValid() {
		src = n.Orig.Src
	}
	e.nat(ctaNatSrc, src)
	if (n.OrigSeqAdj != SeqAdj{} || n.ReplySeqAdj != SeqAdj{}) {
		e.seqAdj(ctaSeqAdjOrig, n.OrigSeqAdj)
		e.seqAdj(ctaSeqAdjReply, n.ReplySeqAdj)
	}
	e.end(start)
}

func (e *encoder) tcp(n *Entry) {
	o := e.open(ctaProtoInfo)
	t := e.open(ctaProtoInfoTCP)
	e.u8(ctaProtoInfoTCPState, uint8(n.State))
	e.u8(ctaProtoInfoTCPScaleOrig, n.OrigScale)
	e.u8(ctaProtoInfoTCPScaleReply, n.ReplyScale)
	// struct nf_ct_tcp_flags: the flags, then the mask of those to be written.
	e.bytes(ctaProtoInfoTCPFlagsOrig, []byte{n.OrigFlags, 0xff})
	e.bytes(ctaProtoInfoTCPFlagsReply, []byte{n.ReplyFlags, 0xff})
	e.close(t)
	e.close(o)
}
