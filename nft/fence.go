package nft

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Fence returns when every packet that was on its way through this host's
// receive path before the call has come to its end, and so has the conntrack
// entry of any flow it began. A packet may have looked up its slot just before
// a transaction; after Apply and Fence, a dump of conntrack holds every flow
// that the old slots were given to. (A packet held in a queue, or begun by a
// process on this host, may still be late.)
//
// It takes as long as the kernel's grace period, some milliseconds. It fails on
// a kernel without membarrier(2) or with nohz_full.
func Fence() error {
	const cmdGlobal = 1 << 0 // MEMBARRIER_CMD_GLOBAL: synchronize_rcu in the kernel
	_, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, cmdGlobal, 0, 0)
	if errno != 0 {
		return fmt.Errorf("fence: %w", errno)
	}
	return nil
}
