// Package uring is the small part of io_uring that an accept loop needs:
// accept in both kinds, cancel, poll, and waiting with a time-out. It uses no
// cgo and no linkname.
//
// The rings are made with SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1). So a
// request makes progress only while the ring's own thread waits in it: no
// other thread of the program has a system call interrupted on its behalf,
// no request is lost because the thread that made it has ended, and a cancel
// and the accept that it is aimed at never run at the same time.
package uring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7
	setupSingleIssuer = 1 << 12
	setupDeferTaskrun = 1 << 13

	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	featSingleMmap = 1 << 0
	featNoDrop     = 1 << 1
	featExtArg     = 1 << 8
	featBundle     = 1 << 14 // Linux 6.10

	offSQEs = 0x10000000
)

// params is struct io_uring_params with its two offset structs.
type params struct {
	sqEntries, cqEntries, flags, cpu, idle, features, wqFD uint32

	_  [3]uint32
	sq struct {
		head, tail, mask, entries, flags, dropped, array, _ uint32
		_                                                   uint64
	}
	cq struct {
		head, tail, mask, entries, overflow, cqes, flags, _ uint32
		_                                                   uint64
	}
}

// waitArg is struct io_uring_getevents_arg.
type waitArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWait   uint32
	ts        uint64
}

// Ring is one submission and one completion queue. All its methods, and Open
// itself, must be called on one and the same operating system thread: see
// runtime.LockOSThread. To wake a waiter from elsewhere, let the ring poll an
// eventfd.
type Ring struct {
	fd       int
	features uint32
	rings    []byte // both queues' heads, tails and the completions
	slots    []byte // the requests

	sqHead, sqTail *uint32
	sqes           []SQE
	tail           uint32 // of the requests written; *sqTail follows on submission
	cqHead, cqTail *uint32
	cqes           []CQE

	arg waitArg
	ts  unix.Timespec
	pin runtime.Pinner // arg holds the address of ts as a number
}

// Open makes a ring of at least that many requests (per submission) and
// completions (unread), both rounded up to a power of two. More completions
// than that are kept by the kernel, but end multishot requests. An error says
// why io_uring cannot be used here; it wraps the system call's errno.
func Open(requests, completions uint32) (*Ring, error) {
	p := params{
		cqEntries: completions,
		flags:     setupCQSize | setupClamp | setupSubmitAll | setupSingleIssuer | setupDeferTaskrun,
	}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(requests), uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, setupError(errno, disabledPath)
	}
	r := &Ring{fd: int(fd), features: p.features}
	if err := r.start(&p); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

func (r *Ring) start(p *params) error {
	if err := r.suitable(); err != nil {
		return err
	}
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+p.cqEntries*uint32(unsafe.Sizeof(CQE{})))
	prot, flags := unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE
	var err error
	if r.rings, err = unix.Mmap(r.fd, 0, int(size), prot, flags); err != nil {
		return fmt.Errorf("map io_uring queues: %w", err)
	}
	if r.slots, err = unix.Mmap(r.fd, offSQEs, int(p.sqEntries)*int(unsafe.Sizeof(SQE{})), prot, flags); err != nil {
		return fmt.Errorf("map io_uring requests: %w", err)
	}

	word := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail = word(p.sq.head), word(p.sq.tail)
	r.cqHead, r.cqTail = word(p.cq.head), word(p.cq.tail)
	r.sqes = unsafe.Slice((*SQE)(unsafe.Pointer(&r.slots[0])), p.sqEntries)
	r.cqes = unsafe.Slice((*CQE)(unsafe.Pointer(&r.rings[p.cq.cqes])), p.cqEntries)
	// The kernel's level of indirection between queue and slots is of no use
	// here: entry i is slot i for good.
	for i, array := uint32(0), unsafe.Slice(word(p.sq.array), p.sqEntries); i < p.sqEntries; i++ {
		array[i] = i
	}
	r.pin.Pin(r)
	r.arg.ts = uint64(uintptr(unsafe.Pointer(&r.ts)))
	return nil
}

// Close ends the ring. Requests still in it are cancelled by the kernel a
// little later, and until then keep their files: whoever wants a listening
// port free cancels and waits first.
func (r *Ring) Close() error {
	r.pin.Unpin()
	var errs []error
	for _, m := range [][]byte{r.rings, r.slots} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	errs = append(errs, unix.Close(r.fd))
	return errors.Join(errs...)
}

// Multishot says whether AcceptMultishot is safe to use. Before Linux 6.8 a
// multishot accept that met a full completion queue lost the connection and
// reported its poll mask (0xc3) as if it were the descriptor: some other file
// of the program. The fix carries no mark, so this asks for one of 6.10's.
func (r *Ring) Multishot() bool { return r.features&featBundle != 0 }

// Push queues a request, which the kernel gets at the next Wait, or now if
// the queue is full. After an error the request is not queued.
func (r *Ring) Push(s SQE) error {
	if r.tail-atomic.LoadUint32(r.sqHead) == uint32(len(r.sqes)) {
		if err := r.enter(0, 0, nil, 0); err != nil {
			return err
		}
		if r.tail-atomic.LoadUint32(r.sqHead) == uint32(len(r.sqes)) {
			return fmt.Errorf("io_uring_enter: %w", unix.EBUSY)
		}
	}
	r.sqes[r.tail&uint32(len(r.sqes)-1)] = s
	r.tail++
	atomic.StoreUint32(r.sqTail, r.tail)
	return nil
}

// Wait submits what was pushed and blocks until there is a completion or the
// timeout is over; a negative one never is. It may also return early with
// nothing to read. An error other than EAGAIN, EBUSY or ENOMEM means that the
// ring is of no more use: EBADR says that the kernel had to drop completions.
func (r *Ring) Wait(timeout time.Duration) error {
	if atomic.LoadUint32(r.cqTail) != atomic.LoadUint32(r.cqHead) {
		timeout = 0
	}
	arg := r.arg
	if timeout < 0 {
		arg.ts = 0
	} else {
		r.ts = unix.NsecToTimespec(int64(timeout))
	}
	want := uintptr(1)
	if timeout == 0 {
		want = 0
	}
	return r.enter(want, enterGetEvents|enterExtArg, unsafe.Pointer(&arg), unsafe.Sizeof(arg))
}

// Next takes the oldest completion out of the queue.
func (r *Ring) Next() (CQE, bool) {
	head := *r.cqHead // only this thread writes it
	if head == atomic.LoadUint32(r.cqTail) {
		return CQE{}, false
	}
	c := r.cqes[head&uint32(len(r.cqes)-1)]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

func (r *Ring) enter(want, flags uintptr, arg unsafe.Pointer, size uintptr) error {
	pending := r.tail - atomic.LoadUint32(r.sqHead)
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(pending), want, flags, uintptr(arg), size)
	switch errno {
	case 0, unix.EINTR, unix.ETIME:
		return nil
	}
	return os.NewSyscallError("io_uring_enter", errno)
}
