package control

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/resolve"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/policy"
)

func (f counts) Count(b conntrack.Backend) (conntrack.Count, bool) { return f.of[b], true }
func (f counts) Live(netip.AddrPort, uint8, func(*conntrack.Flow) bool) (live, alike int, err error) {
	return 0, 0, nil
}
func (f counts) Forget(context.Context, netip.AddrPort, uint8) (int, error) {
	return 0, nil
}

// unrecorded records nothing.
type unrecorded struct{}

func (unrecorded) ColdStart(string, time.Duration) {}
func (unrecorded) Drained(time.Duration, int)      {}
func (unrecorded) Transaction(time.Duration)       {}
func (unrecorded) Decision(string)                 {}
func (unrecorded) Handover(string)                 {}

// memberLab is a control of one service with members, whose owner is the test.
func memberLab(t *testing.T, f counts) (*Control, *service) {
	t.Helper()
	c := ownedByTest(t, Options{Flows: f})
	cfg := config.Service{
		Name: "web", Health: config.Health{Type: config.HealthNone}, Drain: config.Drain{Timeout: time.Hour},
		Backends: []config.Backend{{SRV: "_web._tcp.example.org"}},
	}
	s := newService(cfg, kinds{}, zerolog.Nop())
	c.services[s.name] = s
	s.endpoints = []nft.Endpoint{at(80)}
	c.endpoints[at(80)] = s
	s.found = map[string][]resolve.Target{}
	c.step(s, time.Now(), policy.Adopt{})
	return c, s
}

// until carries messages out until ok.
func (c *Control) until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for limit := time.After(time.Minute); !ok(); {
		select {
		case <-c.box.signal:
			for _, m := range c.box.take(nil) {
				m(time.Now())
			}
		case <-limit:
			t.Fatalf("waiting for %s", what)
		}
	}
}

// TestMembersRotate: an SRV name that stands for another address every time
// leaves nothing behind, and what those that are gone have carried stays in the
// sums of the service.
func TestMembersRotate(t *testing.T) {
	t.Parallel()
	f := counts{of: map[conntrack.Backend]conntrack.Count{}, busy: map[conntrack.Backend]bool{}}
	c, s := memberLab(t, f)
	turn := func(last byte) *replica {
		t.Helper()
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 2, last}), 8080)
		s.found["_web._tcp.example.org"] = []resolve.Target{{Addr: addr, Weight: 1}}
		c.join(s)
		c.until(t, addr.String(), func() bool { return len(s.shares) == 1 && s.replicas[s.shares[0].Index].addr4 == addr })
		return s.byAddr(addr)
	}
	const rounds = 20
	var busy *replica
	for i := range byte(rounds) {
		r := turn(i)
		f.carry(conntrack.Backend{Service: netip.MustParseAddrPort("192.0.2.10:80"), Proto: 6, Backend: r.addr4}, 1, 100)
		if i == 0 {
			busy, r.carries = r, 1 // a relay
		}
		c.load(s)
	}
	c.until(t, "all but two to go", func() bool { return len(s.replicas) <= 2 })
	c.dismiss()
	if busy != s.replicas[busy.index] {
		t.Error("a member that carries a connection was dropped")
	}
	if s.counts.flows != rounds || s.counts.in.Bytes != 100*rounds {
		t.Errorf("the service's sums are %+v", s.counts.traffic)
	}
	if len(c.tallies) > 2 || len(c.leaving) > 1 || len(s.past) > 0 {
		t.Errorf("left over: %v %v %v", c.tallies, c.leaving, s.past)
	}

	// Its deadline comes, and then the end of its connection.
	c.step(s, time.Now().Add(2*time.Hour), policy.Tick{})
	c.until(t, "the deadline", func() bool { return !s.policy.Has(busy.index) })
	if busy != s.replicas[busy.index] {
		t.Error("a member that still carries a connection was dropped")
	}
	c.released(s, time.Now(), busy)
	if len(s.replicas) != 1 {
		t.Errorf("left: %v", s.replicas)
	}

	// One that was drained by order and then leaves.
	last := turn(rounds)
	c.step(s, time.Now(), policy.Drain{Index: last.index})
	c.until(t, "sleep", func() bool { return s.policy.View().Backends[0].State == policy.Sleeping })
	if s.replicas[last.index] != last {
		t.Error("a member that is drained by order is not known any more")
	}
	turn(rounds + 1)
	if len(s.replicas) != 1 {
		t.Errorf("left: %v", s.replicas)
	}
}

// TestMembersReload: members of a name that stays configured stay when others are
// configured beside it, and those of a service that is taken out and put back
// while it drains come back.
func TestMembersReload(t *testing.T) {
	t.Parallel()
	c, s := memberLab(t, counts{of: map[conntrack.Backend]conntrack.Count{}, busy: map[conntrack.Backend]bool{}})
	c.recall()
	fixed := netip.MustParseAddrPort("10.1.2.1:8080")
	found := netip.MustParseAddrPort("10.1.2.2:8080")
	with := func(backends ...config.Backend) *config.Config {
		cfg := s.cfg
		cfg.Backends = backends
		return &config.Config{Services: []config.Service{cfg}}
	}
	put := func(what string, cfg *config.Config, want ...netip.AddrPort) {
		t.Helper()
		if err := c.configure(time.Now(), cfg); err != nil {
			t.Fatal(err)
		}
		c.until(t, what, func() bool {
			for _, a := range want {
				r := s.byAddr(a)
				if r == nil || !slices.ContainsFunc(s.shares, func(sh policy.Share) bool { return sh.Index == r.index }) {
					return false
				}
			}
			return len(s.shares) == len(want)
		})
	}
	// A name that nobody is asked for: that it is none is told by an error.
	srv := config.Backend{SRV: "."}
	s.found["."] = []resolve.Target{{Addr: found, Weight: 1}}
	put("the first", with(srv), found)
	r := s.byAddr(found)
	if err := c.configure(time.Now(), with(srv, config.Backend{Addr: fixed, Weight: 1})); err != nil {
		t.Fatal(err)
	}
	if st := s.policy.View().Backends[0].State; st != policy.Ready || s.byAddr(found) != r {
		t.Errorf("a reload that concerns others makes it %s", st)
	}
	put("the second", with(srv, config.Backend{Addr: fixed, Weight: 1}), fixed, found)

	r.carries = 1 // so that the service does not end at once
	ended := false
	follow := s.unresolve
	s.unresolve = func() { follow(); ended = true }
	put("removal", &config.Config{})
	if !ended || c.services["web"] != s {
		t.Fatalf("names are not followed any more: %v, services %v", ended, c.services)
	}
	put("return", with(srv, config.Backend{Addr: fixed, Weight: 1}), fixed, found)
}
