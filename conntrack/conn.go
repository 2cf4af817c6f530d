package conntrack

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	// dumpBuffer is the most the kernel puts into one part of a dump, twice
	// over: with a larger read it fills larger parts, up to 32 KiB.
	dumpBuffer = 64 << 10

	// sendLimit keeps a send within the default send buffer, and the replies of
	// one send (if all its requests fail) within the receive buffer.
	sendLimit = 64 << 10
	sendOps   = 256
)

// Conn reads and changes the conntrack table of the network namespace it was
// opened in. Its methods are safe for concurrent use. One dump runs at a time,
// and one change; they do not wait for each other, for a dump of a large table
// takes a thousand times as long.
type Conn struct {
	mark, mask     uint32
	dumps, changes *socket
	tally          tally
}

// Open opens a connection that sees the entries whose ct mark is mark under
// mask; mask 0 shows all. Needs CAP_NET_ADMIN.
func Open(mark, mask uint32) (*Conn, error) {
	c := &Conn{mark: mark & mask, mask: mask}
	var err error
	if c.dumps, err = openSocket(); err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	if c.changes, err = openSocket(); err != nil {
		return nil, errors.Join(fmt.Errorf("open conntrack: %w", err), c.dumps.close())
	}
	return c, nil
}

// Close waits for the methods that are running and closes the connection.
func (c *Conn) Close() error { return errors.Join(c.dumps.close(), c.changes.close()) }

// Snapshot calls fn for the entries of the table, in no particular order. The
// Flow is reused from call to call. The table may change meanwhile: an entry
// that exists all the time is seen at least once, on occasion twice; one that
// comes or goes may be missed. If fn returns an error the rest is skipped and
// the error returned as it is. fn may change entries by c, but not dump.
func (c *Conn) Snapshot(fn func(*Flow) error) error {
	c.dumps.mu.Lock()
	defer c.dumps.mu.Unlock()
	if err := c.dump(nil, fn); err != nil {
		return fmt.Errorf("dump conntrack: %w", err)
	}
	return nil
}

// dump calls part, if not nil, after each part of the dump was received and
// before its entries go to fn. It has to read to the end whatever happens: the
// kernel refuses another dump on this socket with EBUSY until then.
func (c *Conn) dump(part func() error, fn func(*Flow) error) error {
	seq := c.dumps.next()
	var enc encoder
	enc.dump(c.mark, c.mask, seq)
	if err := c.dumps.write(enc.b); err != nil {
		return err
	}
	var f Flow
	var failed error
	for starved := 0; ; {
		b, err := c.dumps.read()
		if isOneOf(err, unix.ENOBUFS, unix.ENOMEM) && starved < 16 {
			// No memory for the next part; the dump stands where it was.
			starved++
			failed = cmp.Or(failed, err)
			continue
		}
		if err != nil {
			return err
		}
		if part != nil && failed == nil {
			failed = part()
		}
		for len(b) > 0 {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return err
			}
			if m.seq != seq {
				continue // of a request that was given up
			}
			if m.flags&unix.NLM_F_DUMP_INTR != 0 && failed == nil {
				failed = fmt.Errorf("table was resized: %w", unix.EINTR)
			}
			switch m.typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				if err := errnoOf(m); err != nil {
					return err
				}
				return failed
			}
			if failed != nil || kindOf(m.typ, 0) != kindUpdate {
				continue
			}
			if failed = decode(m.data, &f); failed != nil {
				continue
			}
			if f.Mark&c.mask == c.mark {
				failed = fn(&f)
			}
		}
	}
}

// Delete removes the entry with this original tuple. The error is
// fs.ErrNotExist if there is none.
func (c *Conn) Delete(orig Tuple) error {
	var b Batch
	b.Delete(orig)
	return c.one(&b)
}

// Create makes an entry. The error is ErrEntry if it is not valid, and
// fs.ErrExist if either direction's tuple is taken. The translation is done by
// the kernel's NAT hooks: a nat chain must exist in the namespace.
func (c *Conn) Create(e Entry) error {
	var b Batch
	if err := b.Create(e); err != nil {
		return err
	}
	return c.one(&b)
}

func (c *Conn) one(b *Batch) error {
	errs, err := c.Do(b)
	if err != nil {
		return err
	}
	return errs[0]
}

// DeleteBackend removes all entries that a backend answers, finished ones
// included, and returns how many. It repeats until a dump finds none, so that
// entries made meanwhile go too; the caller sees to it that they come to an end
// by sending no new flows there first. Meeting ctx's end is an error.
func (c *Conn) DeleteBackend(ctx context.Context, backend netip.AddrPort, proto uint8) (int, error) {
	backend = unmap(backend)
	total := 0
	var b Batch
	for {
		b.Reset()
		err := c.Snapshot(func(f *Flow) error {
			if f.Reply.Src == backend && f.Orig.Proto == proto && !f.Status.Dying() {
				b.DeleteFlow(f)
			}
			return nil
		})
		if err != nil {
			return total, fmt.Errorf("delete flows of %s: %w", backend, err)
		}
		if b.Len() == 0 {
			return total, nil
		}
		errs, err := c.Do(&b)
		if err != nil {
			return total, fmt.Errorf("delete flows of %s: %w", backend, err)
		}
		for _, err := range errs {
			switch {
			case err == nil:
				total++
			case !errors.Is(err, fs.ErrNotExist):
				return total, fmt.Errorf("delete flows of %s: %w", backend, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return total, fmt.Errorf("delete flows of %s: %w", backend, err)
		}
	}
}

// Do carries out a batch and returns one result for each of its changes, in
// order. An error of Do itself means that the results are not known: some
// changes may have been made. The batch can be used again, also by another Do.
func (c *Conn) Do(b *Batch) ([]error, error) {
	c.changes.mu.Lock()
	defer c.changes.mu.Unlock()
	results := make([]error, len(b.ops))
	start := 0
	for i := 0; i < len(b.ops); {
		j := i
		for j < len(b.ops) && j-i < sendOps && (j == i || b.ops[j].end-start <= sendLimit) {
			j++
		}
		if err := c.changes.exchange(b.enc.b[start:b.ops[j-1].end], b.ops[i:j], results[i:j]); err != nil {
			return nil, fmt.Errorf("change conntrack: %w", err)
		}
		start, i = b.ops[j-1].end, j
	}
	return results, nil
}

func isOneOf(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
