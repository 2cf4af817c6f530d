package datagram

import (
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
)

const (
	// Between attempts to pass on what keeps coming back, or what the
	// kernel has no room for.
	firstPause = time.Millisecond
	lastPause  = time.Second
	// dumpPause keeps dumps apart; clients that need one share it.
	dumpPause = 50 * time.Millisecond
	// settled is how long after its last pass a client is forgotten: what
	// was under way by then has arrived.
	settled = 10 * time.Second
)

// wants says whether something of a client is to be passed on, sooner or later.
func (l *Listener) wants(c *client) bool {
	return (l.mode == Pass || c.released) && len(c.data) > 0 && !c.flow.loopback()
}

// due is when that is to be done.
func (l *Listener) due(c *client) time.Time {
	if c.gone && l.dumpAt.After(c.due) {
		return l.dumpAt
	}
	return c.due
}

// next is when there will be something to do that no datagram announces; the
// zero time is never.
func (l *Listener) next(now time.Time) (at time.Time) {
	earlier := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	for _, c := range l.store.order {
		switch {
		case l.wants(c):
			due := l.due(c)
			if !due.After(now) {
				// Also one that has come in while others were passed
				// on: it was never due before.
				return now
			}
			earlier(due)
		case l.spent(c):
			earlier(c.seen.Add(settled))
		}
	}
	if !at.IsZero() && !at.After(now) {
		return now
	}
	return at
}

// spent says whether a client is of no more use but to know a straggler by.
func (l *Listener) spent(c *client) bool {
	return len(c.data) == 0 && (l.mode == Pass || c.released)
}

// pass passes on what is due, the oldest client first.
func (l *Listener) pass(now time.Time) {
	var due []*client
	again := false
	for _, c := range l.store.order {
		if l.wants(c) && !l.due(c).After(now) {
			due = append(due, c)
			again = again || c.gone
		}
	}
	var known map[flow]uint32
	if again {
		var err error
		if known, err = l.cold(due); err != nil {
			l.trouble(fmt.Errorf("pass on datagrams of %v/udp: %w", l.addr, err))
		}
		l.dumpAt = time.Now().Add(dumpPause)
	}
	for _, c := range due {
		l.move(c, known)
	}
	l.store.forget(func(c *client) bool { return l.spent(c) && now.Sub(c.seen) >= settled })
	l.measure()
}

// move passes one client on.
//
// Its first datagram has made a conntrack entry which says that nothing is
// translated, for as long as the entry lives. Once that is deleted, the next
// datagram makes another, and the table chooses a backend. If the client itself
// sends that next datagram, it overtakes those that are held here; so no time is
// lost between.
func (l *Listener) move(c *client, known map[flow]uint32) {
	var b conntrack.Batch
	tuple := conntrack.Tuple{Src: c.flow.client, Dst: c.flow.service, Proto: unix.IPPROTO_UDP}
	if !c.gone {
		b.Delete(tuple)
	} else if id, ok := known[c.flow]; ok {
		// By its id: the client may have a translated one by now.
		b.DeleteFlow(&conntrack.Flow{Orig: tuple, ID: id})
	}
	if b.Len() > 0 {
		results, err := l.g.cfg.Tracker.Do(&b)
		if err == nil && !errors.Is(results[0], fs.ErrNotExist) {
			err = results[0]
		}
		if err != nil {
			// Sent now, it would only come back.
			l.trouble(fmt.Errorf("pass on datagrams of %v: %w", c.flow.client, err))
			l.later(c)
			return
		}
		// What the client has sent until now is in the socket, and older
		// than anything that takes the other way.
		l.deaf = nil
		_ = l.raw.Control(func(uintptr) { l.receive() })
	}
	if c.gone {
		l.count.again.Add(1)
	}
	l.later(c) // should anything still come
	c.gone = true
	w := l.g.wire
	if l.g.cfg.Beside != nil && l.g.cfg.Beside(c.flow.client.Addr()) {
		w = l.g.marked
	}
	var lost error
	sent := 0
	for _, d := range c.data {
		err := w.send(c.flow, d)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM) {
			c.due = c.seen.Add(firstPause)
			break
		}
		sent++
		if err == nil {
			l.count.passed.Add(1)
			continue
		}
		l.count.lost.Add(1)
		lost = fmt.Errorf("pass on datagram of %v to %v: %w", c.flow.client, c.flow.service, err)
	}
	l.store.drop(c, sent)
	if lost != nil {
		l.trouble(lost)
	}
	if len(c.data) == 0 {
		c.answer(lost)
	}
}

// later makes the next pass of a client wait, the longer the more there were:
// the first straggler is passed on at once.
func (l *Listener) later(c *client) {
	c.seen = time.Now()
	c.due = c.seen
	if c.tries > 0 {
		c.due = c.seen.Add(min(lastPause, firstPause<<min(c.tries, 16)))
	}
	c.tries++
}

// cold finds the entries of clients that are not translated, and their ids. An
// entry that has been deleted once is looked at before that is done again.
func (l *Listener) cold(clients []*client) (map[flow]uint32, error) {
	wanted := make(map[flow]bool, len(clients))
	for _, c := range clients {
		if c.gone {
			wanted[c.flow] = true
		}
	}
	found := map[flow]uint32{}
	err := l.g.cfg.Tracker.Snapshot(func(f *conntrack.Flow) error {
		if fl := (flow{f.Orig.Src, f.Orig.Dst}); direct(f) && wanted[fl] {
			found[fl] = f.ID
		}
		return nil
	})
	return found, err
}

// direct says whether an entry is a UDP client's with the very address it
// dialled.
func direct(f *conntrack.Flow) bool {
	return f.Orig.Proto == unix.IPPROTO_UDP && f.Reply.Src == f.Orig.Dst && !f.Status.Dying()
}
