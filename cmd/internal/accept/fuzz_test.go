package accept

import (
	"net/netip"
	"testing"

	"sluice/cmd/internal/uring"
)

// FuzzOrder runs operations in any order against every backend and compares,
// after each, what was delivered and what waits with a model of four lines.
func FuzzOrder(f *testing.F) {
	for _, s := range []string{
		"DDDoooo", "oDDoDDaDDxDDa", "aDDxDoDrDDaD", "oooDaoxoD", "DaoDDoDxaDDr",
		"oxoDDDrrDDa", "DDDDDDoaoaoxDDD", "aoDaoDaoD", "xrxrD",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ops string) {
		if len(ops) > 40 {
			return
		}
		for _, b := range backends {
			if b.name != "epoll" && uring.Probe() != nil {
				continue
			}
			t.Run(b.name, func(t *testing.T) { order(t, b.make(), ops) })
		}
	})
}

func order(t *testing.T, b backend, ops string) {
	x := newBench(t, b)
	id := uint64(1)
	ln := x.add(id, 64)
	var (
		mode           Mode
		waiting, taken int
	)
	for i, op := range ops {
		switch op {
		case 'x':
			mode = Off
			x.must(x.loop.Arm(id, mode))
		case 'o':
			mode = One
			x.must(x.loop.Arm(id, mode))
		case 'a':
			mode = All
			x.must(x.loop.Arm(id, mode))
		case 'D':
			x.dial(ln.Addr(), 1, 1)
			waiting++
		case 'r': // another id for the same listener, Off
			x.must(x.loop.Remove(id))
			mode = Off
			id++
			x.must(x.loop.Add(id, ln))
		default:
			continue
		}
		want := 0
		if mode == All {
			want = waiting
		} else if mode == One && waiting > 0 {
			want, mode = 1, Off
		}
		waiting -= want

		x.queued(ln, waiting)
		got := x.barrier()
		if len(got) != want {
			t.Fatalf("%q: after operation %d: %d delivered, want %d", ops, i, len(got), want)
		}
		seen := map[netip.AddrPort]bool{}
		for _, c := range got {
			if c.Listener != id {
				t.Fatalf("%q: after operation %d: delivered for %d, want %d", ops, i, c.Listener, id)
			}
			seen[x.take(c)] = true
		}
		if len(seen) != want {
			t.Fatalf("%q: after operation %d: a client twice", ops, i)
		}
		taken += want
	}
	x.queued(ln, waiting)
	x.must(x.loop.Remove(id))
}
