package conntrack

import (
	"fmt"
	"net/netip"
	"sync"
)

// tally gathers the counts that wait for the end of a dump, for the next one to
// answer all of them.
type tally struct {
	mu   sync.Mutex
	next *census
}

// census is a dump to come. It is complete when done is closed.
type census struct {
	of   map[end]*live // those asked about
	err  error
	done chan struct{}
}

// end is who answers a flow.
type end struct {
	addr  netip.AddrPort
	proto uint8
}

// live are an end's flows, and those of them that are like something.
type live struct {
	all, alike int
	like       func(*Flow) bool
}

// Live counts by a dump the flows of a backend that are not finished, of
// whichever service, and those of them for which like says so, which is the same
// for all who ask about this backend. A flow that starts during the call may be
// missed. Calls that come while a dump runs share the next.
func (c *Conn) Live(backend netip.AddrPort, proto uint8, like func(*Flow) bool) (all, alike int, err error) {
	of := end{unmap(backend), proto}
	c.tally.mu.Lock()
	n := c.tally.next
	first := n == nil
	if first {
		n = &census{of: map[end]*live{}, done: make(chan struct{})}
		c.tally.next = n
	}
	n.of[of] = &live{like: like}
	c.tally.mu.Unlock()
	if first {
		c.count(n)
	}
	<-n.done
	if n.err != nil {
		return 0, 0, fmt.Errorf("count flows of %s: %w", of.addr, n.err)
	}
	l := n.of[of]
	return l.all, l.alike, nil
}

// count dumps for all who have come until it begins.
func (c *Conn) count(n *census) {
	defer close(n.done)
	c.dumps.mu.Lock()
	defer c.dumps.mu.Unlock()
	c.tally.mu.Lock()
	c.tally.next = nil
	c.tally.mu.Unlock()
	// The kernel could pick by reply tuple (CTA_FILTER), but releases that parse
	// it wrongly match nothing and would report a busy backend as empty.
	n.err = c.dump(nil, func(f *Flow) error {
		if l := n.of[end{f.Reply.Src, f.Orig.Proto}]; l != nil && f.Live() {
			l.all++
			if l.like(f) {
				l.alike++
			}
		}
		return nil
	})
}
