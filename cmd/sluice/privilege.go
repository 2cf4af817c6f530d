package main

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// privileged is an error if the daemon lacks what it cannot do without, before
// it has changed anything. CAP_NET_BIND_SERVICE is not among it: whether a port
// is privileged is a setting of the host, and listening tells.
func privileged() error {
	var data [2]unix.CapUserData
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		return fmt.Errorf("read own capabilities: %w", err)
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, // nftables, conntrack, TCP_REPAIR
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},     // the handover's raw and packet sockets
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("without %s nothing works: run it as root, or give its unit CAP_NET_ADMIN, CAP_NET_RAW and CAP_NET_BIND_SERVICE", strings.Join(missing, " and "))
	}
	return nil
}
