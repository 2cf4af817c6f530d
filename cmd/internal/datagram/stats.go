package datagram

import "sync/atomic"

// Stats are the figures of a listener: what is held now, and counts of
// datagrams since it was opened.
type Stats struct {
	Clients, Datagrams, Bytes int // held; also clients still to be told from new ones

	Received   uint64 // from the socket
	Passed     uint64 // sent on to a backend, also those that are carried
	Again      uint64 // passes of a client that was passed on before: stragglers, or a table without slots
	Refused    uint64 // dropped by Refuse or Close
	Dropped    uint64 // beyond the limits
	Overflowed uint64 // dropped by the kernel before they could be received, as of the last one received
	Unusable   uint64 // to a broadcast address, from port 0, at the end of their hops, to or from a link-local address
	Lost       uint64 // refused by the kernel on the way out, by a rule for one
}

type counters struct {
	clients, datagrams, bytes                                             atomic.Int64
	received, passed, again, refused, dropped, overflowed, unusable, lost atomic.Uint64
}

// Stats may be called at any time, also after Close.
func (l *Listener) Stats() Stats {
	c := &l.count
	return Stats{
		Clients: int(c.clients.Load()), Datagrams: int(c.datagrams.Load()), Bytes: int(c.bytes.Load()),
		Received: c.received.Load(), Passed: c.passed.Load(), Again: c.again.Load(),
		Refused: c.refused.Load(), Dropped: c.dropped.Load(), Overflowed: c.overflowed.Load(),
		Unusable: c.unusable.Load(), Lost: c.lost.Load(),
	}
}

// measure publishes what is held.
func (l *Listener) measure() {
	l.count.clients.Store(int64(len(l.store.by)))
	l.count.datagrams.Store(int64(l.store.count))
	l.count.bytes.Store(int64(l.store.size))
}
