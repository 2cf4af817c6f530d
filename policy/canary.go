package policy

import (
	"cmp"
	"hash/fnv"
	"slices"
	"time"
)

// A Canary is a second kind of replica that is tried out on some of the flows.
// The zero value is none.
//
// While at least one of its replicas is ready, Percent of the new flows go to
// them and the rest to the others, the stable ones, however many there are on
// either side; members count as stable. While none is ready the stable ones get
// everything, and the other way round. Each side is sized for its part of the
// load, by Max together, but with 0 < Percent < 100 never below one each: with
// Max 1 the canary is one more.
//
// A canary does not harm its service: a sleeping service wakes with a stable
// replica first, and a canary that does not start backs off on its own.
// Percent 0 takes its replicas out as soon as a stable one serves. To promote a
// canary is to make its hash that of the Spec: then its replicas are stable.
type Canary struct {
	Hash    string // of what its replicas are made from; "": none
	Percent int    // of new flows, 0 to 100
}

// trial is how the canary does.
type trial struct {
	tries int       // failed starts in a row
	tryT  time.Time // no start before
	err   error     // why the last one failed
	turn  int       // hundredths of a held connection that the canary is due
}

const (
	trialBase = time.Second     // first pause after a failed start of a canary
	trialMax  = 5 * time.Minute //
)

// configure takes new rules. A replica is a canary if it is made from what the
// canary is made from now; one that is made from neither stays what it was.
func (s *Service) configure(spec Spec) {
	if spec.Canary.Hash == spec.Hash || spec.Canary.Hash == "" {
		spec.Canary = Canary{}
	}
	if spec.Canary.Hash != s.spec.Canary.Hash || spec.Canary.Percent == 0 {
		s.trial = trial{}
	}
	s.spec = spec
	for _, b := range s.backends {
		s.cast(b)
	}
}

// cast tells a canary from a stable replica.
func (s *Service) cast(b *backend) {
	switch {
	case b.member, b.hash == s.spec.Hash:
		b.canary = false
	case b.hash == s.spec.Canary.Hash:
		b.canary = true
	}
}

// outdated says that a replica is to be replaced or, a canary that is not to
// get flows, to go.
func (s *Service) outdated(b *backend) bool {
	switch {
	case b.member:
		return false
	case b.canary:
		return b.hash != s.spec.Canary.Hash || s.spec.Canary.Percent == 0
	}
	return b.hash != s.spec.Hash
}

// ready counts the ready backends of one side.
func (s *Service) ready(canary bool) (n int) {
	for _, b := range s.backends {
		if b.state == Ready && b.canary == canary {
			n++
		}
	}
	return n
}

// limit is how many replicas there may be, but for one that takes over.
func (s *Service) limit() int {
	if p := s.spec.Canary.Percent; p > 0 && p < 100 && s.spec.Max > 0 {
		return max(s.spec.Max, 2)
	}
	return s.spec.Max
}

// divide says how many of the wanted replicas are to be stable and how many
// canaries: each side has what its part of the load asks for, rounded up, and
// of the stable side members are a part.
func (s *Service) divide() {
	n, p := s.want, s.spec.Canary.Percent
	s.stable, s.canaries, s.extra = n, 0, 0
	if n == 0 || p == 0 {
		return
	}
	ready := s.ready(true)
	if ready == 0 && s.trial.tries > 0 { // what works gets its room back
		s.canaries = 1
	} else {
		all := n + s.beside
		s.canaries, s.stable = (all*p+99)/100, max((all*(100-p)+99)/100-s.beside, 0)
		limit := s.limit()
		if s.now.Before(s.manualT) {
			limit = min(max(n, 2), limit)
		}
		if over := s.stable + s.canaries - limit; over > 0 {
			s.stable = max(s.stable-over, min(s.stable, 1))
			s.canaries = limit - s.stable
		}
		if s.stable == 0 && s.beside == 0 && ready == 0 {
			s.stable = n
		}
	}
	if !s.routable() { // a stable one first
		s.canaries = min(s.canaries, s.coming(true))
	}
	if ready > 0 {
		s.extra = max(s.stable+s.canaries-n, 0)
	}
}

// wants counts the replicas that one side should have.
func (s *Service) wants(canary bool) int {
	if canary {
		return s.canaries
	}
	return s.stable
}

// spared says that the service can do without a replica of a side that is to go
// altogether: it sleeps, or the other side serves.
func (s *Service) spared(b *backend) bool {
	return s.want == 0 || s.sideServes(!b.canary)
}

// blame notes why a backend is of no use, the canary's reasons apart from the
// service's.
func (s *Service) blame(b *backend, err error) {
	if b.canary {
		s.trial.err = err
		return
	}
	s.err = err
}

// retryCanary notes a failed start of a canary and puts the next one off.
func (s *Service) retryCanary(b *backend, err error) {
	wait := min(trialBase<<min(s.trial.tries, 16), trialMax)
	s.trial.tries++
	s.trial.tryT, s.trial.err = s.now.Add(wait), err
	s.emit(Note{Kind: NoteRetry, Index: b.index, Err: err, For: wait})
}

// proven ends the doubts about replicas of one side when one of them has been
// ready for a while: of the stable ones, one that came after the last crash.
func (s *Service) proven() {
	if s.trial.tries == 0 && s.crashes == 0 {
		return
	}
	for _, b := range s.backends {
		switch {
		case b.member || b.state != Ready || s.now.Before(b.readyAt.Add(settled)):
		case b.canary:
			s.trial.tries, s.trial.tryT = 0, time.Time{}
		case !b.readyAt.Before(s.crashT):
			s.crashes, s.tries = 0, 0
		}
	}
}

// shares are the ready backends of the first tier with their weights. Where
// they are of both sides, those of the canary are marked, and get percent of
// the new flows. A side that is to get none leaves when the other serves.
func (s *Service) shares() (want []Share, percent int) {
	tier, ok := s.tier()
	if !ok {
		return nil, 0
	}
	for _, b := range s.backends {
		if s.inMap(b) && s.priority(b) == tier && s.weight(b) > 0 {
			want = append(want, Share{b.index, s.weight(b), b.canary})
		}
	}
	drop := func(canary bool) {
		want = slices.DeleteFunc(want, func(sh Share) bool { return sh.Canary == canary })
	}
	has := func(canary bool) bool {
		return slices.ContainsFunc(want, func(sh Share) bool { return sh.Canary == canary })
	}
	percent = s.spec.Canary.Percent
	if has(true) && has(false) {
		switch {
		case percent == 0 && s.sideServes(false):
			drop(true)
		case percent == 100 && s.sideServes(true):
			drop(false)
		}
	}
	if has(true) && has(false) {
		return want, percent
	}
	for i := range want {
		want[i].Canary = false
	}
	return want, 0
}

// sideServes says that the kernel sends flows to a ready backend of that side.
func (s *Service) sideServes(canary bool) bool {
	return slices.ContainsFunc(s.backends, func(b *backend) bool { return b.canary == canary && s.serves(b) })
}

// turn says which backends the next held connection may go to: of a hundred,
// as many go to the canary as new flows do in the kernel.
func (s *Service) turn() func(*backend) bool {
	if s.percent == 0 || !s.sideServes(true) || !s.sideServes(false) {
		return func(*backend) bool { return true }
	}
	s.trial.turn += s.percent
	canary := s.trial.turn >= 100
	if canary {
		s.trial.turn -= 100
	}
	return func(b *backend) bool { return b.canary == canary }
}

// Divide fills size slots with indices into shares, evenly spread. Those of the
// canary get percent of the slots, exact to one, and each side's are shared out
// by weight.
func Divide(shares []Share, percent, size int) []int {
	at, weights := sides(shares)
	if len(at[0]) == 0 || len(at[1]) == 0 {
		return Spread(flat(shares, percent), size)
	}
	out := Spread([]int{100 - percent, percent}, size)
	var part [2][]int
	for side, n := range counts(out) {
		part[side] = Spread(weights[side], n)
	}
	for slot, side := range out {
		out[slot], part[side] = at[side][part[side][0]], part[side][1:]
	}
	return out
}

// DivideCount is how many slots, of classes, Divide should have: see [SlotCount].
func DivideCount(shares []Share, percent int, classes []int) int {
	return SlotCount(flat(shares, percent), classes)
}

// DivideConsistent is [Consistent] for a service with a canary: its backends
// have percent of the slots, exact to one, and these slots stay the canary's
// while backends come and go.
func DivideConsistent(names []string, shares []Share, percent int) []int {
	at, weights := sides(shares)
	if len(at[0]) == 0 || len(at[1]) == 0 {
		return Consistent(names, flat(shares, percent))
	}
	order := make([]int, ConsistentSize)
	for slot := range order {
		order[slot] = slot
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte("canary")) // never fails
	seed := h.Sum64()
	rank := func(slot int) uint64 { return mix(seed ^ mix(uint64(slot))) } //nolint:gosec // a slot is not negative
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(rank(a), rank(b)) })
	n := (ConsistentSize*percent + 50) / 100
	out := make([]int, ConsistentSize)
	for side, slots := range [][]int{order[n:], order[:n]} {
		called := make([]string, len(at[side]))
		for k, i := range at[side] {
			called[k] = names[i]
		}
		slices.Sort(slots)
		for k, b := range consistent(called, weights[side], slots) {
			out[slots[k]] = at[side][b]
		}
	}
	return out
}

// sides parts stable shares and those of the canary: their indices and weights.
func sides(shares []Share) (at, weights [2][]int) {
	for i, sh := range shares {
		if sh.Weight < 1 {
			continue
		}
		side := 0
		if sh.Canary {
			side = 1
		}
		at[side] = append(at[side], i)
		weights[side] = append(weights[side], sh.Weight)
	}
	return at, weights
}

// flat weighs all shares on one scale.
func flat(shares []Share, percent int) []int {
	var total [2]int
	_, weights := sides(shares)
	for side := range weights {
		for _, w := range weights[side] {
			total[side] += w
		}
	}
	out := make([]int, len(shares))
	for i, sh := range shares {
		switch {
		case total[0] == 0 || total[1] == 0:
			out[i] = sh.Weight
		case sh.Canary:
			out[i] = sh.Weight * total[0] * percent
		default:
			out[i] = sh.Weight * total[1] * (100 - percent)
		}
	}
	return out
}

// counts tells how often each of two sides has a slot.
func counts(slots []int) (n [2]int) {
	for _, side := range slots {
		n[side]++
	}
	return n
}
