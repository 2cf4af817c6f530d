package accept

import (
	"cmp"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/uring"
)

const (
	ringRequests = 256 // per system call
	// A listener's whole queue can come in one go. More than fits ends the
	// multishot requests, which are then armed again: slower, not wrong.
	ringCompletions = 8192
)

// The lowest two bits of a request's data say what it is.
const (
	dataAccept = iota + 1
	dataCancel
	dataWake
	dataShift = 2
)

// ring is the io_uring backend.
type ring struct {
	l     *loop
	r     *uring.Ring
	wake  int
	multi bool // All is one multishot request, not a request per connection

	plain       bool   // never multi
	completions uint32 // if not ringCompletions
}

func (b *ring) name() string { return Uring }

func (b *ring) open(l *loop, wake int) error {
	completions := cmp.Or(b.completions, ringCompletions)
	r, err := uring.Open(min(ringRequests, completions), completions)
	if err != nil {
		return err
	}
	b.l, b.r, b.wake, b.multi = l, r, wake, r.Multishot() && !b.plain
	if err := r.Push(uring.PollMultishot(wake, dataWake)); err != nil {
		return errors.Join(fmt.Errorf("poll eventfd: %w", err), b.close())
	}
	return nil
}

func (b *ring) close() error {
	if b.r == nil {
		return nil
	}
	err := b.r.Close()
	b.r = nil
	return err
}

func (b *ring) arm(e *entry, m Mode) error {
	data := b.l.issue(e)<<dataShift | dataAccept
	s := uring.Accept(e.ln.FD(), data)
	if m == All && b.multi {
		s = uring.AcceptMultishot(e.ln.FD(), data)
	} else {
		m = One
	}
	if err := b.r.Push(s); err != nil {
		delete(b.l.tokens, e.token)
		return err
	}
	e.live = m
	return nil
}

func (b *ring) disarm(e *entry) error {
	if e.ending {
		return nil
	}
	if err := b.r.Push(uring.Cancel(e.token<<dataShift|dataAccept, e.token<<dataShift|dataCancel)); err != nil {
		return err
	}
	e.ending = true
	return nil
}

func (b *ring) wait(timeout time.Duration) error {
	err := b.r.Wait(timeout)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOMEM):
		// The kernel is short of memory; what was pushed is still queued.
		b.l.tell(0, fmt.Errorf("%w: %w", ErrLoop, err))
		time.Sleep(retryAfter)
		return nil
	}
	return err
}

func (b *ring) dispatch() error {
	var first error
	for {
		c, ok := b.r.Next()
		if !ok {
			return first
		}
		// Read on after an error: a completion may be a connection.
		if err := b.complete(c); err != nil && first == nil {
			first = err
		}
	}
}

func (b *ring) complete(c uring.CQE) error {
	token := c.Data >> dataShift
	switch c.Data & (1<<dataShift - 1) {
	case dataWake:
		if c.More() {
			return nil
		}
		return b.r.Push(uring.PollMultishot(b.wake, dataWake))
	case dataCancel:
		b.cancelled(b.l.tokens[token], c.Err())
	case dataAccept:
		e := b.l.tokens[token]
		if e == nil {
			return fmt.Errorf("completion for an unknown accept %d", token)
		}
		if !c.More() {
			delete(b.l.tokens, token)
			b.ended(e, c.Err())
		}
		if c.Err() == nil {
			b.l.accepted(e, int(c.Res))
		}
	}
	return nil
}

// ended is for a completion without More. Not every one is an error: a full
// completion queue ends a multishot accept with its last connection.
func (b *ring) ended(e *entry, err error) {
	switch {
	case errors.Is(err, unix.ECANCELED), errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		err = nil
	}
	b.l.ended(e, err)
}

// cancelled looks again at an entry whose request was not found: its own
// completion may be next in the queue, or the kernel was just about to run it
// and it lives on.
func (b *ring) cancelled(e *entry, err error) {
	if e == nil || err == nil {
		return // the accept has completed, or is about to
	}
	e.ending = false
	if errors.Is(err, unix.ENOENT) {
		b.l.again(e)
	} else {
		b.l.defers(e)
	}
}
