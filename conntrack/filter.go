package conntrack

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// eventFilter is a socket filter that keeps, of all conntrack events, those of
// entries whose mark is mark under mask, and of their updates those that can
// begin or end a connection. The kernel sends four to six updates per TCP
// connection, about each state and flag; the others are dropped before they
// cost buffer space or a wake-up.
//
// Kept are the finished states, and those that a finished entry can go to. The
// latter is needed because a connection may start again in the entry of an
// earlier one: if the last one ended by a RST of the server, the kernel ignores
// the new SYN, and when the SYN-ACK answers it, moves the entry from CLOSE
// straight to SYN_RECV, without DESTROY and NEW (nf_conntrack_proto_tcp.c).
func eventFilter(mark, mask uint32) ([]bpf.RawInstruction, error) {
	const (
		attrs = unix.NLMSG_HDRLEN + nfgenLen
		drop  = 0
		keep  = 0xffffffff
	)
	// Loads of more than a byte are big-endian, the header is native.
	typ, flags := uint32(4), uint32(7) // low byte of nlmsg_type, high byte of nlmsg_flags
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		typ, flags = 5, 6
	}
	prog := []bpf.Instruction{}
	if mask != 0 {
		prog = append(prog,
			bpf.LoadConstant{Dst: bpf.RegA, Val: attrs},
			bpf.LoadConstant{Dst: bpf.RegX, Val: ctaMark},
			bpf.LoadExtension{Num: bpf.ExtNetlinkAttr}, // A = offset of the attribute or 0
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
			bpf.RetConstant{Val: drop},
			bpf.TAX{},
			bpf.LoadIndirect{Off: nlaHeader, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: mask},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: mark & mask, SkipTrue: 1},
			bpf.RetConstant{Val: drop},
		)
	}
	prog = append(prog,
		bpf.LoadAbsolute{Off: typ, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: msgNew, SkipTrue: 1},
		bpf.RetConstant{Val: keep}, // DESTROY
		bpf.LoadAbsolute{Off: flags, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: (unix.NLM_F_CREATE | unix.NLM_F_EXCL) >> 8, SkipTrue: 1},
		bpf.RetConstant{Val: keep}, // NEW

		bpf.LoadConstant{Dst: bpf.RegA, Val: attrs},
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoInfo},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttr},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: drop}, // about something else
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoInfoTCP},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttrNested},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: drop}, // of another protocol
		bpf.LoadConstant{Dst: bpf.RegX, Val: ctaProtoInfoTCPState},
		bpf.LoadExtension{Num: bpf.ExtNetlinkAttrNested},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.TAX{},
		bpf.LoadIndirect{Off: nlaHeader, Size: 1},
	)
	for s := StateEstablished; s <= StateLastAck; s++ {
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(s), SkipTrue: 1},
			bpf.RetConstant{Val: drop},
		)
	}
	prog = append(prog, bpf.RetConstant{Val: keep})
	raw, err := bpf.Assemble(prog)
	if err != nil {
		return nil, fmt.Errorf("assemble event filter: %w", err)
	}
	return raw, nil
}
