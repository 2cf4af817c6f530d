package doctor

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/uring"
)

// kernel looks at the release, at what the daemon may do, and at the two
// facilities it can do without.
func (h *Host) kernel(r *report) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		r.fail("kernel", "ask again", "uname: %v", err)
		return
	}
	release := unix.ByteSliceToString(u.Release[:])
	if !atLeast(release, 5, 18) {
		r.fail("kernel", "upgrade it to Linux 5.18 or newer", "Linux %s", release)
	} else {
		r.ok("kernel", "Linux %s", release)
	}
	if err := uring.Probe(); err != nil {
		r.warn("io_uring", "nothing needs to be done: epoll is used instead", "%v", err)
	} else {
		r.ok("io_uring", "accepts connections")
	}
	if err := repair(); err != nil {
		r.warn("handover", "run this as root with CAP_NET_ADMIN, on a kernel with CONFIG_CHECKPOINT_RESTORE",
			"held connections would be relayed: TCP_REPAIR: %v", err)
	} else {
		r.ok("handover", "TCP_REPAIR works")
	}
}

// repair tries whether a socket can be put into repair mode, which only
// CONFIG_CHECKPOINT_RESTORE and CAP_NET_ADMIN allow.
func repair() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1)
}

// atLeast compares the first two numbers of a release such as 6.1.0-56-amd64.
func atLeast(release string, major, minor int) bool {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false
	}
	return a > major || a == major && b >= minor
}

// tracking looks at conntrack: whether it is there, counts, and has room.
func (h *Host) tracking(r *report) {
	limit, err := sysctl("net.netfilter.nf_conntrack_max")
	if err != nil {
		r.fail("conntrack", "modprobe nf_conntrack, and have it loaded at boot: echo nf_conntrack > /etc/modules-load.d/sluice.conf", "%v", err)
		return
	}
	for _, key := range []string{"net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_acct"} {
		if v, err := sysctl(key); err != nil {
			r.fail("conntrack", "use a kernel with CONFIG_NF_CONNTRACK_EVENTS", "%v", err)
			return
		} else if v != "1" {
			r.ok("conntrack", "%s is %s: 'sluice run' sets it to 1", key, v)
		}
	}
	count, err := sysctl("net.netfilter.nf_conntrack_count")
	if err != nil {
		r.fail("conntrack", "modprobe nf_conntrack", "%v", err)
		return
	}
	most, n := number(limit), number(count)
	if most > 0 && n*10 >= most*8 {
		r.warn("conntrack", fmt.Sprintf("sysctl -w net.netfilter.nf_conntrack_max=%d", 2*most),
			"%d of %d entries are in use: when all are, new connections are dropped", n, most)
		return
	}
	r.ok("conntrack", "%d of %d entries in use", n, most)
}

// limits looks at what bounds the connections that can be held.
func (h *Host) limits(r *report) {
	var sockets, backlog int
	for _, s := range h.Config.Services {
		sockets += len(s.Listen) * 2 // a wildcard has one for each family
		backlog = max(backlog, s.Start.Backlog)
	}
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil && !h.Running {
		if need := uint64(sockets + 1024); lim.Max < need {
			r.warn("files", "raise it: LimitNOFILE=1048576 in the unit, or ulimit -n", "at most %d open files, %d are needed", lim.Max, need)
		} else {
			r.ok("files", "at most %d open files", lim.Max)
		}
	}
	if v, err := sysctl("net.core.somaxconn"); err == nil {
		if number(v) < backlog {
			r.warn("backlog", fmt.Sprintf("sysctl -w net.core.somaxconn=%d", backlog), "net.core.somaxconn is %s: it caps start.backlog = %d", v, backlog)
		} else {
			r.ok("backlog", "net.core.somaxconn is %s", v)
		}
	}
	if v, err := sysctl("net.ipv4.tcp_syncookies"); err == nil && v == "0" {
		r.warn("syncookies", "sysctl -w net.ipv4.tcp_syncookies=1", "net.ipv4.tcp_syncookies is 0: a SYN flood locks clients of sleeping services out")
	}
}

// sysctl reads a setting of the calling thread's network namespace.
func sysctl(key string) (string, error) {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	if err != nil {
		return "", fmt.Errorf("%s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0
	}
	return n
}
