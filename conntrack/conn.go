package conntrack

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
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
// opened in. Its methods are safe for concurrent use; one runs at a time.
type Conn struct {
	mark, mask uint32

	mu  sync.Mutex
	nl  *netlink.Conn
	raw syscall.RawConn
	seq uint32
	enc encoder
	buf []byte

	// Arguments and results of recv and send, which are made once: a closure
	// per call would escape to the heap.
	recv, send func(fd uintptr) bool
	out        []byte
	n          int
	err        error
}

// Open opens a connection that sees the entries whose ct mark is mark under
// mask; mask 0 shows all. Needs CAP_NET_ADMIN.
func Open(mark, mask uint32) (*Conn, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	c := &Conn{mark: mark & mask, mask: mask, nl: nl, buf: make([]byte, dumpBuffer)}
	c.recv = func(fd uintptr) bool {
		c.n, c.err = ignoringEINTR(unix.Read, int(fd), c.buf)
		return !errors.Is(c.err, unix.EAGAIN)
	}
	c.send = func(fd uintptr) bool {
		c.n, c.err = ignoringEINTR(unix.Write, int(fd), c.out)
		return !errors.Is(c.err, unix.EAGAIN)
	}
	if err := c.setup(); err != nil {
		return nil, errors.Join(fmt.Errorf("open conntrack: %w", err), nl.Close())
	}
	return c, nil
}

func (c *Conn) setup() error {
	// An error then does not repeat the request, so that replies stay small.
	if err := c.nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		return fmt.Errorf("set option: %w", err)
	}
	if err := c.nl.SetReadBuffer(1 << 20); err != nil {
		return fmt.Errorf("set read buffer: %w", err)
	}
	raw, err := c.nl.SyscallConn()
	if err != nil {
		return fmt.Errorf("get file descriptor: %w", err)
	}
	c.raw = raw
	return nil
}

// Close waits for the method that is running and closes the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nl.Close()
}

// Snapshot calls fn for the entries of the table, in no particular order. The
// Flow is reused from call to call. The table may change meanwhile: an entry
// that exists all the time is seen at least once, on occasion twice; one that
// comes or goes may be missed. If fn returns an error the rest is skipped and
// the error returned as it is. fn must not use c.
func (c *Conn) Snapshot(fn func(*Flow) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.dump(nil, fn); err != nil {
		return fmt.Errorf("dump conntrack: %w", err)
	}
	return nil
}

// dump calls part, if not nil, after each part of the dump was received and
// before its entries go to fn. It has to read to the end whatever happens: the
// kernel refuses another dump on this socket with EBUSY until then.
func (c *Conn) dump(part func() error, fn func(*Flow) error) error {
	seq := c.next()
	c.enc.b = c.enc.b[:0]
	c.enc.dump(c.mark, c.mask, seq)
	if err := c.write(c.enc.b); err != nil {
		return err
	}
	var f Flow
	var failed error
	for starved := 0; ; {
		b, err := c.read()
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

// Live counts by a dump the flows of a backend that are not finished, of
// whichever service. A flow that starts during the call may be missed.
func (c *Conn) Live(backend netip.AddrPort, proto uint8) (int, error) {
	backend = unmap(backend)
	n := 0
	err := c.Snapshot(func(f *Flow) error {
		if f.Reply.Src == backend && f.Orig.Proto == proto && f.Live() {
			n++
		}
		return nil
	})
	// The kernel could pick by reply tuple (CTA_FILTER), but releases that parse
	// it wrongly match nothing and would report a busy backend as empty.
	if err != nil {
		return 0, fmt.Errorf("count flows of %s: %w", backend, err)
	}
	return n, nil
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
	c.mu.Lock()
	defer c.mu.Unlock()
	results := make([]error, len(b.ops))
	start := 0
	for i := 0; i < len(b.ops); {
		j := i
		for j < len(b.ops) && j-i < sendOps && (j == i || b.ops[j].end-start <= sendLimit) {
			j++
		}
		if err := c.exchange(b.enc.b[start:b.ops[j-1].end], b.ops[i:j], results[i:j]); err != nil {
			return nil, fmt.Errorf("change conntrack: %w", err)
		}
		start, i = b.ops[j-1].end, j
	}
	return results, nil
}

// exchange sends the messages of ops and reads their errors. Only the last one
// asks for an acknowledgement: the kernel works through a send in order and
// answers failures unasked, so that whatever has not failed by then is done. A
// reply lost for want of buffer shows as ENOBUFS.
func (c *Conn) exchange(out []byte, ops []op, results []error) error {
	first := c.seq + 1
	for b := out; len(b) > 0; {
		n := int(binary.NativeEndian.Uint32(b))
		flags := binary.NativeEndian.Uint16(b[6:]) &^ unix.NLM_F_ACK
		if n == len(b) {
			flags |= unix.NLM_F_ACK
		}
		binary.NativeEndian.PutUint16(b[6:], flags)
		binary.NativeEndian.PutUint32(b[8:], c.next())
		b = b[n:]
	}
	if err := c.write(out); err != nil {
		return err
	}
	for {
		b, err := c.read()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return err
			}
			i := int(m.seq - first)
			if m.typ != unix.NLMSG_ERROR || i < 0 || i >= len(ops) {
				continue
			}
			if err := errnoOf(m); err != nil {
				results[i] = fmt.Errorf("%s flow %s: %w", ops[i].verb, ops[i].tuple, err)
			}
			if i == len(ops)-1 {
				return nil
			}
		}
	}
}

func (c *Conn) next() uint32 {
	c.seq++
	return c.seq
}

func (c *Conn) write(b []byte) error {
	c.out = b
	if err := c.raw.Write(c.send); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if c.err != nil {
		return fmt.Errorf("send: %w", c.err)
	}
	return nil
}

// read returns the next datagram, in a buffer that the next read overwrites.
func (c *Conn) read() ([]byte, error) {
	if err := c.raw.Read(c.recv); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if c.err != nil {
		return nil, fmt.Errorf("receive: %w", c.err)
	}
	return c.buf[:c.n], nil
}

// errnoOf reads the error of a message of type NLMSG_ERROR or NLMSG_DONE.
func errnoOf(m message) error {
	if len(m.data) < 4 {
		if m.typ == unix.NLMSG_DONE {
			return nil
		}
		return errMalformed
	}
	if e := int32(binary.NativeEndian.Uint32(m.data)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

func isOneOf(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

func ignoringEINTR(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
