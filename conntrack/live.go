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
	live map[end]int // of those asked about
	err  error
	done chan struct{}
}

// end is who answers a flow.
type end struct {
	addr  netip.AddrPort
	proto uint8
}

// Live counts by a dump the flows of a backend that are not finished, of
// whichever service. A flow that starts during the call may be missed. Calls
// that come while a dump runs share the next.
func (c *Conn) Live(backend netip.AddrPort, proto uint8) (int, error) {
	of := end{unmap(backend), proto}
	c.tally.mu.Lock()
	n := c.tally.next
	first := n == nil
	if first {
		n = &census{live: map[end]int{}, done: make(chan struct{})}
		c.tally.next = n
	}
	n.live[of] = 0
	c.tally.mu.Unlock()
	if first {
		c.count(n)
	}
	<-n.done
	if n.err != nil {
		return 0, fmt.Errorf("count flows of %s: %w", of.addr, n.err)
	}
	return n.live[of], nil
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
		of := end{f.Reply.Src, f.Orig.Proto}
		if live, asked := n.live[of]; asked && f.Live() {
			n.live[of] = live + 1
		}
		return nil
	})
}
