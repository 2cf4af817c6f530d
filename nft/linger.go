package nft

import "time"

// linger is how long packets of a backend are guarded after the last service
// has let go of it: as long as a drain may sensibly take.
const linger = 24 * time.Hour

const (
	lingerSlack = 10 * time.Minute // by which the kernel's clock may be behind
	sweepEvery  = time.Minute
)

// applied notes a change that the kernel has confirmed.
func (t *Table) applied(c change, now time.Time) {
	t.have.apply(c)
	for _, e := range c.adds {
		switch {
		case e.kind != backends:
		case e.lingers:
			t.ends[e.at] = now.Add(linger)
		default:
			delete(t.ends, e.at)
		}
	}
}

// forget drops backends that the kernel has dropped. A transaction that deletes
// one of them fails, and everything is read again: addresses come back, and a
// service would wait for that whenever it wakes with one.
func (t *Table) forget(now time.Time) {
	if now.Sub(t.swept) < sweepEvery {
		return
	}
	t.swept = now
	for b, end := range t.ends {
		if now.Sub(end) >= lingerSlack {
			delete(t.have.backends, b)
			delete(t.ends, b)
		}
	}
}
