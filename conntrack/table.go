package conntrack

import (
	"math"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Count is what is known of the flows of a backend or service.
type Count struct {
	Live int // flows that are not finished now

	// Since the Watcher began, never falling. New counts flows (a finished entry
	// that is opened again is a new flow). In is what clients have sent, Out what
	// was sent to them; both advance with each dump and when an entry goes, as
	// the package comment tells.
	New     uint64
	In, Out Counter
}

// Bytes are those of both directions.
func (c Count) Bytes() uint64 { return c.In.Bytes + c.Out.Bytes }

// key is a tuple in a form that hashes and compares as one block of memory and
// holds no pointer: the garbage collector does not look into a map of these.
type key struct {
	src, dst         [16]byte
	sport, dport     uint16
	zone             uint16
	proto, v4or6bits uint8
}

func makeKey(src, dst netip.AddrPort, proto uint8, zone uint16) key {
	return key{
		src: src.Addr().As16(), dst: dst.Addr().As16(),
		sport: src.Port(), dport: dst.Port(),
		zone: zone, proto: proto, v4or6bits: uint8(dst.Addr().BitLen()),
	}
}

func backendKey(b *Backend) key { return makeKey(b.Backend, b.Service, b.Proto, 0) }

func serviceKey(s netip.AddrPort, proto uint8) key {
	return makeKey(netip.AddrPortFrom(netip.IPv6Unspecified(), 0), s, proto, 0)
}

// entry is one flow. Finished flows stay until their end is announced, so that
// it is not taken for that of another flow of the same tuple.
type entry struct {
	in, out meter
	id      uint32
	backend uint32 // index
	gen     uint16 // of the dump that last showed it, or during or after which an event did
	flags   uint8
}

const (
	flagLive   = 1 << iota
	flagSilent // found before the first dump was complete, not counted in New unless a NEW event comes
	flagBase   // what its meters say, or will first say, is older than the Watcher and not counted
)

// meter is one direction of a flow as it was last seen. It is half as large as
// a Counter and its like would be: the packets are told modulo 2^32.
type meter struct {
	bytes   uint64
	packets uint32
}

// read takes a new reading and returns what has come since the last. One that is
// lower began at zero since then: someone has reset the counters, or the flow is
// another in the same place, the end of the first having been missed.
func (m *meter) read(now Counter) (since Counter) {
	packets := uint32(now.Packets) //nolint:gosec // modulo 2^32
	if now.Bytes < m.bytes || packets-m.packets > math.MaxInt32 {
		*m = meter{}
	}
	since = Counter{Packets: uint64(packets - m.packets), Bytes: now.Bytes - m.bytes}
	*m = meter{bytes: now.Bytes, packets: packets}
	return since
}

func (c *Counter) add(d Counter) {
	c.Packets += d.Packets
	c.Bytes += d.Bytes
}

type backend struct {
	name  Backend
	count Count
	flows int // entries that refer to it
	total *Count
	empty bool // in zeros
}

type ended struct {
	key
	id uint32
}

// table holds the flows and their sums. It does no I/O and no locking. The
// package comment argues why it converges.
type table struct {
	flows    map[key]entry
	index    map[key]uint32 // of backends
	backends []backend
	free     []uint32 // of backends
	services map[key]*Count

	gen     uint16
	dumping bool               // between begin and sweep
	gone    map[ended]struct{} // entries whose end was announced while dumping
	first   bool               // the first dump is not complete

	zeros []uint32 // backends that ran empty: to be told to the owner
}

func newTable() *table {
	return &table{
		flows:    map[key]entry{},
		index:    map[key]uint32{},
		services: map[key]*Count{},
		gone:     map[ended]struct{}{},
		first:    true,
	}
}

// event applies what an event says. Each is absolute, so that seeing one twice
// does no harm.
func (t *table) event(k kind, f *Flow) {
	fk := makeKey(f.Orig.Src, f.Orig.Dst, f.Orig.Proto, f.Orig.Zone)
	e, ok := t.flows[fk]
	same := ok && e.id == f.ID && t.backends[e.backend].name == f.Backend()
	switch k {
	case kindNew:
		switch {
		case !same:
			if ok {
				t.drop(&e) // the end of an earlier flow was missed
			}
			e = t.add(f)
			t.countNew(&e)
		case e.flags&flagSilent != 0:
			t.hear(&e)
		}
	case kindUpdate:
		switch {
		case f.Orig.Proto != unix.IPPROTO_TCP || f.State == StateNone:
			return // about something else
		case !same:
			if ok {
				t.drop(&e)
			}
			e = t.add(f) // its beginning was missed
			if t.first {
				e.flags |= flagSilent | flagBase
			} else {
				t.countNew(&e)
			}
		case f.Live() && e.flags&flagLive == 0:
			t.countNew(&e) // opened again
		}
	case kindDestroy:
		if same {
			t.account(&e, f)
		}
		if ok && e.id == f.ID { // else the end of an earlier flow, told again
			t.drop(&e)
			delete(t.flows, fk)
		}
		if t.dumping {
			t.gone[ended{fk, f.ID}] = struct{}{}
		}
		return
	default:
		return
	}
	e.gen = t.gen
	t.account(&e, f)
	t.setLive(&e, f.Live())
	t.flows[fk] = e
}

// begin starts the reconciliation with a dump. From here on event and dumped may
// alternate, if all events sent before an entry was dumped precede it; then
// comes sweep, or begin for another attempt.
func (t *table) begin() {
	t.gen++
	t.dumping = true
	clear(t.gone)
}

// dumped takes over an entry of a dump, unless an event has said something newer
// or as new.
func (t *table) dumped(f *Flow) {
	fk := makeKey(f.Orig.Src, f.Orig.Dst, f.Orig.Proto, f.Orig.Zone)
	e, ok := t.flows[fk]
	if _, gone := t.gone[ended{fk, f.ID}]; gone || ok && e.gen == t.gen {
		return
	}
	same := ok && e.id == f.ID && t.backends[e.backend].name == f.Backend()
	if f.Status.Dying() && !same {
		return // its end has been announced, or is about to be
	}
	switch {
	case !same:
		if ok {
			t.drop(&e)
		}
		e = t.add(f)
		if t.first {
			// It may well be older than the Watcher, and its bytes counted by
			// another one before.
			e.flags |= flagSilent | flagBase
		} else {
			t.countNew(&e)
		}
	case f.Live() && e.flags&flagLive == 0:
		t.countNew(&e)
	}
	e.gen = t.gen
	t.account(&e, f)
	t.setLive(&e, f.Live())
	t.flows[fk] = e
}

// sweep ends a reconciliation: what neither the dump nor an event since has
// shown is gone, and its end was lost or never announced.
func (t *table) sweep() {
	for k, e := range t.flows {
		if e.gen != t.gen {
			t.drop(&e)
			delete(t.flows, k)
		}
	}
	clear(t.gone)
	t.dumping, t.first = false, false
}

func (t *table) add(f *Flow) entry {
	e := entry{id: f.ID, gen: t.gen, backend: t.intern(f.Backend())}
	t.backends[e.backend].flows++
	return e
}

// drop undoes add. The entry is still in the map.
func (t *table) drop(e *entry) {
	t.setLive(e, false)
	t.backends[e.backend].flows--
}

func (t *table) setLive(e *entry, live bool) {
	if live == (e.flags&flagLive != 0) {
		return
	}
	e.flags ^= flagLive
	b := &t.backends[e.backend]
	if live {
		b.count.Live++
		b.total.Live++
		return
	}
	b.count.Live--
	b.total.Live--
	if b.count.Live == 0 && !b.empty {
		b.empty = true
		t.zeros = append(t.zeros, e.backend)
	}
}

func (t *table) countNew(e *entry) {
	e.flags &^= flagSilent // or its NEW event would count it again
	b := &t.backends[e.backend]
	b.count.New++
	b.total.New++
}

// hear takes back that a flow is older than the Watcher: all that it carries,
// as it will be read, is to be counted.
func (t *table) hear(e *entry) {
	if e.flags&flagBase != 0 {
		e.in, e.out = meter{}, meter{}
	}
	e.flags &^= flagBase
	t.countNew(e)
}

// account adds what the flow has carried since it was last seen. Of events only
// that of the end tells it.
func (t *table) account(e *entry, f *Flow) {
	if f.OrigCount == (Counter{}) && f.ReplyCount == (Counter{}) {
		return
	}
	unread := e.in == (meter{}) && e.out == (meter{})
	in, out := e.in.read(f.OrigCount), e.out.read(f.ReplyCount)
	if in == (Counter{}) && out == (Counter{}) || unread && e.flags&flagBase != 0 {
		return
	}
	e.flags &^= flagBase
	b := &t.backends[e.backend]
	for _, c := range [...]*Count{&b.count, b.total} {
		c.In.add(in)
		c.Out.add(out)
	}
}

// intern returns the index of a backend, which stays valid until forget.
func (t *table) intern(name Backend) uint32 {
	k := backendKey(&name)
	if i, ok := t.index[k]; ok {
		return i
	}
	sk := serviceKey(name.Service, name.Proto)
	total := t.services[sk]
	if total == nil {
		total = new(Count)
		t.services[sk] = total
	}
	b := backend{name: name, total: total}
	if n := len(t.free); n > 0 {
		i := t.free[n-1]
		t.free = t.free[:n-1]
		t.backends[i] = b
		t.index[k] = i
		return i
	}
	i := uint32(len(t.backends))
	t.backends = append(t.backends, b)
	t.index[k] = i
	return i
}

func (t *table) forget(name Backend) (Count, bool) {
	k := backendKey(&name)
	i, ok := t.index[k]
	if !ok {
		return Count{}, true
	}
	c := t.backends[i].count
	if t.backends[i].flows > 0 {
		return c, false
	}
	delete(t.index, k)
	t.backends[i] = backend{}
	t.free = append(t.free, i)
	return c, true
}

func (t *table) count(name Backend) Count {
	if i, ok := t.index[backendKey(&name)]; ok {
		return t.backends[i].count
	}
	return Count{}
}
