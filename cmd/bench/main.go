// Bench measures sluice on this machine: what it adds to a container's own
// start, what a connection through its map costs, how long a change of the map
// takes and how much memory the daemon needs. Each figure is set beside the
// same thing done without sluice in the same run; nothing is asserted. It needs
// root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

func main() {
	program := flag.String("sluice", "bin/sluice", "`path` of the program to measure")
	rounds := flag.Int("rounds", 20, "cold starts of each kind")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := testenv.Program("bench", os.Stderr, func(t testenv.TB) {
		bench(ctx, t, *program, max(*rounds, 1))
	})
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

const (
	stopAddr, prepAddr, warmAddr = "192.0.2.10", "192.0.2.11", "192.0.2.12"
	httpPort                     = ":80"
)

// services are one for each sleep and one that stays awake.
func services() string {
	one := func(name, addr, scale string) string {
		return fmt.Sprintf(`[service.%[1]s]
listen = ["%[2]s%[3]s/tcp"]
[service.%[1]s.container]
image = "%[4]s"
port = 8080
pull = "never"
stop_timeout = "2s"
[service.%[1]s.scale]
max = 1
%[5]s
`, name, addr, httpPort, testenv.Image, scale)
	}
	return one("stop", stopAddr, "idle = \"50ms\"\nsleep = \"stop\"") +
		one("prepared", prepAddr, "idle = \"50ms\"\nsleep = \"prepared\"") +
		one("warm", warmAddr, "min = 1")
}

func bench(ctx context.Context, t testenv.TB, program string, rounds int) {
	s := sandbox.New(t, program, stopAddr, prepAddr, warmAddr)
	r := newReport(os.Stdout)
	r.title(s.Sluice(ctx, t, "version"))

	s.Configure(t, services())
	d := s.Start(ctx, t)
	s.Until(ctx, t, "warm", "its replica", ready)
	s.Until(ctx, t, "prepared", "a prepared replica", prepared)
	for range 10 {
		settle(ctx, t)
	}
	idle := d.Memory(t)

	cold(ctx, t, s, r, rounds)
	steady(ctx, t, s, r)
	d.Stop(t)
	table(t, r)
	r.row("daemon with nothing to do, resident memory", "", "", fmt.Sprintf("%.1f MiB", float64(idle)/(1<<20)), "< 40 MiB")
}
