package control

import (
	"net/netip"
	"testing"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/config"
	"sluice/conntrack"
)

// counts are what conntrack counts, by backend; busy ones cannot be dropped.
type counts struct {
	Flows
	of   map[conntrack.Backend]conntrack.Count
	busy map[conntrack.Backend]bool
}

func (f counts) Drop(b conntrack.Backend) (conntrack.Count, bool) {
	c := f.of[b]
	if f.busy[b] {
		return c, false
	}
	delete(f.of, b)
	return c, true
}

func (f counts) carry(b conntrack.Backend, flows, bytes uint64) {
	c := f.of[b]
	c.New += flows
	c.In.Packets += bytes / 100
	c.In.Bytes += bytes
	c.Out.Packets += bytes / 50
	c.Out.Bytes += 2 * bytes
	f.of[b] = c
}

// TestTally: sums do not fall and nothing is added twice or left out, whichever
// replica is at an address, and whoever was there before.
func TestTally(t *testing.T) {
	t.Parallel()
	f := counts{of: map[conntrack.Backend]conntrack.Count{}, busy: map[conntrack.Backend]bool{}}
	c := &Control{opt: Options{Flows: f}, tallies: map[conntrack.Backend]*tally{}, leaving: map[*tally]bool{}}
	at := func(last byte) conntrack.Backend {
		return conntrack.Backend{
			Service: netip.MustParseAddrPort("192.0.2.10:80"), Proto: 6,
			Backend: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 88, 0, last}), 8080),
		}
	}
	web := newService(config.Service{Name: "web"}, kinds{}, zerolog.Nop())
	api := newService(config.Service{Name: "api"}, kinds{}, zerolog.Nop())
	look := func(s *service, index int, b conntrack.Backend) { c.tally(s, s.replica(index), b, f.of[b]) }
	want := func(step string, s *service, flows, bytes uint64, replicas map[int]uint64) {
		t.Helper()
		if s.counts.flows != flows || s.counts.in.Bytes != bytes || s.counts.out.Bytes != 2*bytes ||
			s.counts.in.Packets != bytes/100 || s.counts.out.Packets != bytes/50 {
			t.Errorf("%s: %s has %+v, want %d flows and %d bytes", step, s.name, s.counts.traffic, flows, bytes)
		}
		for i, n := range replicas {
			if got := s.replica(i).carried().in.Bytes; got != n {
				t.Errorf("%s: replica %d of %s has %d bytes, want %d", step, i, s.name, got, n)
			}
		}
	}

	look(web, 1, at(2))
	if len(c.tallies) != 0 {
		t.Error("a tally of nothing")
	}
	f.carry(at(2), 3, 1000)
	f.carry(at(3), 1, 500)
	for range 2 {
		look(web, 1, at(2))
		look(web, 2, at(3))
		want("twice read", web, 4, 1500, map[int]uint64{1: 1000, 2: 500})
	}

	// Replica 1 ends; its last bytes are told later than its end.
	f.busy[at(2)] = true
	c.remove(web, web.replica(1))
	c.dismiss()
	f.carry(at(2), 0, 100)
	f.busy[at(2)] = false
	c.dismiss()
	want("ended", web, 4, 1600, map[int]uint64{1: 1100, 2: 500})
	if len(c.leaving) != 0 || len(c.tallies) != 1 || len(f.of) != 1 {
		t.Errorf("left over: %v %v %v", c.leaving, c.tallies, f.of)
	}

	// It returns, at the same address, and its backend's sum goes on.
	f.carry(at(2), 1, 200)
	look(web, 1, at(2))
	want("back", web, 5, 1800, map[int]uint64{1: 1300})

	// Replica 2 gives way to replica 3 at its address, with entries left.
	f.busy[at(3)] = true
	c.remove(web, web.replica(2))
	f.carry(at(3), 1, 300)
	look(web, 3, at(3))
	c.dismiss()
	want("another at its address", web, 6, 2100, map[int]uint64{3: 300, 2: 500})
	if f.of[at(3)].New != 2 || len(c.leaving) != 0 {
		t.Errorf("the count of an address in use was dropped: %+v", f.of[at(3)])
	}

	// The address goes to another service, while the old one still looks.
	f.carry(at(3), 1, 700)
	look(api, 1, at(3))
	f.carry(at(3), 1, 100)
	look(web, 3, at(3))
	look(api, 1, at(3))
	f.carry(at(3), 0, 100)
	look(api, 1, at(3))
	if sum := web.counts.in.Bytes + api.counts.in.Bytes; sum != 2100+900 {
		t.Errorf("both services have %d bytes", sum)
	}
	c.remove(web, web.replica(3))
	f.busy[at(3)] = false
	c.dismiss()
	if f.of[at(3)].New == 0 {
		t.Error("the count of an address in use by another service was dropped")
	}
	c.remove(api, api.replica(1))
	c.part(web.replica(1))
	c.dismiss()
	if len(c.leaving) != 0 || len(c.tallies) != 0 || len(f.of) != 0 {
		t.Errorf("left over: %v %v %v", c.leaving, c.tallies, f.of)
	}
}
