package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const steadyRun = 300 * time.Millisecond

// steady compares requests through the map with requests straight to the same
// container's address, by the same client, in turn.
func steady(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, container netip.AddrPort, rounds int) {
	direct := path{to: container, from: netip.MustParseAddr("10.99.0.3")}
	mapped := path{to: netip.MustParseAddrPort(warmAddr + httpPort), from: s.ClientAddr4}
	// A client address for each path: a connection may otherwise meet what is
	// left of one by the other path, in conntrack and in the container, where
	// both have the same source.
	s.Client.AddAddr(t, direct.from.String()+"/24", "eth0")

	r.part("a container through the map, and without: by its own address")
	for _, kind := range kinds() {
		run := func(p path) func() (float64, error) {
			return func() (float64, error) {
				s.Host.Run(t, "conntrack", "--flush")
				n, err := p.run(ctx, s.Client, steadyRun, kind.fresh)
				if err != nil {
					return 0, fmt.Errorf("%s to %s: %w", kind.name, p.to, err)
				}
				return n, nil
			}
		}
		var p pairs
		for range rounds {
			p.add(t, run(mapped), run(direct))
		}
		p.report(r, kind.name, ">= 0.95")
	}
}

// kind is one way to make requests.
type kind struct {
	name  string
	fresh bool
}

func kinds() []kind {
	return []kind{{"requests per second, kept-alive", false}, {"requests per second, new connections", true}}
}
