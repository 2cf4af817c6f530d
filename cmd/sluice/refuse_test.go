package main

import (
	"encoding/binary"
	"log"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// noUring in its environment makes the command do without io_uring, as under a
// seccomp profile that does not know it.
const noUring = "SLUICE_TEST_NO_IO_URING"

// refuse lets a system call fail with ENOSYS in this process from now on.
func refuse(nr uint32) {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // seccomp_data.nr
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: nr, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		log.Fatal(err)
	}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC,
		uintptr(unsafe.Pointer(&prog))) //nolint:gosec // seccomp(2) takes a pointer
	if e != 0 {
		log.Fatal(e)
	}
}

// reportLeast is the least that a write(2) has to have to be reported: a header
// of netfilter.
const reportLeast = 20

// reportCalls lets whoever has the descriptor that it returns decide from now on
// about what this process sends to netlink, among other things, and about io_uring.
func reportCalls() (listener int) {
	const number, length = 0, 16 + 2*8 // in seccomp_data; the low half, little-endian
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: number},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SENDMSG, Jt: 6},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_URING_ENTER, Jt: 5},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_IO_URING_SETUP, Jt: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_WRITE, Jf: 2},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: length},
		{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, K: reportLeast, Jt: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// Go's signals are not to disturb a call that is being decided about.
	const flags = unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		log.Fatal(e)
	}
	return int(fd)
}

// syscallMade is a system call that another process wants to make: struct seccomp_notif.
type syscallMade struct {
	id         uint64
	pid, flags uint32
	nr         int32
	arch       uint32
	ip         uint64
	args       [6]uint64
}

// answer takes one call and decides about it.
func answer(listener int, verdict func(syscallMade) unix.Errno) error {
	var c syscallMade
	_, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&c)))
	if e == unix.ENOENT || e == unix.EINTR {
		return nil // it has been given up
	}
	if e != 0 {
		return os.NewSyscallError("take a call", e)
	}
	resp := struct { // struct seccomp_notif_resp
		id    uint64
		val   int64
		err   int32
		flags uint32
	}{id: c.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	if errno := verdict(c); errno != 0 {
		resp.err, resp.flags = -int32(errno), 0
	}
	_, _, e = unix.Syscall(unix.SYS_IOCTL, uintptr(listener), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&resp)))
	if e == unix.ENOENT {
		return nil
	}
	if e != 0 {
		return os.NewSyscallError("answer a call", e)
	}
	return nil
}

// message is the beginning of what a call would send.
func (c syscallMade) message() []byte {
	read := func(addr, n uint64) []byte {
		b := make([]byte, n)
		got, err := unix.ProcessVMReadv(int(c.pid), []unix.Iovec{{Base: &b[0], Len: n}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: int(n)}}, 0)
		if err != nil {
			return nil // it has ended
		}
		return b[:got]
	}
	addr, n := c.args[1], c.args[2]
	if c.nr == unix.SYS_SENDMSG {
		header := read(addr, 32) // struct msghdr, up to msg_iovlen
		if len(header) < 32 {
			return nil
		}
		iov := read(binary.NativeEndian.Uint64(header[16:]), 16)
		if len(iov) < 16 {
			return nil
		}
		addr, n = binary.NativeEndian.Uint64(iov), binary.NativeEndian.Uint64(iov[8:])
	}
	if n < reportLeast {
		return nil
	}
	return read(addr, reportLeast)
}
