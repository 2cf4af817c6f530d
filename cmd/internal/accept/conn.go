package accept

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoSYN says that the kernel holds no SYN for the connection.
var ErrNoSYN = errors.New("the kernel kept none")

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

// SavedSYN is the client's SYN as it came in, from the IP header to the end
// of the TCP options. The kernel gives it out once: a second call returns
// ErrNoSYN, as does one for a connection made under SYN cookies.
func SavedSYN(fd int) ([]byte, error) {
	// Two headers with all their options are 120 bytes, IPv6 extension
	// headers can add to that. A short buffer is an error and keeps the SYN.
	for b := make([]byte, 512); ; {
		// Raw, because unix.GetsockoptString ends at the first NUL.
		n := uint32(len(b))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_SAVED_SYN,
			uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&n)), 0)
		switch {
		case errno == unix.EINVAL && int(n) > len(b):
			b = make([]byte, n)
		case errno != 0:
			return nil, fmt.Errorf("read saved SYN: %w", os.NewSyscallError("getsockopt", errno))
		case n == 0:
			return nil, fmt.Errorf("read saved SYN: %w", ErrNoSYN)
		default:
			return b[:n], nil
		}
	}
}
