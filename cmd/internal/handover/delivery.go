package handover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// errUnacknowledged: the backend took the connection but not what was sent on it.
var errUnacknowledged = errors.New("no acknowledgement")

// delivery sends what the client has sent so far, as the client, until the
// backend has acknowledged it all. There is no congestion on a way that is one
// virtual cable long; the backend's window is kept to.
type delivery struct {
	*move
	size int    // of segments
	una  uint32 // first byte not acknowledged
	next uint32 // first byte not sent
	edge uint32 // first byte outside the backend's window
	seen int    // acknowledgements
	told uint32 // what the client has acknowledged, as passed on
}

func newDelivery(m *move) *delivery {
	start := m.state.isn + 1
	return &delivery{
		move: m,
		size: min(maxSegment, int(m.synack.largest())),
		una:  start, next: start,
		// The window of a SYN-ACK is never scaled.
		edge: start + uint32(m.synack.window),
		told: m.synack.seq + 1,
	}
}

// run returns nil also if the backend has reset the connection: that is its
// answer, and the client's to hear.
func (d *delivery) run(ctx context.Context) error {
	giveUp := time.NewTimer(deliverTimeout)
	defer giveUp.Stop()
	pause := firstResend
	resend := time.NewTimer(pause)
	defer resend.Stop()
	ending := ctx.Done()
	for {
		heard, reset := d.look()
		if reset || !before(d.una, d.state.next()) {
			return nil // of a mere handshake nothing is acknowledged; see nudge
		}
		if heard && ending != nil {
			giveUp.Reset(deliverTimeout)
		}
		if err := errors.Join(d.advance(), d.tell()); err != nil {
			return err
		}
		select {
		case <-d.peer.wake:
		case <-ending:
			ending = nil
			giveUp.Reset(deliverTimeout)
		case <-resend.C:
			if err := d.again(); err != nil {
				return err
			}
			pause = min(2*pause, lastResend)
			resend.Reset(pause)
		case <-giveUp.C:
			return errors.Join(
				fmt.Errorf("deliver %d bytes to %s: %w", d.state.next()-d.una, d.Backend, errUnacknowledged),
				d.tap.lost(),
			)
		}
	}
}

// look takes in what the backend has acknowledged.
func (d *delivery) look() (heard, reset bool) {
	s := d.peer.look()
	heard = s.acks > d.seen
	d.seen = s.acks
	if s.acks == 0 || before(s.acked, d.una) {
		return heard, s.reset
	}
	d.una = s.acked
	if before(d.next, d.una) {
		d.next = d.una
	}
	if edge := s.acked + uint32(s.window)<<d.state.ours; before(d.edge, edge) {
		d.edge = edge
	}
	return heard, s.reset
}

// advance sends what the window allows. The very first call sends at least an
// acknowledgement.
func (d *delivery) advance() error {
	start, end := d.state.isn+1, d.state.isn+1+uint32(len(d.state.data))
	if d.next == start && end == start {
		if d.state.finished {
			return d.fin()
		}
		if d.seen > 0 {
			return nil
		}
		return d.send(d.toBackend(flagACK, start, nil))
	}
	for before(d.next, end) && before(d.next, d.edge) {
		n := min(uint32(d.size), end-d.next, d.edge-d.next)
		flags := uint8(flagACK)
		if d.next+n == end {
			flags |= flagPSH
		}
		err := d.send(d.toBackend(flags, d.next, d.state.data[d.next-start:][:n]))
		if errors.Is(err, unix.EMSGSIZE) && d.size > d.smallest() {
			d.size = d.smallest()
			continue
		}
		if err != nil {
			return err
		}
		d.next += n
	}
	if d.next == end && d.state.finished {
		return d.fin()
	}
	return nil
}

// tell passes the client's acknowledgements on. Those it sends itself come with
// numbers behind all that is held for the backend; where that is outside of the
// backend's window they are refused, and a backend that reads nothing before it
// has got rid of what it has to say would wait for ever.
func (d *delivery) tell() error {
	n := d.peer.look()
	if !n.follow || !before(d.told, n.client) {
		return nil
	}
	d.told = n.client
	return d.send(d.toBackend(flagACK, d.next, nil))
}

// fin repeats the client's FIN, which has arrived here and been acknowledged.
func (d *delivery) fin() error {
	defer func() { d.next = d.state.next() }()
	return d.send(d.toBackend(flagACK|flagFIN, d.state.next()-1, nil))
}

// again goes back to what is not acknowledged, in segments that pass anywhere. If
// the window is closed it asks how things are, with a byte that will be refused.
//
// A backend that has sent much in the meantime no longer takes segments that
// acknowledge none of it (RFC 5961 §5.2), and how much it may be told is known to
// the client alone: so the client is made to speak, and listened to.
func (d *delivery) again() error {
	if err := errors.Join(d.tap.follow(d.pair()), d.send(d.nudge())); err != nil {
		return err
	}
	d.size = min(d.size, d.smallest())
	d.next = d.una
	start := d.state.isn + 1
	if i := d.una - start; !before(d.una, d.edge) && int(i) < len(d.state.data) {
		return d.send(d.toBackend(flagACK, d.una, d.state.data[i:][:1]))
	}
	return nil
}

func (d *delivery) send(s *segment) error {
	err := d.p.wire.send(s)
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) {
		return nil // as if lost, and sent again
	}
	return err
}

// smallest is the size of segments that any path takes, RFC 9293 §3.7.1.
func (d *delivery) smallest() int {
	n := minSegment6
	if d.Backend.Addr().Is4() {
		n = minSegment4
	}
	return min(n, int(d.synack.largest()))
}
