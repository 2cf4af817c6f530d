package handover

// next is the sequence number that follows all the client has sent.
func (h *held) next() uint32 {
	n := h.isn + 1 + uint32(len(h.data))
	if h.finished {
		n++
	}
	return n
}

// syn is the client's SYN, reduced to what this host agreed to in its SYN-ACK:
// the backend is offered exactly what it has to accept.
func (h *held) syn(c *Held) *segment {
	s := &segment{
		src: c.Client, dst: c.Backend,
		seq:    h.isn,
		flags:  flagSYN,
		window: uint16(min(h.window, 65535)),
		opts:   options{mss: h.mss, scaled: h.scaled, scale: h.theirs, sack: h.sack},
	}
	if h.ecn {
		s.flags |= flagECE | flagCWR
	}
	return s
}

// compare tells whether a backend's SYN-ACK promises no less than what the
// client was told, and asks for no more.
func (h *held) compare(a *segment) Reason {
	switch {
	case a.opts.scaled != h.scaled,
		h.scaled && a.opts.scale != h.ours, // the client would misread the backend's windows
		a.opts.sack != h.sack,
		a.opts.stamped,
		(a.flags&flagECE != 0) != h.ecn,
		uint32(a.largest()) < h.advmss: // the client's segments may not fit
		return Options
	}
	return ""
}

// largest is the segment size that the sender of a SYN or SYN-ACK takes.
func (s *segment) largest() uint16 {
	switch {
	case s.opts.mss != 0:
		return s.opts.mss
	case s.src.Addr().Is4():
		return minSegment4
	default:
		return minSegment6
	}
}

// What every path takes, RFC 9293 §3.7.1.
const (
	minSegment4 = 536
	minSegment6 = 1220
	// maxSegment keeps to what fits an Ethernet frame: there is no need for
	// more, and the device may take less than the backend.
	maxSegment = 1440
)

// toBackend speaks as the client.
func (m *move) toBackend(flags uint8, seq uint32, data []byte) *segment {
	s := &segment{
		src: m.Client, dst: m.Backend,
		seq: seq, flags: flags, data: data,
		window: uint16(min(m.state.window>>m.state.theirs, 65535)),
	}
	if m.synack != nil && flags&flagACK != 0 {
		s.ack = m.synack.seq + 1
		if n := m.peer.look(); n.follow && before(s.ack, n.client) {
			s.ack, s.window = n.client, n.room
		}
	}
	return s
}

// nudge speaks as the service. It repeats the number of our SYN, as a keep-alive
// probe does, so that the client must answer but takes nothing from it. By the
// answer the backend learns what the freeze may have kept from it: a client that
// has reset the connection does so again, and one whose backend has refused its
// data is told so by it; and it completes the backend's handshake in case our
// own acknowledgement was lost.
func (m *move) nudge() *segment {
	return &segment{
		src: m.Service, dst: m.Client,
		seq: m.state.own, ack: m.state.next(),
		flags: flagACK, window: m.synack.window >> m.state.ours,
	}
}
