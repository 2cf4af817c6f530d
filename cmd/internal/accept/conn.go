package accept

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Reset closes an accepted connection with a RST, so that the client sees a
// failure at once and not an answer that ends early. fd is closed also after
// an error.
func Reset(fd int) error {
	return errors.Join(disconnect(fd), os.NewSyscallError("close", unix.Close(fd)))
}

// disconnect resets a connection, also if another process keeps its descriptor,
// for whose sake closing it would do nothing.
func disconnect(fd int) error {
	unspec := [2]byte{} // a sockaddr that is no more than AF_UNSPEC
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec[0])), unsafe.Sizeof(unspec))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
