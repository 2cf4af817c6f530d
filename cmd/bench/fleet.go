package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/sandbox"
	"sluice/nft"
	"sluice/testenv"
)

// fleet measures the daemon's start, from an empty table, with many services
// that sleep and with as many that have two fixed backends each, and what
// memory it then needs.
func fleet(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, size, starts int) {
	s.LogLevel = "info"
	r.part(fmt.Sprintf("a daemon with %d services", size))
	for _, kind := range []struct {
		name    string
		service func(i int) string
		slots   int
	}{
		{"asleep", sleeping, 0},
		{"two fixed backends each", fixed, 2},
	} {
		var text strings.Builder
		for i := range size {
			text.WriteString(kind.service(i))
		}
		s.Configure(t, text.String())
		var took, placed, worked []time.Duration
		var memory []int64
		for range starts {
			s.Sluice(ctx, t, "cleanup", "--containers")
			begin := time.Now()
			d := s.Start(ctx, t)
			took, worked = append(took, time.Since(begin)), append(worked, d.Worked(t))
			testenv.Eventually(t, time.Minute, func() (bool, string) {
				n := inPlace(t, s, kind.slots)
				return n == size, fmt.Sprintf("%d of %d services have %d slots in the table", n, size, kind.slots)
			})
			placed = append(placed, time.Since(begin))
			rest(ctx, t)
			memory = append(memory, d.Memory(t))
			d.Stop(t)
		}
		r.row(fmt.Sprintf("%s: from start to ready, median of %d", kind.name, starts), "", "", msec(median(took)), "< 2000 ms")
		r.row("  of the daemon's own processor time", "", "", msec(median(worked)), "")
		r.row("  from start to all of them found in the table", "", "", msec(median(placed)), "")
		r.row("  resident memory", "", "", mebi(median(memory)), "< 150 MiB")
	}
}

// inPlace counts the services of so many slots in the host's table.
func inPlace(t testenv.TB, s *sandbox.Sandbox, slots int) (n int) {
	t.Helper()
	tab := openTable(t, s.Host)
	defer tab.Close()
	for _, sv := range tab.Services() {
		if len(sv.Slots) == slots {
			n++
		}
	}
	return n
}

func sleeping(i int) string {
	return fmt.Sprintf("[service.s%[1]d]\nlisten = [%[2]q]\n[service.s%[1]d.container]\nimage = %[3]q\nport = 8080\npull = \"never\"\n",
		i, ownEndpoint(i), testenv.Image)
}

func fixed(i int) string {
	return fmt.Sprintf("[service.s%[1]d]\nlisten = [%[2]q]\n[service.s%[1]d.health]\ntype = \"none\"\n"+
		"[[service.s%[1]d.backend]]\naddress = %[3]q\n[[service.s%[1]d.backend]]\naddress = %[4]q\n",
		i, ownEndpoint(i), backend(i, 0), backend(i, 1))
}

// ownEndpoint is at an address that the host has.
func ownEndpoint(i int) nft.Endpoint {
	return nft.Endpoint{Addr: netip.MustParseAddr(warmAddr), Proto: unix.IPPROTO_TCP, Port: uint16(10_000 + i)}
}
