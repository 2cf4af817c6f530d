package handover

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Recover puts right a held connection that another process has had, and says
// whether it is still to be served: that process may have been killed in the
// middle of handing it over. If not, or after an error, the connection is closed.
func Recover(fd int) (bool, error) {
	repairing, err := unix.GetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR)
	if err != nil {
		return false, drop(fd, fmt.Errorf("recover connection: read repair mode: %w", err))
	}
	l, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LINGER) // l_onoff, the first word
	if err != nil {
		return false, drop(fd, fmt.Errorf("recover connection: read linger: %w", err))
	}
	if l != 0 {
		// Past the commit: all is delivered, if it is in repair mode again,
		// and without a sound it goes. Else nobody knows, and the client is
		// told by a reset.
		return false, drop(fd, nil)
	}
	if repairing != 0 {
		if err := repair(fd, false); err != nil {
			return false, drop(fd, fmt.Errorf("recover connection: %w", err))
		}
	}
	info, err := readInfo(fd)
	if err != nil {
		return false, drop(fd, fmt.Errorf("recover connection: %w", err))
	}
	if info.state == stateClose { // reset by the client
		return false, drop(fd, nil)
	}
	return true, nil
}

func drop(fd int, err error) error {
	if closing := closeSocket(fd); err == nil {
		return closing
	}
	return err
}
