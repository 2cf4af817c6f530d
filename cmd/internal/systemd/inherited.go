package systemd

import (
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// A File is a descriptor that the manager kept. It belongs to the caller.
type File struct {
	Name string
	FD   int
}

// lowest is the least number that an inherited descriptor gets: those below 1024
// are for what polls by select(2).
const lowest = 1024

// Inherited returns what the manager has kept of an earlier run, or was told to
// open for this one. It is to be called once, before anything else is opened:
// the environment that tells of it is cleared.
func Inherited() ([]File, error) {
	var list []File
	for _, f := range activation.Files(true) {
		fd := int(f.Fd())
		moved, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, lowest)
		if err != nil { // the limit is as low as that
			moved, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		}
		if err != nil {
			return list, fmt.Errorf("inherit %s: %w", f.Name(), os.NewSyscallError("fcntl", err))
		}
		list = append(list, File{f.Name(), moved})
		// Fd has made it blocking, for all who have it.
		if err := unix.SetNonblock(moved, true); err != nil {
			return list, fmt.Errorf("inherit %s: %w", f.Name(), os.NewSyscallError("fcntl", err))
		}
		if err := f.Close(); err != nil {
			return list, fmt.Errorf("inherit %s: %w", f.Name(), err)
		}
	}
	return list, nil
}
