package handover

import (
	"net/netip"
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	// snapLength holds any IP and TCP header.
	snapLength = 160
	// maxFilterAddrs keeps filters short; from so many on all pass.
	maxFilterAddrs = 64
	// maxFilterPorts of each family keep them within the kernel's 4096
	// instructions; with more, neighbouring ports pass as well.
	maxFilterPorts = 512
	// maxPlain is the length from which on a packet is not looked at for what it
	// acknowledges. A socket's buffer is charged with the whole of a packet, of
	// up to 64 KiB, and there always is a short one: for what is sent twice.
	maxPlain = 300
	// portLeaf is how many ports are compared one by one.
	portLeaf = 4
)

// Offsets from the start of a TCP header.
const (
	offPorts = 0
	offPort  = 2 // the destination's
	offFlags = 13
)

// answerFilter passes the SYN-ACKs and resets from the given addresses. The packet
// starts at its IP header. Addresses are compared by their last 32 bits.
func answerFilter(from []netip.Addr) []bpf.Instruction {
	return bothFamilies(func(is4 bool) []bpf.Instruction {
		return append(tcpFrom(is4, from), append(loadTCP(is4, offFlags, 1),
			bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: flagSYN | flagRST, SkipTrue: 1},
			bpf.RetConstant{Val: snapLength},
			bpf.RetConstant{Val: 0})...)
	})
}

// progressFilter passes short packets from the given addresses to the ports of the
// watched clients, and those from client to backend of the followed.
func progressFilter(from []netip.Addr, watched, followed []pair) []bpf.Instruction {
	prog := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtLen},
		bpf.JumpIf{Cond: bpf.JumpLessOrEqual, Val: maxPlain, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	return append(prog, bothFamilies(func(is4 bool) []bpf.Instruction {
		ports, shift := portSet(is4, watched)
		block := pairFilter(is4, followed)
		block = append(block, tcpFrom(is4, from)...)
		block = append(block, loadTCP(is4, offPort, 2)...)
		block = append(block, bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: shift})
		return append(block, portTree(ports)...)
	})...)
}

// bothFamilies tells them by the protocol of the frame.
func bothFamilies(block func(is4 bool) []bpf.Instruction) []bpf.Instruction {
	prog := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}
	for _, f := range []struct {
		is4   bool
		proto uint32 // ethertype
	}{{true, unix.ETH_P_IP}, {false, unix.ETH_P_IPV6}} {
		b := block(f.is4)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: f.proto, SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(b))})
		prog = append(prog, b...)
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

// tcpFrom goes on with TCP packets from the given addresses.
func tcpFrom(is4 bool, from []netip.Addr) []bpf.Instruction {
	proto, src := uint32(6), uint32(8+12)
	if is4 {
		proto, src = 9, 12
	}
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: proto, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	addrs := make([]uint32, 0, len(from))
	for _, a := range from {
		if a.Is4() == is4 {
			addrs = append(addrs, low(a))
		}
	}
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	if len(addrs) > maxFilterAddrs {
		return prog
	}
	prog = append(prog, bpf.LoadAbsolute{Off: src, Size: 4})
	for i, a := range addrs {
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: a, SkipTrue: uint8(len(addrs) - i)})
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

// pairFilter passes the packets from client to backend, and goes on with others.
func pairFilter(is4 bool, pairs []pair) []bpf.Instruction {
	proto, src, dst := uint32(6), uint32(8+12), uint32(24+12)
	if is4 {
		proto, src, dst = 9, 12, 16
	}
	ports := loadTCP(is4, offPorts, 4)
	var prog []bpf.Instruction
	for _, p := range pairs {
		if p.client.Addr().Is4() != is4 {
			continue
		}
		prog = append(prog,
			bpf.LoadAbsolute{Off: src, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low(p.client.Addr()), SkipTrue: uint8(6 + len(ports))},
			bpf.LoadAbsolute{Off: dst, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low(p.backend.Addr()), SkipTrue: uint8(4 + len(ports))},
			bpf.LoadAbsolute{Off: proto, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: uint8(2 + len(ports))})
		prog = append(prog, ports...)
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(p.client.Port())<<16 | uint32(p.backend.Port()), SkipTrue: 1},
			bpf.RetConstant{Val: snapLength})
	}
	return prog
}

// loadTCP loads what is found in a TCP header.
func loadTCP(is4 bool, off uint32, size int) []bpf.Instruction {
	if is4 {
		return []bpf.Instruction{bpf.LoadMemShift{Off: 0}, bpf.LoadIndirect{Off: off, Size: size}}
	}
	return []bpf.Instruction{bpf.LoadAbsolute{Off: v6Header + off, Size: size}}
}

// portSet returns the clients' ports in order, without so many of their low bits
// that they fit a filter.
func portSet(is4 bool, pairs []pair) (ports []uint16, shift uint32) {
	for ; ; shift++ {
		ports = make([]uint16, 0, len(pairs))
		for _, p := range pairs {
			if p.client.Addr().Is4() == is4 {
				ports = append(ports, p.client.Port()>>shift)
			}
		}
		slices.Sort(ports)
		if ports = slices.Compact(ports); len(ports) <= maxFilterPorts {
			return ports, shift
		}
	}
}

// portTree passes a packet if the port that is loaded is one of these, which are
// in order. It is a search by halves: a flood of packets goes through it.
func portTree(ports []uint16) []bpf.Instruction {
	var prog []bpf.Instruction
	if len(ports) > portLeaf {
		mid := len(ports) / 2
		left := portTree(ports[:mid])
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(ports[mid]), SkipTrue: 1},
			bpf.Jump{Skip: uint32(len(left))})
		return append(append(prog, left...), portTree(ports[mid:])...)
	}
	for _, p := range ports {
		prog = append(prog,
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(p), SkipTrue: 1},
			bpf.RetConstant{Val: snapLength})
	}
	return append(prog, bpf.RetConstant{Val: 0})
}

func low(a netip.Addr) uint32 {
	b := a.As16()
	return uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
}
