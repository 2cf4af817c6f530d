package conntrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// drain reads until there is nothing to read. An ErrLost does not stop it, but
// is returned at the end.
func (w *Watcher) drain(ctx context.Context) error {
	var lost error
	for ctx.Err() == nil {
		err := w.read(false)
		switch {
		case errors.Is(err, ErrLost):
			lost = err
		case err != nil:
			return err
		case w.end == 0:
			return lost
		}
	}
	return ctx.Err()
}

// read reads some events and applies them. With wait it waits for the first,
// or for the read deadline, which is no error; without, the deadline is of no
// effect.
func (w *Watcher) read(wait bool) error {
	w.end, w.ferr = 0, nil
	var err error
	if wait {
		err = w.raw.Read(w.fillWait)
	} else {
		err = w.raw.Control(w.fillNow)
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	err = w.ferr
	if w.end > 0 {
		err = cmp.Or(w.apply(w.buf[:w.end]), err)
	}
	if errors.Is(err, ErrLost) {
		w.lose(err)
	}
	w.notify()
	return err
}

// fill reads datagrams, each of them one message, back to back, and reports
// whether there were any.
func (w *Watcher) fill(fd uintptr) bool {
	for len(w.buf)-w.end >= eventRoom {
		n, err := ignoringEINTR(unix.Read, int(fd), w.buf[w.end:])
		switch {
		case err == nil:
			w.end = align4(w.end + n)
			continue
		case errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.ENOBUFS):
			w.ferr = ErrLost
		default:
			w.ferr = err
		}
		return w.end > 0
	}
	return true
}

func (w *Watcher) apply(b []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(b) > 0 {
		m, rest, err := nextMessage(b)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		b = rest
		k := kindOf(m.typ, m.flags)
		if k == kindNone {
			continue
		}
		if err := decode(m.data, &w.flow); err != nil {
			return fmt.Errorf("%w: %w", ErrLost, err)
		}
		w.table.event(k, &w.flow)
	}
	return nil
}
