package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packetBuffer is room for some ten thousand short packets; the kernel doubles it.
const packetBuffer = 4 << 20

// packetSocket receives what a filter passes on every device, before any rule:
// with a bridge and net.bridge.bridge-nf-call-iptables=1 a frozen SYN-ACK is
// dropped at the bridge port, before a socket for the protocol IP would see it.
type packetSocket struct {
	file *os.File
	done chan struct{}
}

// openPacketSocket calls see for each TCP segment until the socket is closed. It
// belongs to the network namespace of the calling thread.
func openPacketSocket(filter []bpf.Instruction, see func(*segment)) (*packetSocket, error) {
	// Protocol 0 until the filter is in place: nothing is received before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := bindPacketSocket(fd, filter); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	s := &packetSocket{file: os.NewFile(uintptr(fd), "packets"), done: make(chan struct{})}
	go s.run(see)
	return s, nil
}

func bindPacketSocket(fd int, filter []bpf.Instruction) error {
	if err := attach(fd, filter); err != nil {
		return err
	}
	// Else the kernel copies every packet this host sends, only to filter it.
	if err := ignoreOutgoing(fd, true); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, packetBuffer); err != nil {
		return fmt.Errorf("size receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func (s *packetSocket) run(see func(*segment)) {
	defer close(s.done)
	b := make([]byte, 2048)
	for {
		n, err := s.file.Read(b)
		if err != nil {
			return // closed; on anything else attempts run into their deadlines
		}
		if seg, err := parse(b[:n]); err == nil {
			see(&seg)
		}
	}
}

// refilter puts a filter in the place of the one before. Packets that this host
// sends are seen only if outgoing is set.
func (s *packetSocket) refilter(filter []bpf.Instruction, outgoing bool) error {
	return s.control(func(fd int) error {
		return errors.Join(attach(fd, filter), ignoreOutgoing(fd, !outgoing))
	})
}

// dropped returns how many packets passed the filter since the last call, and how
// many of them found the buffer full.
func (s *packetSocket) dropped() (packets, drops uint32, err error) {
	err = s.control(func(fd int) error {
		n, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
		if err != nil {
			return fmt.Errorf("read packet statistics: %w", err)
		}
		packets, drops = n.Packets, n.Drops
		return nil
	})
	return packets, drops, err
}

func (s *packetSocket) control(f func(fd int) error) error {
	rc, err := s.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("packet socket: %w", err)
	}
	if cerr := rc.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return fmt.Errorf("packet socket: %w", cerr)
	}
	return err
}

// close ends the reader. The socket itself is closed on the side: the kernel
// makes that wait for a grace period of several milliseconds.
func (s *packetSocket) close() {
	_ = s.file.SetReadDeadline(time.Unix(1, 0))
	<-s.done
	go s.file.Close()
}

// attach puts a filter in the place of the one before, if any.
func attach(fd int, filter []bpf.Instruction) error {
	prog, err := bpf.Assemble(filter)
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
	return nil
}

func ignoreOutgoing(fd int, on bool) error {
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, v); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	return nil
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
