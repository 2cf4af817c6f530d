package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sluice/nft"
	"sluice/testenv"
)

const tableChanges = 1_000

// table measures changes of one service's slots among many services, in a
// namespace of its own.
func table(t testenv.TB, r *report, services int) {
	ns := testenv.NewNS(t, "table")
	fd, err := ns.Open()
	if err != nil {
		t.Fatalf("open namespace: %v", err)
	}
	defer fd.Close()
	tab, err := nft.Open(nft.Options{NetNS: int(fd.Fd())})
	if err != nil {
		t.Fatalf("open table: %v", err)
	}
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

	var took []time.Duration
	for i := range tableChanges {
		n := rand.IntN(services)
		// One of the two replicas is replaced by another.
		next := &nft.Service{Slots: []netip.AddrPort{backend(n, 0), backend(n, 2+i)}}
		begin := time.Now()
		if err := tab.Apply(map[nft.Endpoint]*nft.Service{endpoint(n): next}); err != nil {
			t.Fatalf("change table: %v", err)
		}
		took = append(took, time.Since(begin))
	}
	r.part(fmt.Sprintf("a table of %d services", services))
	r.row(fmt.Sprintf("a slot changed, median of %d", tableChanges), "", "", msec(median(took)), "< 3 ms")
	r.row("  the same, 99 of 100", "", "", msec(quantile(took, 0.99)), "< 3 ms")
	r.row("all services put in at once", "", "", msec(load), "")
}

func endpoint(i int) nft.Endpoint {
	return nft.Endpoint{Addr: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), Proto: unix.IPPROTO_TCP, Port: 80}
}

func backend(i, j int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), uint16(8000+j>>8)) //nolint:gosec // below 2^16
}
