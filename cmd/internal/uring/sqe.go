package uring

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Opcodes of include/uapi/linux/io_uring.h, as far as they are used.
const (
	opNop         = 0
	opPollAdd     = 6
	opAccept      = 13
	opAsyncCancel = 14
)

const (
	acceptMultishot = 1 << 0 // in IoPrio of an accept
	pollMultishot   = 1 << 0 // in Len of a poll
	cqeMore         = 1 << 1
)

// SQE is struct io_uring_sqe: one request. It is always written whole, so
// that nothing of the request that had the slot before it remains.
type SQE struct {
	Opcode, Flags         uint8
	IoPrio                uint16
	FD                    int32
	Off, Addr             uint64
	Len, OpFlags          uint32
	Data                  uint64
	BufIndex, Personality uint16
	FileIndex             uint32
	Addr3, pad            uint64
}

// Nop completes at once with result 0.
func Nop(data uint64) SQE { return SQE{Opcode: opNop, FD: -1, Data: data} }

// Accept takes one connection from the listening socket fd and completes.
// The result is a non-blocking, close-on-exec descriptor that belongs to
// whoever reads the completion.
func Accept(fd int, data uint64) SQE {
	return SQE{Opcode: opAccept, FD: int32(fd), OpFlags: unix.SOCK_NONBLOCK | unix.SOCK_CLOEXEC, Data: data}
}

// AcceptMultishot is Accept for every connection until it is cancelled or
// fails: one completion each, the last without More. See Ring.Multishot.
func AcceptMultishot(fd int, data uint64) SQE {
	s := Accept(fd, data)
	s.IoPrio = acceptMultishot
	return s
}

// PollMultishot completes each time fd is woken and readable. It does not
// read: an eventfd polled this way needs no draining.
func PollMultishot(fd int, data uint64) SQE {
	// The kernel wants the two halves of the mask swapped on big-endian.
	mask := uint32(unix.POLLIN)
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		mask <<= 16
	}
	return SQE{Opcode: opPollAdd, FD: int32(fd), OpFlags: mask, Len: pollMultishot, Data: data}
}

// Cancel ends the request that was made with the data target; that request
// completes with ECANCELED unless it completed otherwise first. Cancel's own
// completion, under data, is nil, ENOENT (no such request now) or EALREADY
// (it is running and may not end).
func Cancel(target, data uint64) SQE {
	return SQE{Opcode: opAsyncCancel, FD: -1, Addr: target, Data: data}
}

// CQE is struct io_uring_cqe: one completion.
type CQE struct {
	Data  uint64
	Res   int32 // result, or a negated errno
	Flags uint32
}

// More says that the request goes on and will complete again.
func (c CQE) More() bool { return c.Flags&cqeMore != 0 }

// Err is the request's error as a unix.Errno, nil for a result of 0 or above.
func (c CQE) Err() error {
	if c.Res < 0 {
		return unix.Errno(-c.Res)
	}
	return nil
}
