package nft_test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"
)

func many(n, slots int) map[nft.Endpoint]*nft.Service {
	m := make(map[nft.Endpoint]*nft.Service, n)
	for i := range n {
		s := new(nft.Service)
		for j := range slots {
			s.Slots = append(s.Slots, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(j), byte(i >> 8), byte(i)}), 8080))
		}
		m[numbered(i)] = s
	}
	return m
}

func numbered(i int) nft.Endpoint {
	return tcp(fmt.Sprintf("198.18.%d.%d:80", i>>8, i&255))
}

// BenchmarkApply reports the time of one transaction on a table that holds 10,
// 1,000 or 10,000 services of two slots: p50 and p99 in microseconds.
func BenchmarkApply(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			ns := testenv.NewNS(b, "bench")
			tab := open(b, ns)
			all := many(n, 2)
			began := time.Now()
			if err := tab.Apply(all); err != nil {
				b.Fatal(err)
			}
			load := time.Since(began)
			at, old := numbered(n/2), *all[numbered(n/2)]
			extra := tcp("198.51.100.1:80")
			x := func(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
			one := &nft.Service{Slots: []netip.AddrPort{x("10.9.9.9:1")}}
			two := &nft.Service{Slots: []netip.AddrPort{x("10.9.9.9:1"), x("10.9.9.8:1")}}
			four := &nft.Service{Slots: append(slices.Clone(two.Slots), two.Slots...)}
			wide := func(p string) *nft.Service {
				s := &nft.Service{}
				for range 1024 {
					s.Slots = append(s.Slots, x(p))
				}
				return s
			}
			w1, w2 := wide("10.9.9.1:1"), wide("10.9.9.2:1")
			for _, c := range []struct {
				name     string
				at       nft.Endpoint
				from, to *nft.Service
			}{
				{"one slot", at, &old, &nft.Service{Slots: []netip.AddrPort{old.Slots[0], x("10.9.9.9:1")}}},
				{"1024 slots", extra, w1, w2},
				{"wake", extra, &nft.Service{}, one},
				{"sleep", extra, one, &nft.Service{}},
				{"1 to 2 slots", extra, one, two},
				{"2 to 4 slots", extra, two, four},
				{"add 2 slots", extra, nil, two},
				{"remove 2 slots", extra, two, nil},
			} {
				b.Run(c.name, func(b *testing.B) {
					var took []time.Duration
					for b.Loop() {
						b.StopTimer()
						if err := tab.Apply(map[nft.Endpoint]*nft.Service{c.at: c.from}); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
						began := time.Now()
						if err := tab.Apply(map[nft.Endpoint]*nft.Service{c.at: c.to}); err != nil {
							b.Fatal(err)
						}
						took = append(took, time.Since(began))
					}
					slices.Sort(took)
					b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
					b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
					b.ReportMetric(float64(load.Milliseconds()), "load-ms")
				})
			}
		})
	}
}

// BenchmarkRestore reports the time of a full reading and comparison.
func BenchmarkRestore(b *testing.B) {
	for _, n := range []int{10, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab := open(b, testenv.NewNS(b, "bench"))
			if err := tab.Apply(many(n, 2)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if changed, err := tab.Restore(); err != nil || changed {
					b.Fatal(changed, err)
				}
			}
		})
		b.Run(fmt.Sprint(n, " after a flush"), func(b *testing.B) {
			ns := testenv.NewNS(b, "bench")
			tab := open(b, ns)
			if err := tab.Apply(many(n, 2)); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				b.StopTimer()
				ns.Run(b, "nft", "flush ruleset")
				b.StartTimer()
				if changed, err := tab.Restore(); err != nil || !changed {
					b.Fatal(changed, err)
				}
			}
		})
	}
}

// BenchmarkFreeze reports the time to freeze and unfreeze 1,000 tuples, in two
// transactions.
func BenchmarkFreeze(b *testing.B) {
	tab := open(b, testenv.NewNS(b, "bench"))
	var tuples []nft.Tuple
	for i := range 1000 {
		tuples = append(tuples, nft.Tuple{
			Client:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, 1}), uint16(10_000+i)),
			Service: netip.MustParseAddrPort("192.0.2.10:80"),
			Backend: netip.MustParseAddrPort("10.98.0.11:80"),
		})
	}
	for b.Loop() {
		if err := tab.Freeze(tuples, time.Minute); err != nil {
			b.Fatal(err)
		}
		if err := tab.Unfreeze(tuples); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOpen reports the time to make the table and to adopt it.
func BenchmarkOpen(b *testing.B) {
	ns := testenv.NewNS(b, "bench")
	for _, adopt := range []bool{false, true} {
		b.Run(map[bool]string{false: "make", true: "adopt"}[adopt], func(b *testing.B) {
			for b.Loop() {
				if !adopt {
					b.StopTimer()
					ns.Run(b, "nft", "flush ruleset")
					b.StartTimer()
				}
				tab, err := tryOpen(ns)
				if err != nil {
					b.Fatal(err)
				}
				if err := tab.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
