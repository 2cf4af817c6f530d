package handover

import "sync"

// peer is what has been seen of a backend's side of one connection.
type peer struct {
	wake chan struct{} // holds a token when there is news

	mu   sync.Mutex
	news sighting
}

// sighting sums up segments, so that one seen twice (on a bridge port and on the
// bridge) or missed does no harm.
type sighting struct {
	synack *segment // without data
	reset  bool
	acks   int    // plain ACKs seen
	acked  uint32 // the highest of them, if any
	window uint16 // the largest that came with it
	follow bool   // the client's side has been seen
	client uint32 // the highest it has acknowledged
	room   uint16 // the window that came with it, as on the wire
}

func (p *peer) see(s *segment) {
	p.mu.Lock()
	switch n := &p.news; {
	case s.flags&flagRST != 0:
		n.reset = true
	case s.flags&(flagSYN|flagACK) == flagSYN|flagACK:
		if n.synack == nil {
			c := *s
			c.data = nil
			n.synack = &c
		}
	case s.flags&flagACK != 0:
		switch {
		case n.acks == 0 || before(n.acked, s.ack):
			n.acked, n.window = s.ack, s.window
		case n.acked == s.ack:
			n.window = max(n.window, s.window)
		}
		n.acks++
	}
	p.mu.Unlock()
	p.ring()
}

func (p *peer) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// seeClient takes in what goes the other way, this program's own packets included:
// they acknowledge nothing that the client has not.
func (p *peer) seeClient(s *segment) {
	if s.flags&(flagSYN|flagRST|flagACK) != flagACK {
		return
	}
	p.mu.Lock()
	if n := &p.news; !n.follow || !before(s.ack, n.client) {
		n.follow, n.client, n.room = true, s.ack, s.window
	}
	p.mu.Unlock()
	p.ring()
}

func (p *peer) look() sighting {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news
}
