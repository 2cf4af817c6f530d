package conntrack

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"
)

// kernel is a model of the kernel's table as the package comment describes it:
// a few tuples, each with an entry or not, and a queue of events.
type kernel struct {
	slots [5]slot
	queue []event
	lossy bool // events are dropped until the queue is empty

	begun map[Backend]uint64     // flows
	moved map[Backend][2]Counter // by flows that have ended; modulo 2^64, since what was moved earlier is taken off
	lost  bool                   // some event was, ever
	older bool                   // there were flows before the Watcher: of those it may count less
}

type slot struct {
	flow    Flow
	present bool
	unsaid  bool // in the table, NEW not sent yet
}

type event struct {
	kind kind
	flow Flow
}

func newKernel() *kernel {
	return &kernel{begun: map[Backend]uint64{}, moved: map[Backend][2]Counter{}}
}

// grow adds to what a flow has moved, differently in each direction.
func (s *slot) grow(b byte) {
	s.flow.OrigCount.add(Counter{1 + uint64(b>>6), 60 + uint64(b)})
	s.flow.ReplyCount.add(Counter{uint64(b >> 7), 2000 * uint64(b>>7)})
}

// has is what a backend's flows have moved in all.
func (k *kernel) has(b Backend) [2]Counter {
	sum := k.moved[b]
	for i := range k.slots {
		if s := &k.slots[i]; s.present && s.flow.Backend() == b {
			sum[0].add(s.flow.OrigCount)
			sum[1].add(s.flow.ReplyCount)
		}
	}
	return sum
}

// forget makes what there is older than the Watcher.
func (k *kernel) forget() {
	for i := range k.slots {
		k.announce(&k.slots[i])
	}
	k.queue, k.lossy, k.lost = nil, false, false
	clear(k.begun)
	clear(k.moved)
	for i := range k.slots {
		if s := &k.slots[i]; s.present {
			k.older = true
			b := s.flow.Backend()
			m := k.moved[b]
			m[0].add(Counter{-s.flow.OrigCount.Packets, -s.flow.OrigCount.Bytes})
			m[1].add(Counter{-s.flow.ReplyCount.Packets, -s.flow.ReplyCount.Bytes})
			k.moved[b] = m
		}
	}
}

func (k *kernel) send(kd kind, f Flow) {
	if kd != kindDestroy {
		f.OrigCount, f.ReplyCount = Counter{}, Counter{} // only the end tells them
	}
	if k.lossy {
		k.lost = true
		return
	}
	k.queue = append(k.queue, event{kd, f})
}

// announce sends the NEW that is due, as the kernel does before anything else
// can happen to the flow.
func (k *kernel) announce(s *slot) {
	if s.unsaid {
		s.unsaid = false
		k.send(kindNew, s.flow)
	}
}

// act does one thing to one tuple, chosen by b.
func (k *kernel) act(b byte) {
	i := int(b>>4) % len(k.slots)
	s := &k.slots[i]
	if s.unsaid && b&8 == 0 {
		k.announce(s)
		return
	}
	k.announce(s)
	switch op := b & 7; {
	case !s.present:
		proto := uint8(unix.IPPROTO_TCP)
		if i == 4 {
			proto = unix.IPPROTO_UDP
		}
		s.flow = Flow{
			Orig: Tuple{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(100+i)), Dst: addrPort("192.0.2.10:80"), Proto: proto},
			// Few ids: entries often come to lie where the last one lay.
			ID:     uint32(op & 1),
			Status: conntrack.StatusConfirmed,
			State:  StateSynSent,
		}
		s.flow.Reply = Tuple{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 1, op >> 1 & 1}), 8080), Dst: s.flow.Orig.Src, Proto: proto}
		if proto != unix.IPPROTO_TCP {
			s.flow.State = StateNone
		}
		s.present, s.unsaid = true, true
		s.grow(b)
		k.begun[s.flow.Backend()]++
	case op < 3: // the end
		if b&8 == 0 {
			s.grow(b)
		}
		m := k.moved[s.flow.Backend()]
		m[0].add(s.flow.OrigCount)
		m[1].add(s.flow.ReplyCount)
		k.moved[s.flow.Backend()] = m
		k.send(kindDestroy, s.flow)
		s.present = false
	case s.flow.Orig.Proto != unix.IPPROTO_TCP:
		s.grow(b)
	case op < 5 && !s.flow.State.Finished():
		s.flow.State = StateTimeWait + State(op&1)
		s.grow(b)
		k.send(kindUpdate, s.flow)
	case op == 5 && s.flow.State.Finished():
		s.flow.State = StateSynRecv
		k.begun[s.flow.Backend()]++
		k.send(kindUpdate, s.flow)
	case op == 6 && s.flow.State == StateSynSent:
		s.flow.State = StateSynRecv
		k.send(kindUpdate, s.flow)
	case op == 7: // the buffer runs over
		k.lossy = len(k.queue) > 0
	}
}

// drain is Watcher.drain: it reports whether events were lost.
func (k *kernel) drain(t *table) bool {
	for _, e := range k.queue {
		t.event(e.kind, &e.flow)
	}
	k.queue = k.queue[:0]
	lost := k.lossy
	k.lossy = false
	return lost
}

// run plays a script: the kernel acts, and the reader reads or reconciles, in
// an order that the script determines.
func run(script []byte) (*kernel, *table, error) {
	k, t := newKernel(), newTable()
	next := func() (byte, bool) {
		if len(script) == 0 {
			return 0, false
		}
		b := script[0]
		script = script[1:]
		return b, true
	}
	acts := func() {
		n, _ := next()
		for range n % 8 {
			if b, ok := next(); ok {
				k.act(b)
			}
		}
	}
	reconcile := func() {
		for attempt(k, t, acts, next) {
		}
	}
	check := func() error {
		// Let the moments pass in which a flow is there but not announced.
		for {
			for i := range k.slots {
				k.announce(&k.slots[i])
			}
			if !k.drain(t) {
				break
			}
			reconcile()
		}
		if err := k.compare(t); err != nil {
			return err
		}
		// A dump brings the bytes up to date and changes nothing else.
		quiet := func() {}
		none := func() (byte, bool) { return 0, false }
		if attempt(k, t, quiet, none) {
			return errors.New("loss without events")
		}
		for _, b := range t.backends {
			got, has := [2]Counter{b.count.In, b.count.Out}, k.has(b.name)
			if !k.lost && !k.older && got != has {
				return fmt.Errorf("%s moved %v, in the kernel %v", b.name, got, has)
			}
		}
		return k.compare(t)
	}
	if b, _ := next(); b&1 != 0 {
		acts()
		k.forget()
	}
	reconcile()
	last := map[Backend]Count{}
	for {
		if err := k.sane(t, last); err != nil {
			return k, t, err
		}
		b, ok := next()
		if !ok {
			break
		}
		switch {
		case b < 160:
			acts()
		case b < 200:
			if k.drain(t) {
				reconcile()
			}
		case b < 240:
			reconcile()
		default:
			if err := check(); err != nil {
				return k, t, err
			}
		}
	}
	return k, t, check()
}

// attempt is Watcher.dump: it reports whether it has to be repeated.
func attempt(k *kernel, t *table, acts func(), next func() (byte, bool)) (again bool) {
	k.drain(t)
	t.begin()
	first, _ := next()
	var part []Flow
	for i := range k.slots {
		acts()
		if s := &k.slots[(i+int(first))%len(k.slots)]; s.present {
			part = append(part, s.flow)
		}
		if b, ok := next(); ok && b&1 == 0 && i < len(k.slots)-1 {
			continue
		}
		acts()
		if k.drain(t) {
			return true
		}
		for i := range part {
			t.dumped(&part[i])
			if i == 0 && first&0x80 != 0 {
				t.dumped(&part[i]) // dumps repeat themselves at times
			}
		}
		part = part[:0]
	}
	acts()
	if k.drain(t) {
		return true
	}
	t.sweep()
	return false
}

// sane says that sums have not fallen since last, and that nothing was counted
// twice, whatever was lost.
func (k *kernel) sane(t *table, last map[Backend]Count) error {
	for i := range t.backends {
		b := &t.backends[i]
		now, was, has := b.count, last[b.name], k.has(b.name)
		last[b.name] = now
		for _, c := range [][3]uint64{
			{now.New, was.New, k.begun[b.name]},
			{now.In.Packets, was.In.Packets, has[0].Packets}, {now.In.Bytes, was.In.Bytes, has[0].Bytes},
			{now.Out.Packets, was.Out.Packets, has[1].Packets}, {now.Out.Bytes, was.Out.Bytes, has[1].Bytes},
		} {
			if c[0] < c[1] || c[0] > c[2] {
				return fmt.Errorf("%s: %+v after %+v, in the kernel %v", b.name, now, was, has)
			}
		}
	}
	return nil
}

func (k *kernel) compare(t *table) error {
	live, flows := map[Backend]int{}, 0
	for i := range k.slots {
		if s := &k.slots[i]; s.present {
			flows++
			if s.flow.Live() {
				live[s.flow.Backend()]++
			}
		}
	}
	var total Count
	entries := 0
	for _, b := range t.backends {
		if b.count.Live != live[b.name] {
			return fmt.Errorf("%s: %d live, the kernel has %d", b.name, b.count.Live, live[b.name])
		}
		if !k.lost && !k.older && b.count.New != k.begun[b.name] {
			return fmt.Errorf("%s: %d begun, in the kernel %d", b.name, b.count.New, k.begun[b.name])
		}
		total.Live += b.count.Live
		total.New += b.count.New
		total.In.add(b.count.In)
		total.Out.add(b.count.Out)
		entries += b.flows
	}
	if entries != len(t.flows) || len(t.flows) != flows {
		return fmt.Errorf("%d entries by backend, %d in all, the kernel has %d", entries, len(t.flows), flows)
	}
	for _, c := range t.services { // of either protocol
		total.Live -= c.Live
		total.New -= c.New
		total.In.add(Counter{-c.In.Packets, -c.In.Bytes})
		total.Out.add(Counter{-c.Out.Packets, -c.Out.Bytes})
	}
	if total != (Count{}) {
		return fmt.Errorf("services and backends differ by %+v", total)
	}
	return nil
}

func FuzzTable(f *testing.F) {
	f.Add([]byte("\x03\x03\x10\x13\x15\xff"))
	f.Add([]byte("\xd0\x01\x10\x01\x02\x13\x15\x00\x00\x00\x00\xff\x02\x13\x15\xff"))
	f.Fuzz(func(t *testing.T, script []byte) {
		if _, _, err := run(script); err != nil {
			t.Fatal(err)
		}
	})
}

// Whatever the order of events, reads and dumps, the table ends up with what
// the kernel has.
func TestTableConverges(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	lossless, n := 0, 4000
	for range n {
		script := make([]byte, 20+r.IntN(300))
		for i := range script {
			script[i] = byte(r.Uint32())
		}
		if r.IntN(2) == 0 { // without loss, so that cumulative counts are exact too
			for i := range script {
				if script[i]&7 == 7 {
					script[i] &^= 1
				}
			}
		}
		k, _, err := run(script)
		if err != nil {
			t.Fatalf("%v\nscript %q", err, script)
		}
		if !k.lost {
			lossless++
		}
	}
	if lossless < n/4 || lossless == n {
		t.Errorf("%d of %d scripts lost no event: the test has lost its balance", lossless, n)
	}
}
