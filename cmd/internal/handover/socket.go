package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bits of tcpi_options, include/uapi/linux/tcp.h.
const (
	infoTimestamps = 1 << iota
	infoSACK
	infoScale
	infoECN
	infoECNSeen
	infoSynData
)

// TCP states, include/net/tcp_states.h.
const (
	stateEstablished = 1
	stateClose       = 7
	stateCloseWait   = 8
)

// Receive and send queue of TCP_REPAIR_QUEUE.
const (
	queueReceive = 1
	queueSend    = 2
)

// held is what a client's connection with this host has come to.
type held struct {
	isn      uint32 // the client's initial sequence number
	own      uint32 // ours
	mss      uint16 // the largest segment the client takes
	advmss   uint32 // the largest segment the client was told to send
	window   uint32 // the client's receive window, in bytes
	scaled   bool   // window scaling is in use
	theirs   uint8  // the client's window scale
	ours     uint8  // the window scale the client was told
	sack     bool
	ecn      bool
	finished bool   // FIN received
	data     []byte // received and acknowledged, in order
}

// tcpInfo is the part of struct tcp_info that matters here.
type tcpInfo struct {
	state, options uint8
	theirs, ours   uint8
	advmss         uint32
	received, sent uint64 // bytes; a FIN counts as one received
}

// Offsets in struct tcp_info. The window scales are two 4-bit fields in byte 6,
// which x/sys/unix.TCPInfo leaves out.
const (
	offScale    = 6
	offAdvmss   = 84
	offReceived = 128
	offSent     = 200
	infoSize    = 208
)

func readInfo(fd int) (tcpInfo, error) {
	var b [infoSize]byte
	n, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_INFO, b[:])
	if err != nil {
		return tcpInfo{}, fmt.Errorf("read tcp info: %w", err)
	}
	if n < infoSize {
		// tcpi_bytes_sent came with 4.19.
		return tcpInfo{}, fmt.Errorf("read tcp info: %d bytes: %w", n, errors.ErrUnsupported)
	}
	return parseInfo(&b), nil
}

func parseInfo(b *[infoSize]byte) tcpInfo {
	return tcpInfo{
		state:    b[0],
		options:  b[5],
		theirs:   bitfield(b[offScale], 0),
		ours:     bitfield(b[offScale], 1),
		advmss:   binary.NativeEndian.Uint32(b[offAdvmss:]),
		received: binary.NativeEndian.Uint64(b[offReceived:]),
		sent:     binary.NativeEndian.Uint64(b[offSent:]),
	}
}

// bitfield returns the n-th declared of two 4-bit fields of a byte: compilers
// fill from the low end on little-endian machines, from the high end on others.
func bitfield(b byte, n int) uint8 {
	little := binary.NativeEndian.Uint16([]byte{1, 0}) == 1
	if little == (n == 0) {
		return b & 15
	}
	return b >> 4
}

// refuse tells from a socket's state alone whether it can be handed over.
func (i tcpInfo) refuse() Reason {
	switch {
	case i.state == stateClose:
		return Gone
	case i.state == stateCloseWait:
		return HalfClosed
	case i.state != stateEstablished, i.sent != 0:
		return Used
	case i.options&(infoTimestamps|infoSynData) != 0:
		return Options
	}
	return ""
}

// inspect reads a frozen socket. The socket is in repair mode for that time
// only: a process killed in between leaves a client that is reset rather than
// one that is never answered.
func inspect(fd int) (*held, Reason, error) {
	urgent, gone, err := pending(fd)
	switch {
	case err != nil:
		return nil, Unable, err
	case gone:
		return nil, Gone, nil
	case urgent:
		return nil, Urgent, nil
	}
	if err := repair(fd, true); err != nil {
		return nil, Unable, err
	}
	h, info, err := read(fd)
	if err := errors.Join(err, repair(fd, false)); err != nil {
		return nil, Unable, err
	}
	if r := info.refuse(); r != "" && r != HalfClosed {
		return h, r, nil
	}
	if h.finished {
		return h, HalfClosed, nil
	}
	// A byte that the caller has read, or an urgent one, is not in the queue.
	if info.received != uint64(len(h.data)) {
		return h, Used, nil
	}
	return h, "", nil
}

// pending reports urgent data and an error of the connection.
func pending(fd int) (urgent, gone bool, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}
	if _, err := ignoringEINTR(func() (int, error) { return unix.Poll(p, 0) }); err != nil {
		return false, false, fmt.Errorf("poll socket: %w", err)
	}
	return p[0].Revents&unix.POLLPRI != 0, p[0].Revents&unix.POLLERR != 0, nil
}

// read expects repair mode. Segments that passed the frozen rule just before it
// was set may still arrive: it reads until nothing has moved in between.
func read(fd int) (*held, tcpInfo, error) {
	for {
		info, err := readInfo(fd)
		if err != nil {
			return nil, info, err
		}
		h, err := readHeld(fd, info)
		if err != nil {
			return nil, info, err
		}
		again, err := readInfo(fd)
		if err != nil {
			return nil, info, err
		}
		if again.state == info.state && again.received == info.received {
			return h, info, nil
		}
	}
}

func readHeld(fd int, info tcpInfo) (*held, error) {
	next, err := queueSeq(fd, queueSend)
	if err != nil {
		return nil, err
	}
	expect, err := queueSeq(fd, queueReceive)
	if err != nil {
		return nil, err
	}
	// In repair mode this is what the client's SYN said, not what the path takes.
	mss, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_MAXSEG)
	if err != nil {
		return nil, fmt.Errorf("read segment size: %w", err)
	}
	// struct tcp_repair_window: snd_wl1, snd_wnd, max_window, rcv_wnd, rcv_wup.
	var w [20]byte
	if _, err := getsockopt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_WINDOW, w[:]); err != nil {
		return nil, fmt.Errorf("read window: %w", err)
	}
	data, err := peek(fd, int(info.received))
	if err != nil {
		return nil, err
	}
	h := &held{
		isn:      expect - uint32(info.received) - 1,
		own:      next - 1,
		mss:      uint16(min(mss, 65535)),
		advmss:   info.advmss,
		window:   binary.NativeEndian.Uint32(w[4:]),
		scaled:   info.options&infoScale != 0,
		theirs:   info.theirs,
		ours:     info.ours,
		sack:     info.options&infoSACK != 0,
		ecn:      info.options&infoECN != 0,
		finished: info.state == stateCloseWait,
		data:     data,
	}
	return h, nil
}

// peek copies up to n bytes of the receive queue and leaves them there.
func peek(fd, n int) ([]byte, error) {
	if n == 0 {
		return nil, nil
	}
	b := make([]byte, n)
	n, err := ignoringEINTR(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		return n, err
	})
	switch {
	case errors.Is(err, unix.EAGAIN):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("peek received data: %w", err)
	}
	return b[:n], nil
}

func queueSeq(fd, queue int) (uint32, error) {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, queue); err != nil {
		return 0, fmt.Errorf("select queue: %w", err)
	}
	n, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return 0, fmt.Errorf("read sequence number: %w", err)
	}
	return uint32(n), nil
}

// repair switches repair mode. Switching off sends no window probe, and gives
// back SO_REUSEADDR, which the kernel drops then: without it a relayed
// connection would keep the address from being listened on again.
func repair(fd int, on bool) error {
	mode := unix.TCP_REPAIR_OFF_NO_WP
	if on {
		mode = unix.TCP_REPAIR_ON
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, mode); err != nil {
		return fmt.Errorf("switch repair mode: %w", err)
	}
	if on {
		return nil
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return fmt.Errorf("reuse address: %w", err)
	}
	return nil
}

// abortive makes closing the socket, also by the end of the process, a reset.
func abortive(fd int, on bool) error {
	l := unix.Linger{}
	if on {
		l.Onoff = 1
	}
	if err := unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &l); err != nil {
		return fmt.Errorf("set linger: %w", err)
	}
	return nil
}

// disconnect does what closing an abortive socket does, to whoever has it.
func disconnect(fd int) error {
	unspec := [2]byte{} // a sockaddr that is no more than AF_UNSPEC
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec[0])), unsafe.Sizeof(unspec)); errno != 0 {
		return errno
	}
	return nil
}

// getsockopt reads an option of any length; those of x/sys/unix stop at a NUL
// or know the type.
func getsockopt(fd, level, name int, b []byte) (int, error) {
	n := uint32(len(b))
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name),
		uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
