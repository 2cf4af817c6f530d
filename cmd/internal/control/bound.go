package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sluice/cmd/internal/health"
)

// awaitBound posts a UDP replica as healthy once a socket in its network
// namespace is bound to the port: a datagram that comes earlier is answered by
// a port unreachable, and asking the application would take its protocol. It
// stands in for a check where none is configured.
func awaitBound(ctx context.Context, pid int, port uint16, post func(health.Result)) {
	const least, most = time.Millisecond, 50 * time.Millisecond
	said := false
	for pause := least; ; pause = min(pause+pause/8, most) {
		ok, err := bound(pid, port)
		if ok || err != nil { // without a view of its namespace nothing can be told
			if ctx.Err() == nil {
				post(health.Result{Healthy: true})
			}
			return
		}
		if !said {
			said = true
			post(health.Result{Err: fmt.Errorf("no socket is bound to udp port %d inside", port)})
		}
		if !wait(ctx, pause) {
			return
		}
	}
}

// bound says whether a UDP socket in the network namespace of a process is
// bound to a port, by /proc/PID/net/udp and udp6 (proc_pid_net(5)).
func bound(pid int, port uint16) (bool, error) {
	for _, table := range []string{"udp", "udp6"} {
		f, err := os.Open(fmt.Sprintf("/proc/%d/net/%s", pid, table))
		if errors.Is(err, os.ErrNotExist) && table == "udp6" {
			continue // no IPv6 in this kernel
		}
		var ok bool
		if err == nil {
			ok, err = boundIn(f, port)
			_ = f.Close()
		}
		if err != nil {
			return false, fmt.Errorf("sockets of process %d: %w", pid, err)
		}
		if ok {
			return true, nil
		}
	}
	return false, nil
}

// boundIn looks for a port among the local addresses of a table.
func boundIn(table io.Reader, port uint16) (bool, error) {
	suffix := fmt.Sprintf(":%04X", port)
	sc := bufio.NewScanner(table)
	for sc.Scan() {
		if c := strings.Fields(sc.Text()); len(c) > 1 && strings.HasSuffix(c[1], suffix) {
			return true, nil
		}
	}
	return false, sc.Err()
}
