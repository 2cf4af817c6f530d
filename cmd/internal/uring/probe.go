package uring

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	registerProbe  = 8
	probeSupported = 1 << 0
)

// disabledPath is 0 (anyone), 1 (CAP_SYS_ADMIN or kernel.io_uring_group) or
// 2 (nobody), since Linux 6.6 and in RHEL 9, where 2 is the default.
const disabledPath = "/proc/sys/kernel/io_uring_disabled"

// Probe makes a ring and ends it again. Its error says, for a person to
// read, why io_uring cannot be used.
func Probe() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	r, err := Open(4, 4)
	if err != nil {
		return err
	}
	return r.Close()
}

func setupError(errno unix.Errno, disabledPath string) error {
	err := os.NewSyscallError("io_uring_setup", errno)
	why := ""
	switch errno {
	case unix.EPERM:
		why = "refused by seccomp or a security module"
		b, _ := os.ReadFile(disabledPath)
		if v := strings.TrimSpace(string(b)); v != "" && v != "0" {
			why = "kernel.io_uring_disabled=" + v
		}
	case unix.ENOSYS:
		why = "blocked by seccomp, or not in this kernel"
	case unix.EINVAL:
		why = "needs Linux 6.1"
	case unix.ENOMEM:
		why = "out of memory or over RLIMIT_MEMLOCK"
	default:
		return err
	}
	return fmt.Errorf("%w (%s)", err, why)
}

// suitable checks what setup did not: features that have their own bits, and
// the operations, which an io_uring restriction could leave out.
func (r *Ring) suitable() error {
	for _, f := range []struct {
		bit  uint32
		name string
	}{{featSingleMmap, "SINGLE_MMAP"}, {featNoDrop, "NODROP"}, {featExtArg, "EXT_ARG"}} {
		if r.features&f.bit == 0 {
			return fmt.Errorf("io_uring_setup: feature %s: %w", f.name, errors.ErrUnsupported)
		}
	}

	// struct io_uring_probe
	var p struct {
		last, count uint8
		_           uint16
		_           [3]uint32
		ops         [64]struct {
			op, _ uint8
			flags uint16
			_     uint32
		}
	}
	_, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(r.fd), registerProbe,
		uintptr(unsafe.Pointer(&p)), uintptr(len(p.ops)), 0, 0)
	if errno != 0 {
		return fmt.Errorf("probe io_uring operations: %w", os.NewSyscallError("io_uring_register", errno))
	}
	for _, o := range []struct {
		op   uint8
		name string
	}{{opPollAdd, "POLL_ADD"}, {opAccept, "ACCEPT"}, {opAsyncCancel, "ASYNC_CANCEL"}} {
		if p.ops[o.op].flags&probeSupported == 0 {
			return fmt.Errorf("io_uring operation %s: %w", o.name, errors.ErrUnsupported)
		}
	}
	return nil
}
