package handover

import (
	"net/netip"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// snapLength holds any IP and TCP header.
	snapLength = 160
	// maxFilterAddrs keeps the filter short; from so many on all pass.
	maxFilterAddrs = 64
	// maxFilterPairs keeps it within the kernel's 4096 instructions.
	maxFilterPairs = 128
)

// tapFilter passes the headers of TCP packets from the given addresses, and of
// those from client to backend of the given pairs. Addresses are compared by
// their last 32 bits. The packet starts at its IP header.
func tapFilter(from []netip.Addr, pairs []pair) []bpf.Instruction {
	prog := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}
	for _, f := range []struct {
		is4   bool
		proto uint32 // ethertype
	}{{true, unix.ETH_P_IP}, {false, unix.ETH_P_IPV6}} {
		block := familyFilter(f.is4, from, pairs)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: f.proto, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(block))})
		prog = append(prog, block...)
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

func familyFilter(is4 bool, from []netip.Addr, pairs []pair) []bpf.Instruction {
	pass := bpf.RetConstant{Val: snapLength}
	proto, src, dst := uint32(6), uint32(8+12), uint32(24+12)
	ports := []bpf.Instruction{bpf.LoadAbsolute{Off: v6Header, Size: 4}}
	if is4 {
		proto, src, dst = 9, 12, 16
		ports = []bpf.Instruction{bpf.LoadMemShift{Off: 0}, bpf.LoadIndirect{Off: 0, Size: 4}}
	}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: proto, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	for _, p := range pairs {
		if p.client.Addr().Is4() != is4 {
			continue
		}
		prog = append(prog,
			bpf.LoadAbsolute{Off: src, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low(p.client.Addr()), SkipTrue: uint8(4 + len(ports))},
			bpf.LoadAbsolute{Off: dst, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low(p.backend.Addr()), SkipTrue: uint8(2 + len(ports))})
		prog = append(prog, ports...)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(p.client.Port())<<16 | uint32(p.backend.Port()), SkipTrue: 1},
			pass)
	}
	prog = append(prog, bpf.LoadAbsolute{Off: src, Size: 4})
	known := make(map[uint32]bool)
	for _, a := range from {
		if a.Is4() == is4 && !known[low(a)] {
			known[low(a)] = true
			prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low(a), SkipTrue: 1}, pass)
		}
	}
	if len(known) > maxFilterAddrs {
		return []bpf.Instruction{prog[0], prog[1], prog[2], pass}
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

func low(a netip.Addr) uint32 {
	b := a.As16()
	return uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
}
