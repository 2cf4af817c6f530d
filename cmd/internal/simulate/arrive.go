package simulate

import "sluice/policy"

// arrivals takes the next flow of the trace when its time has come.
func (h *host) arrivals() {
	f, ok := h.src.Next()
	if !ok {
		return
	}
	h.agenda.add(max(f.Start, h.now), func() {
		h.meter.arrived()
		h.arrive(&conn{flow: f, at: h.now})
		h.arrivals()
	})
}

// arrive is a SYN: the map sends it to a replica, or else it comes to the
// listener.
func (h *host) arrive(c *conn) {
	if r := h.pick(); r != nil {
		h.attach(c, r)
		return
	}
	if len(h.queue) >= h.p.Backlog && h.mode == policy.AcceptOff {
		if c.tries == lastTry {
			h.meter.lose(&h.meter.sum.TimedOut, 1)
			return
		}
		wait := firstRetry << c.tries
		c.tries++
		h.after(wait, func() { h.arrive(c) })
		return
	}
	h.queue = append(h.queue, c)
	h.accept()
}

// accept takes from the queue what the policy lets it.
func (h *host) accept() {
	for len(h.queue) > 0 && h.mode != policy.AcceptOff {
		c := h.queue[0]
		h.queue = h.queue[1:]
		if h.mode == policy.AcceptOne {
			h.mode = policy.AcceptOff
		}
		h.lastID++
		h.held[h.lastID] = c
		queued := 0
		if h.svc.Phase() != policy.Warm { // then it is no load that nobody serves
			queued = len(h.queue)
		}
		h.step(policy.Accepted{Conn: h.lastID, Queued: queued})
	}
}

// pick chooses a replica by the shares of the map: each in turn, as evenly as
// can be (smooth weighted round-robin), or by chance.
func (h *host) pick() *replica {
	total := 0
	var best *replica
	for _, s := range h.acked {
		total += s.Weight
	}
	if total == 0 {
		return nil
	}
	if h.p.Chance {
		n := h.rand.IntN(total)
		for _, s := range h.acked {
			if n -= s.Weight; n < 0 {
				return h.replicas[s.Index]
			}
		}
	}
	for _, s := range h.acked {
		r := h.replicas[s.Index]
		r.credit += s.Weight
		if best == nil || r.credit > best.credit {
			best = r
		}
	}
	best.credit -= total
	return best
}

// attach makes a connection a flow of a replica.
func (h *host) attach(c *conn, r *replica) {
	r.flows++
	h.begun++
	if r.frozen { // the kernel has completed its handshake; the program answers later
		r.waiting = append(r.waiting, c)
		h.after(0, func() { h.step(policy.Alarm{Index: r.index}) })
		return
	}
	h.serve(c, r)
}

// serve lets a flow last for as long as the trace says.
func (h *host) serve(c *conn, r *replica) {
	h.meter.served(h.now - c.at)
	moving := 1
	if c.flow.Silent {
		moving = 0
	}
	r.moving += moving
	h.after(c.flow.Last, func() {
		if r.gone {
			return
		}
		r.flows--
		r.moving -= moving
		h.meter.live--
		if r.flows == 0 {
			h.load()
			h.step(policy.Quiet{Index: r.index})
		}
	})
}
