package nft

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Options say where the table is.
type Options struct {
	// NetNS is a file descriptor of the network namespace; 0 is the namespace
	// of the thread that calls Open.
	NetNS int
}

// A Table is the table inet sluice and what is known to be in it. Its methods
// may be called from several goroutines; transactions go one at a time.
type Table struct {
	events *netlink.Conn // for Watch; opened with the table, to be in the same namespace

	mu   sync.Mutex
	nl   *nftables.Conn
	sock *netlink.Conn // the socket under nl, which belongs to nl
	have *state        // what the kernel has
	want map[Endpoint]Service
	lull map[Endpoint]bool // the backends that are to be asleep

	rebuilt bool // not by Restore, which is to tell of it

	ends  map[Endpoint]time.Time // of backends that linger: when the kernel forgets them
	swept time.Time              // when that was last looked at
}

// Open takes the table over from an earlier process, changing nothing, if its
// fixed part is exactly as this package makes it. Otherwise it builds the table
// anew, and services that can be read from the old one are carried over in the
// same transaction, so that none of their flows go astray.
//
// It needs CAP_NET_ADMIN over the namespace, Linux 5.18, and a free descriptor
// below 1024: call it before opening sockets by the thousand.
func Open(o Options) (*Table, error) {
	t := &Table{have: newState(), want: make(map[Endpoint]Service), lull: make(map[Endpoint]bool)}
	if err := t.dial(o); err != nil {
		return nil, fmt.Errorf("open table: %w", err)
	}
	same, err := t.reload()
	if err == nil {
		t.want, t.lull = t.have.services(), maps.Clone(t.have.asleep)
		if !same {
			err = t.build()
		}
		t.rebuilt = false
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open table: %w", err), t.Close())
	}
	return t, nil
}

func (t *Table) dial(o Options) (err error) {
	if t.events, err = netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: o.NetNS}); err != nil {
		return fmt.Errorf("dial netlink: %w", err)
	}
	prepare := func(c *netlink.Conn) error {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var fd uintptr
		if err := raw.Control(func(d uintptr) { fd = d }); err != nil {
			return err
		}
		// The library polls this socket with select(2), which ends at 1023.
		if fd >= unix.FD_SETSIZE {
			return fmt.Errorf("netlink socket is descriptor %d: %w", fd, unix.EMFILE)
		}
		t.sock = c
		// A batch is one message to the kernel, and a build of the table is
		// answered by an echo of each rule.
		if err := c.SetWriteBuffer(64 << 20); err != nil {
			return err
		}
		return c.SetReadBuffer(16 << 20)
	}
	opts := []nftables.ConnOption{nftables.AsLasting(), nftables.WithSockOptions(prepare)}
	if o.NetNS != 0 {
		opts = append(opts, nftables.WithNetNSFd(o.NetNS))
	}
	if t.nl, err = nftables.New(opts...); err != nil {
		return errors.Join(fmt.Errorf("dial netlink: %w", err), t.events.Close())
	}
	return nil
}

// Close ends the connection to the kernel and leaves the table as it is.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return errors.Join(t.events.Close(), t.nl.CloseLasting())
}

// Services returns what is in place in the kernel, as far as known: what was
// found by Open, Restore or after an error, and what was applied since.
func (t *Table) Services() map[Endpoint]Service {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.have.services()
}

// most is about how many elements one transaction may hold.
const most = 100_000

// Apply makes each service named by changes what it says; nil removes one.
// Services that changes does not name stay as they are. When Apply returns nil,
// the kernel has confirmed the change: no packet that arrives from then on
// finds the old slots (see Fence for packets that were under way).
//
// A change is one transaction, of which a packet sees all or nothing (limits on a
// whole service follow in a second one). Only a
// change of more than some 100,000 slots is cut into several, each of whole
// services.
//
// If the kernel refuses, Apply reads back what is in place, tries once more
// from there, and builds the table anew if it is gone or altered. If it returns
// an error nevertheless, Services tells what is in place.
func (t *Table) Apply(changes map[Endpoint]*Service) error {
	for at, s := range changes {
		err := at.check()
		if s != nil {
			err = s.check(at)
		}
		if err != nil {
			return fmt.Errorf("apply %s: %w", at, err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for part := range split(changes) {
		if err := t.put(part); err != nil {
			return fmt.Errorf("apply: %w", err)
		}
	}
	return nil
}

// split yields the changes in parts of bounded size.
func split(changes map[Endpoint]*Service) func(yield func(map[Endpoint]*Service) bool) {
	return func(yield func(map[Endpoint]*Service) bool) {
		part, size := make(map[Endpoint]*Service), 0
		for _, at := range slices.SortedFunc(maps.Keys(changes), Endpoint.compare) {
			s := changes[at]
			part[at] = s
			size += 4
			if s != nil {
				size += len(s.Slots)
			}
			if size >= most {
				if !yield(part) {
					return
				}
				part, size = make(map[Endpoint]*Service), 0
			}
		}
		if len(part) > 0 {
			yield(part)
		}
	}
}

// put makes changes true in the kernel, or finds out what is.
func (t *Table) put(changes map[Endpoint]*Service) error {
	t.forget(time.Now())
	err := t.commit(t.have.plan(changes))
	if err == nil {
		t.note(changes)
		return nil
	}
	// A failed flush may have been applied, and a refused one means that the
	// table is not what we think: only the kernel knows.
	before := maps.Clone(t.want)
	t.note(changes)
	same, again := t.reload()
	if again == nil {
		if same {
			again = t.commit(t.have.plan(changes).and(t.have.lull(t.sleepers())))
		} else {
			again = t.build()
		}
	}
	if again == nil {
		return nil
	}
	t.want = before
	if _, lost := t.reload(); lost == nil {
		// What got through all the same is wanted from now on.
		for at, s := range changes {
			es, ok := t.have.at[at]
			if now, _ := service(es); s == nil && !ok || s != nil && ok && now.equal(*s) {
				t.note(map[Endpoint]*Service{at: s})
			}
		}
	}
	return errors.Join(again, fmt.Errorf("at first: %w", err))
}

// note records what is wanted.
func (t *Table) note(changes map[Endpoint]*Service) {
	for at, s := range changes {
		if s == nil {
			delete(t.want, at)
			continue
		}
		w := *s
		w.Slots, w.Allow = slices.Clone(s.Slots), slices.Clone(s.Allow)
		t.want[at] = w
	}
}

// commit sends the change as one transaction. Limits on whole services follow in
// a second: for an instant they do not hold yet.
func (t *Table) commit(c change) error {
	if c.empty() {
		return nil
	}
	if err := errors.Join(
		t.each(c.dels, t.nl.SetDeleteElements),
		t.each(plain(c.adds), t.nl.SetAddElements),
	); err != nil {
		return errors.Join(fmt.Errorf("encode elements: %w", err), t.abandon())
	}
	if err := t.nl.Flush(); err != nil {
		return fmt.Errorf("commit elements: %w", err)
	}
	if err := t.addSpecial(c.adds); err != nil {
		return err
	}
	t.applied(c, time.Now())
	return nil
}

// plain leaves out what addSpecial adds.
func plain(es []entry) []entry {
	if !slices.ContainsFunc(es, func(e entry) bool { return e.kind.special() }) {
		return es
	}
	return slices.DeleteFunc(slices.Clone(es), func(e entry) bool { return e.kind.special() })
}

// abandon throws away what is queued. After a failed encoding Flush sends
// nothing and clears the queue.
func (t *Table) abandon() error { return t.nl.Flush() }

// each queues entries for do, set by set.
func (t *Table) each(es []entry, do func(*nftables.Set, []nftables.SetElement) error) error {
	var lists [2]map[home][]nftables.SetElement
	for i := range lists {
		lists[i] = make(map[home][]nftables.SetElement)
	}
	for _, e := range es {
		in := lists[familyOf(e.at.Addr)]
		in[e.home()] = append(in[e.home()], e.encode())
	}
	for _, h := range homes() {
		for i, f := range families() {
			if list := lists[i][h]; len(list) > 0 {
				s := &nftables.Set{Table: table(), Name: h.name(f), HasTimeout: h.kind == backends}
				if err := do(s, list); err != nil {
					return fmt.Errorf("set %s: %w", s.Name, err)
				}
			}
		}
	}
	return nil
}

func table() *nftables.Table {
	return &nftables.Table{Name: Name, Family: nftables.TableFamilyINet}
}
