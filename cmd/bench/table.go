package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sluice/nft"
	"sluice/testenv"
)

const tableChanges = 1_000

// table measures changes of one service among many, in a namespace of its own.
func table(t testenv.TB, r *report, services int) {
	tab := openTable(t, testenv.NewNS(t, "table"))
	defer tab.Close()
	all := make(map[nft.Endpoint]*nft.Service, services)
	for i := range services {
		all[endpoint(i)] = &nft.Service{Slots: []netip.AddrPort{backend(i, 0), backend(i, 1)}}
	}
	begin := time.Now()
	if err := tab.Apply(all); err != nil {
		t.Fatalf("fill table: %v", err)
	}
	load := time.Since(begin)

	r.part(fmt.Sprintf("a table of %d services with two backends each: one transaction, %d times", services, tableChanges))
	two := func(i int) []netip.AddrPort { return []netip.AddrPort{backend(i, 0), backend(i, 1)} }
	extra := backend(services, 9)
	for _, c := range []struct {
		name     string
		from, to func(i int) []netip.AddrPort
	}{
		{"a backend replaced by another", two, func(i int) []netip.AddrPort { return []netip.AddrPort{backend(i, 0), extra} }},
		{"a backend added", two, func(i int) []netip.AddrPort { return append(two(i), extra) }},
		{"a backend drained", two, func(i int) []netip.AddrPort { return two(i)[:1] }},
		// From halves to three quarters and one.
		{"a backend weighed anew", two, func(i int) []netip.AddrPort {
			return []netip.AddrPort{backend(i, 0), backend(i, 1), backend(i, 0), backend(i, 0)}
		}},
	} {
		change := func(i int, slots []netip.AddrPort) time.Duration {
			next := &nft.Service{Slots: slots}
			begin := time.Now()
			if err := tab.Apply(map[nft.Endpoint]*nft.Service{endpoint(i): next}); err != nil {
				t.Fatalf("change table: %v", err)
			}
			return time.Since(begin)
		}
		var took []time.Duration
		for range tableChanges {
			i := rand.IntN(services)
			took = append(took, change(i, c.to(i)))
			change(i, c.from(i))
		}
		r.row(c.name+", median", "", "", msec(median(took)), "< 3 ms")
		r.row("  the same, 99 of 100, and the best", "", msec(slices.Min(took)), msec(quantile(took, 0.99)), "< 3 ms")
	}
	r.row("all services put in at once", "", "", msec(load), "")
}

// openTable opens the table of a namespace.
func openTable(t testenv.TB, ns *testenv.NS) *nft.Table {
	t.Helper()
	fd, err := ns.Open()
	if err != nil {
		t.Fatalf("open namespace: %v", err)
	}
	defer fd.Close()
	tab, err := nft.Open(nft.Options{NetNS: int(fd.Fd())})
	if err != nil {
		t.Fatalf("open table: %v", err)
	}
	return tab
}

func endpoint(i int) nft.Endpoint {
	return nft.Endpoint{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Proto: unix.IPPROTO_TCP, Port: 80}
}

func backend(i, j int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), uint16(8000+j>>8)) //nolint:gosec // below 2^16
}
