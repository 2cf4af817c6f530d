package conntrack

import (
	"net/netip"

	"golang.org/x/sys/unix"
)

// Count is what is known of the flows of a backend or service.
type Count struct {
	Live int // flows that are not finished now

	// Since the Watcher began, never falling. New counts flows (a finished entry
	// that is opened again is a new flow). Packets and Bytes are of both
	// directions and advance when a flow ends and with each dump.
	New, Packets, Bytes uint64
}

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
	bytes   uint64 // as last seen
	packets uint32 // modulo 2^32
	id      uint32
	backend uint32 // index
	gen     uint16 // of the dump that last showed it, or during or after which an event did
	flags   uint8
}

const (
	flagLive   = 1 << iota
	flagSilent // found by the first dump, not counted in New unless a NEW event comes
)

type backend struct {
	name  Backend
	count Count
	flows int // entries that refer to it
	total *Count
	armed bool // for wakes
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

	// To be told to the owner: backends that ran empty, and armed ones that got
	// a flow.
	zeros, wakes []uint32
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
			e.flags &^= flagSilent
			t.countNew(&e)
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
			t.countNew(&e)
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
			e.flags |= flagSilent // it may well be older than the Watcher
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
		if b.armed {
			b.armed = false
			t.wakes = append(t.wakes, e.backend)
		}
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
	b := &t.backends[e.backend]
	b.count.New++
	b.total.New++
}

// account adds what the flow has carried since it was last seen. Numbers that
// fell belong to another flow in the same place; they are taken as the start.
func (t *table) account(e *entry, f *Flow) {
	bytes := f.OrigCount.Bytes + f.ReplyCount.Bytes
	packets := uint32(f.OrigCount.Packets + f.ReplyCount.Packets)
	if bytes > e.bytes {
		b := &t.backends[e.backend]
		for _, c := range [...]*Count{&b.count, b.total} {
			c.Bytes += bytes - e.bytes
			c.Packets += uint64(packets - e.packets)
		}
	}
	if bytes != 0 {
		e.bytes, e.packets = bytes, packets
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

func (t *table) forget(name Backend) bool {
	k := backendKey(&name)
	i, ok := t.index[k]
	if !ok {
		return true
	}
	if t.backends[i].flows > 0 {
		return false
	}
	delete(t.index, k)
	t.backends[i] = backend{}
	t.free = append(t.free, i)
	return true
}

func (t *table) count(name Backend) Count {
	if i, ok := t.index[backendKey(&name)]; ok {
		return t.backends[i].count
	}
	return Count{}
}
