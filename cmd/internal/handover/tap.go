package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// tap sees what backends send and hands it out by connection: one socket for a
// whole batch, since sockets of their own would each see all the others'
// packets. It taps every device before any rule: with a bridge and
// net.bridge.bridge-nf-call-iptables=1 a frozen SYN-ACK is dropped at the bridge
// port, before a socket for the protocol IP would see it.
type tap struct {
	file *os.File
	done chan struct{}

	mu    sync.Mutex
	peers map[pair]*peer
}

type pair struct{ backend, client netip.AddrPort }

// snapLength holds any IP and TCP header.
const snapLength = 160

// openTap starts to listen for packets from the given addresses, in the network
// namespace of the calling thread.
func openTap(backends []netip.Addr) (*tap, error) {
	// Protocol 0 until the filter is in place: nothing is received before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := bindTap(fd, backends); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	t := &tap{
		file:  os.NewFile(uintptr(fd), "tap"),
		done:  make(chan struct{}),
		peers: make(map[pair]*peer),
	}
	go t.run()
	return t, nil
}

func bindTap(fd int, backends []netip.Addr) error {
	prog, err := bpf.Assemble(tapFilter(backends))
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	// Else the kernel copies every packet this host sends, only to filter it.
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		return fmt.Errorf("size receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// maxFilterAddrs keeps the filter short; jumps reach 255 instructions.
const maxFilterAddrs = 64

// tapFilter passes the headers of TCP packets from the given addresses (judged
// by their last 32 bits), or of all if they are many. The packet starts at its
// IP header.
func tapFilter(from []netip.Addr) []bpf.Instruction {
	var v4, v6 []uint32
	for _, a := range from {
		b := a.As16()
		low := uint32(b[12])<<24 | uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
		if a.Is4() {
			v4 = append(v4, low)
		} else {
			v6 = append(v6, low)
		}
	}
	prog := []bpf.Instruction{bpf.LoadExtension{Num: bpf.ExtProto}}
	b4, b6 := familyFilter(v4, 9, 12), familyFilter(v6, 6, 20)
	prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: uint8(len(b4))})
	prog = append(prog, b4...)
	prog = append(prog, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IPV6, SkipTrue: uint8(len(b6))})
	prog = append(prog, b6...)
	return append(prog, bpf.RetConstant{Val: 0})
}

// familyFilter decides by the protocol byte and the 32 bits at src.
func familyFilter(addrs []uint32, proto, src uint32) []bpf.Instruction {
	slices.Sort(addrs)
	addrs = slices.Compact(addrs)
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: proto, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
	}
	if len(addrs) > maxFilterAddrs {
		return append(prog, bpf.RetConstant{Val: snapLength})
	}
	prog = append(prog, bpf.LoadAbsolute{Off: src, Size: 4})
	for i, a := range addrs {
		// Over the other comparisons and the refusal.
		prog = append(prog, bpf.JumpIf{Cond: bpf.JumpEqual, Val: a, SkipTrue: uint8(len(addrs) - i)})
	}
	return append(prog, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: snapLength})
}

func (t *tap) run() {
	defer close(t.done)
	b := make([]byte, 2048)
	for {
		n, err := t.file.Read(b)
		if err != nil {
			return // closed; on anything else attempts run into their deadlines
		}
		s, err := parse(b[:n])
		if err != nil {
			continue
		}
		t.mu.Lock()
		p := t.peers[pair{s.src, s.dst}]
		t.mu.Unlock()
		if p != nil {
			p.see(&s)
		}
	}
}

// watch registers for what backend sends to client, until forget.
func (t *tap) watch(k pair) *peer {
	p := &peer{wake: make(chan struct{}, 1)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[k] = p
	return p
}

func (t *tap) forget(k pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, k)
}

// close ends the reader. The socket itself is closed on the side: the kernel
// makes that wait for a grace period of several milliseconds.
func (t *tap) close() {
	_ = t.file.SetReadDeadline(time.Unix(1, 0))
	<-t.done
	go t.file.Close()
}

// peer is what has been seen of a backend's side of one connection.
type peer struct {
	wake chan struct{} // holds a token when there is news

	mu   sync.Mutex
	news sighting
}

// sighting sums up segments, so that one seen twice (on a bridge port and on the
// bridge) or missed does no harm.
type sighting struct {
	synack *segment // without data
	reset  bool
	acks   int    // plain ACKs seen
	acked  uint32 // the highest of them, if any
	window uint16 // the largest that came with it
}

func (p *peer) see(s *segment) {
	p.mu.Lock()
	switch n := &p.news; {
	case s.flags&flagRST != 0:
		n.reset = true
	case s.flags&(flagSYN|flagACK) == flagSYN|flagACK:
		if n.synack == nil {
			c := *s
			c.data = nil
			n.synack = &c
		}
	case s.flags&flagACK != 0:
		switch {
		case n.acks == 0 || before(n.acked, s.ack):
			n.acked, n.window = s.ack, s.window
		case n.acked == s.ack:
			n.window = max(n.window, s.window)
		}
		n.acks++
	}
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

func (p *peer) look() sighting {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
