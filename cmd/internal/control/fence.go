package control

import (
	"time"

	"golang.org/x/sys/unix"
)

// membarrierGlobal is MEMBARRIER_CMD_GLOBAL of linux/membarrier.h (Linux 4.3).
const membarrierGlobal = 1

// fence returns when every packet that was in the network stack when it was
// called has left it. The kernel runs the receive path inside RCU read-side
// sections, and membarrier(MEMBARRIER_CMD_GLOBAL) waits for all of them: a
// packet that looked at the table before the transaction has its conntrack
// entry confirmed by then, and a dump sees it.
func fence() {
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		// ENOSYS, or EINVAL with nohz_full: be generous instead. The receive
		// path of one packet takes microseconds.
		time.Sleep(50 * time.Millisecond)
	}
}
