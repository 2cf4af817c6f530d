package handover

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// move is one connection's attempt.
type move struct {
	*Held
	p      *Porter
	tap    *tap
	peer   *peer
	state  *held
	synack *segment
}

// move takes a frozen connection to its end. It calls thawed when the connection
// is frozen no more, which may be long before.
func (p *Porter) move(ctx context.Context, t *tap, h *Held, thawed func()) Result {
	m := &move{Held: h, p: p, tap: t, peer: t.peer(h.pair())}
	defer p.release(h.pair())
	defer t.forget(h.pair())

	reason, err := m.connect(ctx)
	if reason == "" {
		reason, err = m.commit()
	}
	if reason != "" {
		m.withdraw(reason)
		err = errors.Join(err, p.thaw.call(h.tuple()))
		thawed()
		if reason == Gone {
			err = errors.Join(err, closeSocket(h.FD))
		}
		return Result{Reason: reason, Err: err}
	}
	return m.finish(ctx, thawed)
}

// connect makes the client's connection to the backend, as far as its SYN-ACK.
func (m *move) connect(ctx context.Context) (Reason, error) {
	var (
		reason Reason
		err    error
	)
	if m.state, reason, err = inspect(m.FD); reason != "" {
		return reason, err
	}
	if m.state.ecn && m.p.accECN {
		return Options, nil
	}
	if reason, err := m.replay(ctx); reason != "" {
		return reason, err
	}
	return m.state.compare(m.synack), nil
}

// replay repeats the client's SYN until the backend answers.
func (m *move) replay(ctx context.Context) (Reason, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	wait := time.NewTimer(0)
	defer wait.Stop()
	syn := m.state.syn(m.Held)
	for next := firstResend; ; {
		if err := ctx.Err(); err != nil {
			return Timeout, errors.Join(err, m.tap.lost())
		}
		select {
		case <-ctx.Done():
		case <-wait.C:
			if err := m.p.wire.send(syn); err != nil {
				return Unable, err
			}
			wait.Reset(next)
			next = min(2*next, lastResend)
		case <-m.peer.wake:
			switch s := m.peer.look(); {
			case s.reset:
				return Refused, nil
			case s.synack != nil && s.synack.ack == syn.seq+1:
				m.synack = s.synack
				return "", nil
			case s.synack != nil, s.acks > 0:
				// The answer to another connection of the same addresses.
				return Refused, nil
			}
		}
	}
}

// commit looks once more at the socket, which has had time for what was still on
// its way when it was frozen, and turns the tracked connection round.
func (m *move) commit() (Reason, error) {
	var (
		reason Reason
		err    error
	)
	if m.state, reason, err = inspect(m.FD); reason != "" {
		return reason, err
	}
	// What the backend says before it has taken all of this acknowledges less
	// than the client knows to be acknowledged, and from more than a window on
	// is discarded as too old (RFC 5961 §5.2).
	if len(m.state.data) > 2*int(m.synack.window) {
		return Window, nil
	}
	// From here the client is told by a reset if this process ends before it is done.
	if err := abortive(m.FD, true); err != nil {
		return Unable, err
	}
	if err := m.p.replace.call(m.flow()); err != nil {
		err = fmt.Errorf("track connection: %w", err)
		// The old entry may be gone, and without one the client's next packet
		// would be taken for a new connection and sent to a backend.
		err = errors.Join(err, m.p.replace.call(m.plain()), abortive(m.FD, false))
		return Unable, err
	}
	return "", nil
}

// withdraw takes back the connection to the backend.
func (m *move) withdraw(r Reason) {
	if m.state == nil || r == Refused {
		return
	}
	// Also without an answer seen: it may have been given.
	_ = m.p.wire.send(m.toBackend(flagRST, m.state.isn+1, nil)) // best effort: it would time out
}

// finish delivers and lets go of the socket. The client may send to the backend
// by then; what comes there out of order is the backend's to sort.
func (m *move) finish(ctx context.Context, thawed func()) Result {
	d := newDelivery(m)
	// The first of it before anything of the client: at least the
	// acknowledgement that completes the backend's handshake.
	err := d.advance()
	err = errors.Join(err, m.p.thaw.call(m.tuple()))
	thawed()
	r := Result{Reason: Done, Err: err}
	for {
		if err := d.run(ctx); err != nil {
			r.Reason, r.Err = Failed, errors.Join(r.Err, err, m.reset())
			return r
		}
		r.Bytes = len(m.state.data)
		more, err := m.leave()
		if err != nil {
			r.Reason, r.Err = Failed, errors.Join(r.Err, err, m.reset())
			return r
		}
		if !more {
			break
		}
	}
	r.Err = errors.Join(r.Err, closeSocket(m.FD), m.p.wire.send(m.nudge()))
	return r
}

// leave sets the socket to repair mode, in which it closes without a sound; unless
// something has arrived on it that passed the frozen rule just in time: that has
// been acknowledged to the client, and has to be delivered first.
func (m *move) leave() (more bool, err error) {
	if err := repair(m.FD, true); err != nil {
		return false, err
	}
	now, info, err := read(m.FD)
	if err != nil {
		return false, errors.Join(err, repair(m.FD, false))
	}
	// In the state CLOSE it is over for the client; the nudge lets the backend know.
	if info.state == stateClose || now.next() == m.state.next() {
		return false, nil
	}
	m.state = now
	return true, repair(m.FD, false)
}

// reset ends both sides of a connection that cannot be completed.
func (m *move) reset() error {
	seq := m.state.isn + 1
	if s := m.peer.look(); s.acks > 0 {
		seq = s.acked // any other number the backend would only question
	}
	return errors.Join(
		m.p.wire.send(m.toBackend(flagRST|flagACK, seq, nil)),
		// With the connection back on this host the socket's reset is tracked,
		// and ends the entry.
		m.p.replace.call(m.plain()),
		closeSocket(m.FD),
	)
}

// closeSocket ends a connection: silently in repair mode, else by a reset, if it
// is not over already. Closing alone would do nothing as long as another process
// keeps the descriptor for us.
func closeSocket(fd int) error {
	var errs []error
	if err := disconnect(fd); err != nil {
		errs = append(errs, fmt.Errorf("disconnect socket: %w", err))
	}
	if err := unix.Close(fd); err != nil {
		errs = append(errs, fmt.Errorf("close socket: %w", err))
	}
	return errors.Join(errs...)
}
