package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/sandbox"
	"sluice/nft"
	"sluice/testenv"
)

const crowdRun = 200 * time.Millisecond

// crowd measures requests to one service among few, more and many services in
// the table. It changes the host's own table and so needs the daemon stopped;
// what is awake stays so without it.
func crowd(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, container netip.AddrPort, sizes []int, rounds int) {
	tab := openTable(t, s.Host)
	defer tab.Close()

	// Of two slots, though both are of one container: that way leads through
	// more maps than that of a single slot.
	at := nft.Endpoint{Addr: netip.MustParseAddr(warmAddr), Proto: unix.IPPROTO_TCP, Port: 81}
	if err := tab.Apply(map[nft.Endpoint]*nft.Service{at: {Slots: []netip.AddrPort{container, container}}}); err != nil {
		t.Fatalf("fill table: %v", err)
	}
	fill := filler(t, tab)
	p := path{to: netip.AddrPortFrom(at.Addr, at.Port), from: s.ClientAddr4}

	got := make(map[kind][]pairs)
	for _, k := range kinds() {
		got[k] = make([]pairs, len(sizes))
	}
	order := make([]int, len(sizes))
	for i := range order {
		order[i] = i
	}
	for range rounds {
		rates := make(map[kind][]float64)
		for _, k := range kinds() {
			rates[k] = make([]float64, len(sizes))
		}
		for _, i := range order {
			fill(sizes[i])
			for _, k := range kinds() {
				s.Host.Run(t, "conntrack", "--flush")
				n, err := p.run(ctx, s.Client, crowdRun, k.fresh)
				if err != nil {
					t.Fatalf("%s to %s: %v", k.name, p.to, err)
				}
				rates[k][i] = n
			}
		}
		for k, all := range rates {
			for i, n := range all {
				got[k][i].put(n, all[0])
			}
		}
		slices.Reverse(order) // up, then down
	}
	for i, n := range sizes[1:] {
		r.part(fmt.Sprintf("a service among %d services, and without: among %d", n, sizes[0]))
		for _, k := range kinds() {
			got[k][i+1].report(r, k.name, ">= 0.97")
		}
	}
}

// filler returns what gives a table so many services in all, besides those that
// are in it already.
func filler(t testenv.TB, tab *nft.Table) func(want int) {
	base, have := len(tab.Services()), 0
	return func(want int) {
		t.Helper()
		want -= base
		changes := make(map[nft.Endpoint]*nft.Service)
		for ; have < want; have++ {
			changes[endpoint(have)] = &nft.Service{Slots: []netip.AddrPort{backend(have, 0), backend(have, 1)}}
		}
		for ; have > want; have-- {
			changes[endpoint(have-1)] = nil
		}
		if err := tab.Apply(changes); err != nil {
			t.Fatalf("fill table: %v", err)
		}
	}
}
