package conntrack

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// Status holds the IPS_* bits of an entry.
type Status = conntrack.Status

// State is the kernel's view of a TCP connection (enum tcp_conntrack).
type State uint8

// The states of enum tcp_conntrack, uapi/linux/netfilter/nf_conntrack_tcp.h.
const (
	StateNone        State = iota
	StateSynSent           // a SYN was seen
	StateSynRecv           // a SYN-ACK answered it
	StateEstablished       // the handshake is complete
	StateFinWait           // one side has sent a FIN
	StateCloseWait         // that FIN was acknowledged
	StateLastAck           // both sides have sent a FIN
	StateTimeWait          // both FINs were acknowledged
	StateClose             // a RST was seen
	StateSynSent2          // SYNs crossed
)

// Finished tells whether the connection can carry no more data. The finished
// states are listed rather than the others, so that a state not thought of
// counts as busy.
func (s State) Finished() bool { return s == StateTimeWait || s == StateClose }

// String names the state as conntrack(8) does.
func (s State) String() string {
	names := [...]string{"NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT",
		"CLOSE_WAIT", "LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// Tuple is one direction of a flow. Ports are zero unless the protocol has
// them. Zone is the conntrack zone, zero by default.
type Tuple struct {
	Src, Dst netip.AddrPort
	Proto    uint8 // IPPROTO_*
	Zone     uint16
}

func (t Tuple) String() string {
	return fmt.Sprintf("%s %s > %s", protoName(t.Proto), t.Src, t.Dst)
}

// Counter counts packets and bytes of IP (headers included) in one direction.
// It stays zero unless net.netfilter.nf_conntrack_acct was on when the flow
// began.
type Counter struct{ Packets, Bytes uint64 }

// SeqAdj tells by how much the sequence numbers of one direction are shifted:
// by Before for those before Position, by After from there on. Offsets are
// modulo 2^32, as sequence numbers are.
type SeqAdj struct{ Position, Before, After uint32 }

// Flow is an entry of the kernel's table as a dump or an event shows it. It can
// be compared with ==. Fields a message did not carry are zero: an event has no
// counters before the flow's end, and its State is absent in updates that are
// about something else.
type Flow struct {
	Orig, Reply Tuple // Reply is after translation

	ID     uint32 // the kernel's hash of the entry; may recur after its end
	Mark   uint32
	Status Status
	State  State // TCP alone

	Timeout     time.Duration // until the entry expires, whole seconds
	Start, Stop int64         // Unix nanoseconds; needs net.netfilter.nf_conntrack_timestamp

	OrigCount, ReplyCount Counter

	// TCP alone. Scale is the window scale each side announced, Flags are the
	// IP_CT_TCP_FLAG_* bits, SeqAdj is set on flows with StatusSeqAdjust.
	OrigScale, ReplyScale   uint8
	OrigFlags, ReplyFlags   uint8
	OrigSeqAdj, ReplySeqAdj SeqAdj
}

// Live tells whether the flow can still carry data. A TCP entry outlives its
// connection by up to 120 s; any other is live until it is gone.
func (f *Flow) Live() bool {
	return !(f.Orig.Proto == unix.IPPROTO_TCP && f.State.Finished()) && !f.Status.Dying()
}

// Half tells whether the flow is but an attempt: of TCP, a connection whose
// handshake the client has not completed, whoever that is.
func (f *Flow) Half() bool { return f.Orig.Proto == unix.IPPROTO_TCP && !f.Status.Assured() }

// Backend returns what the flow counts for.
func (f *Flow) Backend() Backend {
	return Backend{Service: f.Orig.Dst, Backend: f.Reply.Src, Proto: f.Orig.Proto}
}

func (f *Flow) String() string {
	s := fmt.Sprintf("%s (%s)", f.Orig, f.Reply.Src)
	if f.Orig.Proto == unix.IPPROTO_TCP {
		s += " " + f.State.String()
	}
	return s
}

// Backend names a set of flows: those that clients sent to Service and that
// Backend answers.
type Backend struct {
	Service netip.AddrPort // destination of the original direction
	Backend netip.AddrPort // source of the reply direction
	Proto   uint8          // IPPROTO_*
}

func (b Backend) unmap() Backend {
	b.Service, b.Backend = unmap(b.Service), unmap(b.Backend)
	return b
}

func (b Backend) String() string {
	return fmt.Sprintf("%s %s > %s", protoName(b.Proto), b.Service, b.Backend)
}

func protoName(p uint8) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	}
	return fmt.Sprintf("proto(%d)", p)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
