package nft

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

func TestClass(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]int{-1: 0, 0: 0, 1: 1, 2: 2, 7: 7, 16: 16, 17: 24, 24: 24, 25: 32, 769: 1024, 1024: 1024, 1025: 2048, 5000: 2048} {
		if got := Class(n); got != want {
			t.Errorf("Class(%d) = %d, want %d", n, got, want)
		}
	}
	if all := Classes(); !slices.IsSorted(all) || all[0] != 1 {
		t.Errorf("classes %v", all)
	}
}

func TestLaneName(t *testing.T) {
	t.Parallel()
	for _, l := range []lane{{mod: 2}, {mod: 16, index: 15}, {mod: 1024, by: Random}, {mod: 3, by: SourceHash}, {mod: 1024, by: FlowHash}} {
		if got, ok := parseLane(l.String()); !ok || got != l {
			t.Errorf("parse %s: %+v, %v", l, got, ok)
		}
	}
	for _, s := range []string{"", "rr", "rr-2", "rr-1-0", "rr-17-0", "rr-02-0", "rr-2-0-0", "random-1", "random-2-1", "layout-1", "rr-2--1", "rr-2-x", "source-1", "flow-2-0"} {
		if l, ok := parseLane(s); ok {
			t.Errorf("parse %q: %+v", s, l)
		}
	}
}

// world makes random services out of few endpoints and backends, so that they
// collide.
type world struct{ *rand.Rand }

func (w world) endpoint() Endpoint {
	proto := []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP}[w.IntN(2)]
	switch w.IntN(20) {
	case 0:
		return Endpoint{netip.IPv4Unspecified(), proto, 80}
	case 1:
		return Endpoint{netip.IPv6Unspecified(), proto, 80}
	}
	if w.IntN(3) == 0 {
		return Endpoint{netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", 1+w.IntN(6))), proto, 80}
	}
	return Endpoint{netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", 1+w.IntN(40))), proto, 80}
}

func (w world) service(at Endpoint) *Service {
	n := []int{0, 0, 1, 1, 2, 2, 2, 2, 2, 3, 24}[w.IntN(11)]
	s := &Service{}
	if w.IntN(2) == 0 {
		s.Balance, s.Masquerade = Balance(w.IntN(4)), w.IntN(3) == 0
		s.Affinity = []time.Duration{0, 0, time.Minute, 24 * time.Hour}[w.IntN(4)]
	}
	if w.IntN(3) == 0 {
		few := []uint32{0, 0, 5, 100}
		s.Limits = Limits{few[w.IntN(4)], few[w.IntN(4)], few[w.IntN(4)], few[w.IntN(4)]}
	}
	for range n {
		b := fmt.Sprintf("10.0.0.%d:80", w.IntN(5))
		if at.Addr.Is6() {
			b = fmt.Sprintf("[fd00::%d]:80", w.IntN(5))
		}
		s.Slots = append(s.Slots, netip.MustParseAddrPort(b))
	}
	return s
}

func (w world) changes() map[Endpoint]*Service {
	m := make(map[Endpoint]*Service)
	for range 1 + w.IntN(12) {
		at := w.endpoint()
		if m[at] = w.service(at); w.IntN(4) == 0 {
			m[at] = nil
		}
	}
	return m
}

// kernel is a model of the sets that is as strict as the kernel: a delete must
// hit, an add must not.
type kernel map[string]nftables.SetElement

func (k kernel) do(t *testing.T, c change) {
	t.Helper()
	id := func(e entry) string {
		return e.home().name(families()[familyOf(e.at.Addr)]) + string(e.encode().Key)
	}
	for _, e := range c.dels {
		if _, ok := k[id(e)]; !ok {
			t.Fatalf("delete of %+v: not there", e)
		}
		delete(k, id(e))
	}
	for _, e := range c.adds {
		if _, ok := k[id(e)]; ok {
			t.Fatalf("add of %+v: there already", e)
		}
		k[id(e)] = e.encode()
	}
}

// read is what a reading of the kernel makes of it.
func (k kernel) read(t *testing.T) *state {
	t.Helper()
	var c change
	for _, h := range homes() {
		for _, f := range families() {
			name := h.name(f)
			for id, e := range k {
				if len(id) != len(name)+len(e.Key) || id[:len(name)] != name {
					continue
				}
				if e.VerdictData != nil {
					e.Val = verdictBytes(t, e.VerdictData)
				}
				got, err := decode(h, f, e)
				if err != nil {
					t.Fatal(err)
				}
				c.adds = append(c.adds, got)
			}
		}
	}
	s := newState()
	s.apply(c)
	return s
}

// verdictBytes encodes a verdict as a listing has it.
func verdictBytes(t *testing.T, v *expr.Verdict) []byte {
	t.Helper()
	name := v.Chain + "\x00"
	b := append([]byte{8, 0, unix.NFTA_VERDICT_CODE, 0, 0xff, 0xff, 0xff, 0xfd, byte(4 + len(name)), 0, unix.NFTA_VERDICT_CHAIN, 0}, name...)
	return append(b, make([]byte, (4-len(name)%4)%4)...)
}

func (s *state) equal(o *state) bool {
	return reflect.DeepEqual(s.at, o.at) && maps.Equal(s.backends, o.backends) && maps.Equal(s.refs, o.refs) && maps.Equal(s.asleep, o.asleep)
}

// FuzzPlan applies planned changes, one after the other, to a model of the
// kernel: the model must accept them, hold what was wanted, and read back as
// the state that the plans were made from.
func FuzzPlan(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := world{rand.New(rand.NewPCG(seed, 0))}
		have, kern := newState(), make(kernel)
		want := make(map[Endpoint]Service)
		for range 20 {
			changes := w.changes()
			lull := map[Endpoint]bool{backendOf(w.endpoint(), netip.AddrPortFrom(w.endpoint().Addr, 80)): w.IntN(3) > 0}
			c := have.plan(changes).and(have.lull(lull))
			kern.do(t, c)
			have.apply(c)
			for b, sleeps := range lull {
				if have.asleep[b] != sleeps {
					t.Fatalf("%s sleeps: %v", b, have.asleep[b])
				}
			}
			for at, s := range changes {
				if delete(want, at); s != nil {
					want[at] = *s
				}
			}
			if got := have.services(); !reflect.DeepEqual(got, want) {
				t.Fatalf("services\n%v, want\n%v", got, want)
			}
			if back := kern.read(t); !back.equal(have) {
				t.Fatalf("read back\n%+v, want\n%+v", back, have)
			}
			if again := have.plan(changes); !again.empty() {
				t.Fatalf("the same once more: %+v", again)
			}
			checkLanes(t, have)
			checkBackends(t, have)
		}
	})
}

// checkLanes: no counter serves two, and random serves only if all are taken.
func checkLanes(t *testing.T, s *state) {
	t.Helper()
	users := make(map[seat]int)
	for at, es := range s.at {
		if sv, l := service(es); len(sv.Slots) > 1 {
			users[seatOf(at, l)]++
		}
	}
	for st, n := range users {
		if st.lane.by == RoundRobin && n > 1 {
			t.Fatalf("%d services on lane %s", n, st.lane)
		}
		if st.lane.by == RoundRobin && int(st.lane.index) >= lanes(int(st.lane.mod)) {
			t.Fatalf("lane %s is not one of the layout's", st.lane)
		}
	}
	if len(s.taken) != len(maps.Collect(func(yield func(seat, int) bool) {
		for st, n := range users {
			if st.lane.by == RoundRobin && !yield(st, n) {
				return
			}
		}
	})) {
		t.Fatalf("taken %v, in use %v", s.taken, users)
	}
}

func checkBackends(t *testing.T, s *state) {
	t.Helper()
	for at, sv := range s.services() {
		for _, b := range sv.Slots {
			if e, ok := s.backends[backendOf(at, b)]; !ok || e.lingers {
				t.Fatalf("backend %s of %s: %+v", b, at, e)
			}
		}
	}
	for b, e := range s.backends {
		if e.lingers != (s.refs[b] == 0) {
			t.Fatalf("backend %s has %d services, lingers %v", b, s.refs[b], e.lingers)
		}
	}
}

func TestLanesOverflow(t *testing.T) {
	t.Parallel()
	s := newState()
	two := &Service{Slots: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:80"), netip.MustParseAddrPort("10.0.0.2:80")}}
	at := func(i int) Endpoint {
		return Endpoint{netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), unix.IPPROTO_TCP, 80}
	}
	all := make(map[Endpoint]*Service)
	for i := range lanes(2) + 3 {
		all[at(i)] = two
	}
	s.apply(s.plan(all))
	var random []Endpoint
	for e, es := range s.at {
		if _, l := service(es); l.by == Random {
			random = append(random, e)
		}
	}
	if len(random) != 3 {
		t.Fatalf("%d services on the random chain, want 3", len(random))
	}
	// One leaves, and one that changes at the same time gets its lane.
	gone := at(0)
	if slices.Contains(random, gone) {
		gone = at(1)
	}
	s.apply(s.plan(map[Endpoint]*Service{gone: nil, random[0]: two}))
	if _, l := service(s.at[random[0]]); l.by == Random {
		t.Error("a free lane was not taken")
	}
	checkLanes(t, s)
}

// FuzzRepair plans from a kernel state that somebody has tampered with.
func FuzzRepair(f *testing.F) {
	for seed := range uint64(50) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		w := world{rand.New(rand.NewPCG(seed, 1))}
		have, kern := newState(), make(kernel)
		want := make(map[Endpoint]*Service)
		for range 5 {
			changes := w.changes()
			c := have.plan(changes)
			kern.do(t, c)
			have.apply(c)
			maps.Copy(want, changes)
		}
		for id := range kern {
			if w.IntN(4) == 0 {
				delete(kern, id)
			}
		}
		stray := w.endpoint()
		kern[home{slots, 3}.name(families()[familyOf(stray.Addr)])+string(appendSlot(endpointKey(stray), 2))] =
			entry{stray, element{kind: slots, slot: 2, lane: lane{mod: 3}, to: w.service6or4(stray)}}.encode()
		found := kern.read(t)
		for at := range found.at {
			if _, ok := want[at]; !ok {
				want[at] = nil
			}
		}
		c := found.plan(want)
		kern.do(t, c)
		found.apply(c)
		wanted := make(map[Endpoint]Service)
		for at, s := range want {
			if s != nil {
				wanted[at] = *s
			}
		}
		if got := kern.read(t).services(); !reflect.DeepEqual(got, wanted) {
			t.Fatalf("after repair\n%v, want\n%v", got, wanted)
		}
	})
}

func (w world) service6or4(at Endpoint) netip.AddrPort {
	if at.Addr.Is6() {
		return netip.MustParseAddrPort("[fd00::77]:80")
	}
	return netip.MustParseAddrPort("10.0.0.77:80")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\xc0\x00\x02\x0a\x06\x00\x00\x00\x00\x50\x00\x00"), []byte("\x0a\x00\x00\x01\x1f\x90\x00\x00"))
	f.Fuzz(func(t *testing.T, key, val []byte) {
		for _, h := range homes() {
			for _, fam := range families() {
				e, err := decode(h, fam, nftables.SetElement{Key: key, Val: val})
				if err != nil || e.at.check() != nil || e.to.IsValid() && e.to.Port() == 0 {
					continue
				}
				back := e.encode()
				if back.VerdictData != nil {
					back.Val = verdictBytes(t, back.VerdictData)
				}
				again, err := decode(h, fam, back)
				if err != nil || again != e {
					t.Fatalf("%+v became %+v, %v", e, again, err)
				}
			}
		}
	})
}

func TestServiceCheck(t *testing.T) {
	t.Parallel()
	at := Endpoint{netip.MustParseAddr("192.0.2.1"), unix.IPPROTO_TCP, 80}
	b := netip.MustParseAddrPort("10.0.0.1:80")
	for name, c := range map[string]struct {
		at Endpoint
		s  Service
	}{
		"no address":      {Endpoint{Proto: unix.IPPROTO_TCP, Port: 80}, Service{}},
		"backend nowhere": {at, Service{Slots: []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), 80)}}},
		"mapped":          {Endpoint{netip.MustParseAddr("::ffff:192.0.2.1"), unix.IPPROTO_TCP, 80}, Service{}},
		"zone":            {Endpoint{netip.MustParseAddr("fe80::1%eth0"), unix.IPPROTO_TCP, 80}, Service{}},
		"multicast":       {Endpoint{netip.MustParseAddr("224.0.0.1"), unix.IPPROTO_UDP, 80}, Service{}},
		"protocol":        {Endpoint{at.Addr, unix.IPPROTO_SCTP, 80}, Service{}},
		"no port":         {Endpoint{at.Addr, at.Proto, 0}, Service{}},
		"no class":        {at, Service{Slots: slices.Repeat([]netip.AddrPort{b}, 17)}},
		"other family":    {at, Service{Slots: []netip.AddrPort{netip.MustParseAddrPort("[fd00::1]:80")}}},
		"backend port 0":  {at, Service{Slots: []netip.AddrPort{netip.AddrPortFrom(b.Addr(), 0)}}},
		"balance":         {at, Service{Balance: FlowHash + 1}},
		"client limit":    {at, Service{Limits: Limits{MaxFlowsPerClient: 10_001}}},
		"rate":            {at, Service{Limits: Limits{NewPerSecond: 1_000_001}}},
		"affinity":        {at, Service{Affinity: 8 * 24 * time.Hour}},
		"no affinity":     {at, Service{Affinity: -1}},
		"no backend":      {at, Service{Slots: make([]netip.AddrPort, 1)}},
	} {
		if err := c.s.check(c.at); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := (Service{Slots: slices.Repeat([]netip.AddrPort{b}, 24)}).check(at); err != nil {
		t.Error(err)
	}
}
