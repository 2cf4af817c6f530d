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

// move is one connection's attempt.
type move struct {
	*Held
	p      *Porter
	peer   *peer
	state  *held
	synack *segment
	size   int // of the segments sent to the backend
}

// move takes a frozen connection to its end, frozen no more.
func (p *Porter) move(ctx context.Context, t *tap, h *Held) Result {
	k := pair{h.Backend, h.Client}
	m := &move{Held: h, p: p, peer: t.watch(k)}
	defer t.forget(k)

	reason, err := m.connect(ctx)
	if reason == "" {
		reason, err = m.commit()
	}
	if reason != "" {
		m.withdraw(reason)
		err = errors.Join(err, p.thaw.call(h.tuple()))
		if reason == Gone {
			err = errors.Join(err, closeSocket(h.FD))
		}
		return Result{Reason: reason, Err: err}
	}
	return m.finish()
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
		select {
		case <-ctx.Done():
			return Timeout, ctx.Err()
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
			case s.synack != nil, s.acks:
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
	if len(m.state.data) > int(m.synack.window) {
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

// finish delivers and lets go of the socket. The client may already send to the
// backend; what comes there out of order is the backend's to sort.
func (m *move) finish() Result {
	m.size = m.segmentSize()
	err := m.flight(m.state.isn+1, m.state)
	err = errors.Join(err, m.p.thaw.call(m.tuple()))
	r := Result{Reason: Done, Err: err}
	for {
		if err := m.deliver(); err != nil {
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

// deliver sends until the backend has acknowledged all of state.
func (m *move) deliver() error {
	start := m.state.isn + 1
	end := m.state.next()
	if end == start {
		return nil // a lost plain acknowledgement is repaired by the nudge
	}
	giveUp := time.NewTimer(deliverTimeout)
	defer giveUp.Stop()
	next := firstResend
	resend := time.NewTimer(next)
	defer resend.Stop()
	una := start
	for {
		s := m.peer.look()
		if s.reset {
			return nil // the backend's answer, and the client's to hear
		}
		if s.acks && before(una, s.acked) {
			una = s.acked
			giveUp.Reset(deliverTimeout)
		}
		if !before(una, end) {
			return nil
		}
		select {
		case <-m.peer.wake:
		case <-resend.C:
			m.size = min(m.size, m.smallest())
			if err := m.flight(una, m.state); err != nil {
				return err
			}
			next = min(2*next, lastResend)
			resend.Reset(next)
		case <-giveUp.C:
			return fmt.Errorf("deliver %d bytes to %s: %w", end-una, m.Backend, errUnacknowledged)
		}
	}
}

// flight sends all from seq on, or one acknowledgement if that is nothing.
func (m *move) flight(seq uint32, s *held) error {
	data := s.data[min(int(seq-s.isn-1), len(s.data)):]
	for first := true; first || len(data) > 0; first = false {
		n := min(len(data), m.size)
		flags := uint8(flagACK)
		if n == len(data) {
			if n > 0 {
				flags |= flagPSH
			}
			if s.finished {
				flags |= flagFIN
			}
		}
		err := m.p.wire.send(m.toBackend(flags, seq, data[:n]))
		switch {
		case errors.Is(err, unix.EMSGSIZE) && m.size > m.smallest():
			m.size = m.smallest()
			continue
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS):
			return nil // as if lost: sent again by the timer
		case err != nil:
			return err
		}
		seq += uint32(n)
		data = data[n:]
	}
	return nil
}

// reset ends both sides of a connection that cannot be completed.
func (m *move) reset() error {
	seq := m.state.isn + 1
	if s := m.peer.look(); s.acks {
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

func closeSocket(fd int) error {
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close socket: %w", err)
	}
	return nil
}
