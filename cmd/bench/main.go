// Bench measures sluice on this machine: what it adds to a container's own
// start, what a connection through its map costs, one that was handed over, and
// one among many services, how long a change of the map takes, and what time and
// memory the daemon needs, also with many connections. Each figure is set beside the same thing done without
// sluice, or in the usual way, in the same run; nothing is asserted. It needs
// root.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

// plan says what is measured, and how much.
type plan struct {
	rounds, pairs, services, starts int
	flows, rate                     int
	only                            []string // parts; none: all
}

// parts are what can be measured alone. Those of scale are about many services.
func parts() []string {
	return []string{"cold", "steady", "handed", "least", "crowd", "flow", "table", "fleet", "load"}
}

func scale() []string { return []string{"crowd", "flow", "table", "fleet"} }

func (p plan) has(part ...string) bool {
	return len(p.only) == 0 || slices.ContainsFunc(part, func(s string) bool {
		return slices.Contains(p.only, s)
	})
}

// choose reads the value of --only.
func (p *plan) choose(words string) error {
	for w := range strings.SplitSeq(words, ",") {
		switch {
		case w == "scale":
			p.only = append(p.only, scale()...)
		case slices.Contains(parts(), w):
			p.only = append(p.only, w)
		default:
			return fmt.Errorf("no part %q: choose of scale, %s", w, strings.Join(parts(), ", "))
		}
	}
	return nil
}

func main() {
	works()
	program := flag.String("sluice", "bin/sluice", "`path` of the program to measure")
	var p plan
	flag.IntVar(&p.rounds, "rounds", 20, "cold starts of each kind")
	flag.IntVar(&p.pairs, "pairs", 31, "measurements of each rate; of some a part of it")
	flag.IntVar(&p.services, "services", 10_000, "how many services are many, 100 to 50000")
	flag.IntVar(&p.starts, "starts", 3, "starts of the daemon with many services of each kind")
	flag.IntVar(&p.flows, "flows", 100_000, "how many connections are held at a time")
	flag.IntVar(&p.rate, "rate", 20_000, "how many more are opened per second")
	flag.Func("only", "`parts` to measure, as in crowd,table: "+strings.Join(parts(), ", ")+"; scale for "+strings.Join(scale(), ", "), p.choose)
	flag.Parse()
	p.rounds, p.pairs, p.services, p.starts = max(p.rounds, 1), max(p.pairs, 1), min(max(p.services, 100), 50_000), max(p.starts, 1)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := testenv.Program("bench", os.Stderr, func(t testenv.TB) { bench(ctx, t, *program, p) })
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

const (
	stopAddr, prepAddr, warmAddr, handedAddr = "192.0.2.10", "192.0.2.11", "192.0.2.12", "192.0.2.13"

	httpPort = ":80"
)

// services are one for each sleep, one that stays awake, and one whose wakes are
// counted.
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
		one("warm", warmAddr, "min = 1") +
		one("handed", handedAddr, "idle = \"50ms\"")
}

func bench(ctx context.Context, t testenv.TB, program string, p plan) {
	s := sandbox.New(t, program, stopAddr, prepAddr, warmAddr, handedAddr)
	r := newReport(os.Stdout)
	r.title(s.Sluice(ctx, t, "version"))

	if p.has("cold", "steady", "handed", "crowd") {
		containers(ctx, t, s, r, p)
	}
	if p.has("least") {
		least(ctx, t, s, r, (p.pairs+9)/10)
	}
	if p.has("flow") {
		flow(ctx, t, r, []int{10, max(p.services/10, 11), p.services}, 4*p.pairs)
	}
	if p.has("table") {
		table(t, r, p.services)
	}
	if p.has("fleet") {
		fleet(ctx, t, s, r, p.services, p.starts)
	}
	if p.has("load") {
		load(ctx, t, s, r, max(p.flows, 1), max(p.rate, 1))
	}
}

// containers measures what needs a real one.
func containers(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, p plan) {
	s.Configure(t, services())
	d := s.Start(ctx, t)
	warm := s.Until(ctx, t, "warm", "its replica", ready)
	s.Until(ctx, t, "prepared", "a prepared replica", prepared)
	rest(ctx, t)
	r.part("the daemon")
	r.row("resident memory with nothing to do", "", "", mebi(d.Memory(t)), "< 40 MiB")
	container := netip.MustParseAddrPort(warm.Backends[0].Address)

	if p.has("cold") {
		cold(ctx, t, s, r, p.rounds)
	}
	if p.has("steady") {
		steady(ctx, t, s, r, container, p.pairs)
	}
	if p.has("handed") {
		handed(ctx, t, s, r, 3, (p.pairs+2)/3)
	}
	d.Stop(t)
	if p.has("crowd") {
		crowd(ctx, t, s, r, container, []int{10, max(p.services/10, 11), p.services}, p.pairs/2|1)
	}
}
