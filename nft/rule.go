package nft

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Expressions in the words of nft's own language. They work on 4-byte
// registers, numbered here from 0; reg gives the number that the kernel knows.
func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func native(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func rule(parts ...[]expr.Any) []expr.Any {
	var r []expr.Any
	for _, p := range parts {
		r = append(r, p...)
	}
	return r
}

// isFamily is "meta nfproto ipv4".
func isFamily(f family) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{f.proto}},
	}
}

// isTCP is "meta l4proto tcp", notTCP its opposite.
func isTCP() []expr.Any  { return tcp(expr.CmpOpEq) }
func notTCP() []expr.Any { return tcp(expr.CmpOpNeq) }

func tcp(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(0)},
		&expr.Cmp{Op: op, Register: reg(0), Data: []byte{unix.IPPROTO_TCP}},
	}
}

const (
	tcpSYN = 0x02
	tcpRST = 0x04
	tcpACK = 0x10
)

// tcpFlags is "tcp flags & mask OP value".
func tcpFlags(mask byte, op expr.CmpOp, value byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 1, Mask: []byte{mask}, Xor: []byte{0}},
		&expr.Cmp{Op: op, Register: reg(0), Data: []byte{value}},
	}
}

// A field loads its part of a concatenation and tells how many registers it fills.
type field func(at uint32) ([]expr.Any, uint32)

func one(e expr.Any, words uint32) ([]expr.Any, uint32) { return []expr.Any{e}, words }

func network(offset, size uint32) field {
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size}, size/4)
	}
}

func saddr(f family) field { return network(f.saddr, f.size) }
func daddr(f family) field { return network(f.daddr, f.size) }

func port(offset uint32) field {
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Payload{DestRegister: reg(at), Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2}, 1)
	}
}

func sport() field { return port(0) }
func dport() field { return port(2) }

func l4proto() field {
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(at)}, 1)
	}
}

// wild makes an address field the unspecified address, that of a service at
// every local address: "ip daddr & 0.0.0.0". nft cannot list a constant there.
func wild(f family, addr field) field {
	return func(at uint32) ([]expr.Any, uint32) {
		e, n := addr(at)
		none := make([]byte, f.size)
		return append(e, &expr.Bitwise{SourceRegister: reg(at), DestRegister: reg(at), Len: f.size, Mask: none, Xor: none}), n
	}
}

// ctSaddr is "ct original ip saddr": a translated flow's client.
func ctSaddr(f family) field {
	key := expr.CtKeySRCIP
	if f.proto == unix.NFPROTO_IPV6 {
		key = expr.CtKeySRCIP6
	}
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Ct{Key: key, Register: reg(at), Direction: expr.CtDirOriginal}, f.size/4)
	}
}

// ctDaddr is "ct original ip daddr", ctDport "ct original proto-dst": what a
// translated flow's client dialled.
func ctDaddr(f family) field {
	key := expr.CtKeyDSTIP
	if f.proto == unix.NFPROTO_IPV6 {
		key = expr.CtKeyDSTIP6
	}
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Ct{Key: key, Register: reg(at), Direction: expr.CtDirOriginal}, f.size/4)
	}
}

func ctDport() field {
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg(at), Direction: expr.CtDirOriginal}, 1)
	}
}

// scratch is where what is hashed or compared besides is loaded: behind the
// longest key, an IPv6 service with its slot.
const scratch = 8

// choice loads what the lane hashes, if it does, and returns the field with the
// number of the slot.
func choice(l lane, f family) ([]expr.Any, field) {
	words, seed := f.size/4, uint32(sourceSeed)
	var load []expr.Any
	switch l.by {
	case RoundRobin, Random:
		kind := uint32(unix.NFT_NG_INCREMENTAL)
		if l.by == Random {
			kind = unix.NFT_NG_RANDOM
		}
		return nil, func(at uint32) ([]expr.Any, uint32) {
			return one(&expr.Numgen{Register: reg(at), Modulus: uint32(l.mod), Type: kind}, 1)
		}
	case SourceHash:
		load = concatAt(scratch, saddr(f))
	case FlowHash:
		load = concatAt(scratch, saddr(f), sport())
		words, seed = words+1, flowSeed
	}
	return load, func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Hash{
			SourceRegister: reg(scratch), DestRegister: reg(at), Length: 4 * words,
			Modulus: uint32(l.mod), Seed: seed, Type: expr.HashTypeJenkins,
		}, 1)
	}
}

// concat loads fields one after the other, from register 0.
func concat(fields ...field) []expr.Any { return concatAt(0, fields...) }

func concatAt(at uint32, fields ...field) []expr.Any {
	var r []expr.Any
	for _, f := range fields {
		e, n := f(at)
		r = append(r, e...)
		at += n
	}
	return r
}

// in is "<what was loaded> @name".
func in(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(0), SetName: name}}
}

// notIn is "<what was loaded> != @name".
func notIn(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(0), SetName: name, Invert: true}}
}

// verdict is "<what was loaded> vmap @name".
func verdict(name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(0), SetName: name, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT}}
}

// value is "<what was loaded> map @name", leaving the value from register 0 on.
func value(name string) []expr.Any { return valueAt(0, name) }

func valueAt(at uint32, name string) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: reg(at), SetName: name, IsDestRegSet: true, DestRegister: reg(at)}}
}

// spare is the last register, behind every key to which a value is noted.
const spare = 15

// update is "update @name { <what was loaded> timeout t : data }".
func update(name string, t time.Duration, data field) []expr.Any {
	e, _ := data(spare)
	return append(e, &expr.Dynset{
		SrcRegKey: reg(0), SrcRegData: reg(spare), SetName: name,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: t,
	})
}

// rarely is "update @name { <what was loaded> timeout 10s limit rate 10/second }":
// of those loaded alike, a few in each second go on.
func rarely(name string) []expr.Any {
	return each(name, 10*time.Second, &expr.Limit{Type: expr.LimitTypePkts, Rate: 10, Unit: expr.LimitTimeSecond, Burst: 5})
}

// each is "update @name { <what was loaded> timeout t x }", where each key has
// its own x and goes on if that says so; without a timeout it is "add".
func each(name string, t time.Duration, x expr.Any) []expr.Any {
	op := uint32(unix.NFT_DYNSET_OP_UPDATE)
	if t == 0 {
		op = unix.NFT_DYNSET_OP_ADD
	}
	return []expr.Any{&expr.Dynset{SrcRegKey: reg(0), SetName: name, Operation: op, Timeout: t, Exprs: []expr.Any{x}}}
}

// log is "log prefix … group … snaplen … queue-threshold 1".
func log() []expr.Any {
	return []expr.Any{&expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
		Group: LogGroup, Data: []byte(LogPrefix), Snaplen: 128,
		// At once, not in company.
		QThreshold: 1,
	}}
}

// forget is "delete @name { <what was loaded> : ct mark }", whatever the value
// is; a value must be there.
func forget(name string) []expr.Any {
	const opDelete = 2 // NFT_DYNSET_OP_DELETE
	e, _ := mark()(spare)
	return append(e, &expr.Dynset{SrcRegKey: reg(0), SrcRegData: reg(spare), SetName: name, Operation: opDelete})
}

// mark is "ct mark", whole.
func mark() field {
	return func(at uint32) ([]expr.Any, uint32) {
		return one(&expr.Ct{Key: expr.CtKeyMARK, Register: reg(at)}, 1)
	}
}

// noMark is "ct mark == 0", or another comparison with 0.
func noMark(op expr.CmpOp) []expr.Any {
	return append(concat(mark()), &expr.Cmp{Op: op, Register: reg(0), Data: native(0)})
}

// markFrom is "ct mark set" what lies in register at.
func markFrom(at uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg(at), SourceRegister: true}}
}

// setMark is "ct mark set v", by way of register at.
func setMark(at, v uint32) []expr.Any {
	return append([]expr.Any{&expr.Immediate{Register: reg(at), Data: native(v)}}, markFrom(at)...)
}

func giveUp() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}} }

// member is the number of the backend that the packet is on its way to (see
// memberID), from the registers behind an IPv6 service with its client.
func member(f family) field {
	const from = 10
	return func(at uint32) ([]expr.Any, uint32) {
		return append(concatAt(from, daddr(f), dport()), &expr.Hash{
			SourceRegister: reg(from), DestRegister: reg(at), Length: f.size + 4,
			Modulus: memberModulus, Offset: memberOffset, Seed: memberSeed, Type: expr.HashTypeJenkins,
		}), 1
	}
}

func drop() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}} }
func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}
func accept() []expr.Any { return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}} }

// ctMark is "ct mark & mask == mark", noCTMark its opposite.
func ctMark() []expr.Any   { return marked(expr.CmpOpEq) }
func noCTMark() []expr.Any { return marked(expr.CmpOpNeq) }

func marked(op expr.CmpOp) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(CTMask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: reg(0), Data: native(CTMark)},
	}
}

// setCTMark is "ct mark set ct mark & ~mask | mark". It works in register at,
// since the backend waits in the registers below.
func setCTMark(at uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg(at)},
		&expr.Bitwise{SourceRegister: reg(at), DestRegister: reg(at), Len: 4, Mask: native(^uint32(CTMask)), Xor: native(CTMark)},
		&expr.Ct{Key: expr.CtKeyMARK, Register: reg(at), SourceRegister: true},
	}
}

// packetMark is "meta mark & mask == mark".
func packetMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(PacketMask), Xor: native(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native(PacketMark)},
	}
}

// setPacketMark is "meta mark set meta mark & ~mask | mark".
func setPacketMark() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(^uint32(PacketMask)), Xor: native(PacketMark)},
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0), SourceRegister: true},
	}
}

// ctState is "ct state <bits>", noCTState its opposite.
func ctState(bits uint32) []expr.Any   { return ctBits(expr.CtKeySTATE, expr.CmpOpNeq, bits) }
func noCTState(bits uint32) []expr.Any { return ctBits(expr.CtKeySTATE, expr.CmpOpEq, bits) }

const ipsDstNAT = 1 << 5 // IPS_DST_NAT

// isDNAT is "ct status dnat", notDNAT its opposite.
func isDNAT() []expr.Any  { return ctBits(expr.CtKeySTATUS, expr.CmpOpNeq, ipsDstNAT) }
func notDNAT() []expr.Any { return ctBits(expr.CtKeySTATUS, expr.CmpOpEq, ipsDstNAT) }

const ipsAssured = 1 << 2 // IPS_ASSURED

// notAssured is "ct status != assured": of TCP, the kernel has not seen the
// client acknowledge the server's SYN-ACK yet.
func notAssured() []expr.Any { return ctBits(expr.CtKeySTATUS, expr.CmpOpEq, ipsAssured) }

func ctBits(key expr.CtKey, op expr.CmpOp, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg(0)},
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: native(bits), Xor: native(0)},
		&expr.Cmp{Op: op, Register: reg(0), Data: native(0)},
	}
}

// isReply is "ct direction reply".
func isReply() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg(0)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{reply}},
	}
}

// returnsByInput is "fib daddr . iif oif exists": the way to the destination
// leads back through the interface that the packet came in by.
func returnsByInput() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), ResultOIF: true, FlagDADDR: true, FlagIIF: true, FlagPRESENT: true},
		// The kernel stores one byte and clears the rest of the register. nft
		// before 1.0.8 compares all four and lists only this well.
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{1, 0, 0, 0}},
	}
}

// isLocal is "fib daddr type local": the destination is an address of this host.
func isLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(0), ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: native(unix.RTN_LOCAL)},
	}
}

// fromLocal is "fib saddr type local". It spares the lower registers, where an
// address waits.
func fromLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: reg(scratch), ResultADDRTYPE: true, FlagSADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(scratch), Data: native(unix.RTN_LOCAL)},
	}
}

// toLoopback is "ip6 daddr ::1".
func toLoopback(f family) []expr.Any {
	a := netip.IPv6Loopback()
	return append(concat(daddr(f)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: a.AsSlice()})
}

// hasData is "@ih,0,8 >= 0": there is a byte behind the transport header. For a
// packet without, the kernel ends the rule.
func hasData() []expr.Any {
	const innerHeader = 3 // NFT_PAYLOAD_INNER_HEADER, Linux 5.16
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: innerHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: reg(0), Data: []byte{0}},
	}
}

// fromLoopback is "ip saddr 127.0.0.0/8".
func fromLoopback(f family) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: reg(0), Base: expr.PayloadBaseNetworkHeader, Offset: f.saddr, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{127}},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func notrack() []expr.Any { return []expr.Any{&expr.Notrack{}} }

// pose is "snat to": it gives the flow the source that lies in register 0 and on.
func pose(f family) []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeSourceNAT, Family: uint32(f.proto), RegAddrMin: reg(0), RegProtoMin: reg(f.size / 4),
	}}
}

// deliver sends the flow to the backend that lies in register 0 and on, and
// marks it ours. The mark is set only here, so that a flow that found no
// backend stays a stranger.
func deliver(f family) []expr.Any { return append(setCTMark(f.size/4+1), send(f)...) }

// send is "dnat to" what lies in register 0 and on.
func send(f family) []expr.Any {
	return []expr.Any{&expr.NAT{
		Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg(0), RegProtoMin: reg(f.size / 4),
	}}
}
