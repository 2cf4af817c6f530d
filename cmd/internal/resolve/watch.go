package resolve

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/errgroup"
)

// ErrNotFound reports a name that does not exist or has no records.
var ErrNotFound = errors.New("no such name or no records")

// Absence is how long a name that had records must be found without them
// before that is believed.
const Absence = 5 * time.Minute

const (
	minWait = time.Second     // between look-ups, whatever the TTL
	maxWait = 5 * time.Minute // the same
	maxBack = time.Minute     // between look-ups that fail

	roundTime = time.Minute // of one look-up, all its questions
	parallel  = 8           // questions at a time
	maxHosts  = 512         // what follows in the order of priority is left out
)

// Options may be the zero value.
type Options struct {
	ResolvConf string           // "" = /etc/resolv.conf; it is read anew for each question
	Servers    []netip.AddrPort // instead of those of ResolvConf
	Timeout    time.Duration    // of a server's answer; 0 = as in ResolvConf
	Absence    time.Duration    // 0 = the constant
}

// Watch looks an SRV name up until ctx is done, and posts what changes: the
// targets in force, and what is wrong, or nil. The name is complete without its
// last dot; no search list is applied.
//
// The targets are nil until there has been an answer. A look-up that fails
// leaves those of the last one in force. So does one that finds no records of a
// name that had some, or no addresses of a host that had some, which is how
// many a botched change of a zone begins; it is believed, with ErrNotFound and
// an empty list that is not nil, when it has been found for Absence. A target
// of "." is how a zone says that the service is not offered: it makes an empty
// list at once, and no error. If the addresses of some hosts cannot be had, the
// rest and the error are posted.
//
// The next look-up is when the least of the TTLs is over, but after no less
// than a second and no more than five minutes; after a failure it is soon, then
// in growing intervals of up to a minute.
//
// post is called by the goroutine that called Watch and owns the list. A name
// that can be none is posted as an error, and then Watch returns at once.
func Watch(ctx context.Context, name string, opt Options, post func([]Target, error)) {
	opt.ResolvConf = cmp.Or(opt.ResolvConf, "/etc/resolv.conf")
	opt.Absence = cmp.Or(opt.Absence, Absence)
	if _, ok := dns.IsDomainName(name); !ok || name == "" || name == "." {
		post(nil, fmt.Errorf("look up %q: not a domain name", name))
		return
	}
	w := &watch{
		name: dns.CanonicalName(name), ask: &asker{opt: opt}, absence: opt.Absence, post: post,
		hosts: make(map[string]*host), back: minWait,
	}
	for {
		wait := w.round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

type watch struct {
	name    string
	ask     *asker
	absence time.Duration
	post    func([]Target, error)

	list   []Target
	said   bool
	err    string
	hosts  map[string]*host
	absent time.Time     // since when there are no records; zero: there are
	back   time.Duration // to wait after the next failure
}

// host is what is known of a target's addresses, of which those of the last
// answer are remembered.
type host struct {
	addrs  []netip.Addr
	absent time.Time // since when there are none; zero: there are
	gone   bool      // that has been so for long enough
}

// round looks up once, says what is new, and returns how long to wait.
func (w *watch) round(ctx context.Context) time.Duration {
	list, least, err := w.lookup(ctx)
	if ctx.Err() != nil {
		return 0
	}
	wait := min(max(least, minWait), maxWait)
	if err == nil {
		w.back = minWait
	} else {
		if list == nil {
			wait = w.back
		}
		wait = min(wait, w.back)
		w.back = min(2*w.back, maxBack)
	}
	switch {
	case list != nil:
		w.absent = time.Time{}
	case errors.Is(err, ErrNotFound) && len(w.list) > 0:
		if w.absent.IsZero() {
			w.absent = time.Now()
		}
		left := w.absence - time.Since(w.absent)
		if left <= 0 {
			list = []Target{}
		}
		wait = min(wait, max(left, minWait))
	}
	w.say(list, err)
	return wait
}

// say posts what is new. A list of nil is the one in force.
func (w *watch) say(list []Target, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if list == nil {
		list = w.list
	}
	if w.said && text == w.err && (list == nil) == (w.list == nil) && slices.Equal(list, w.list) {
		return
	}
	w.list, w.err, w.said = list, text, true
	w.post(slices.Clone(list), err)
}

// lookup asks for the records and for what they need. Without an error, and
// with one that concerns some hosts only, the list is not nil.
func (w *watch) lookup(ctx context.Context) (list []Target, wait time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, roundTime)
	defer cancel()
	m, a, err := w.follow(ctx, w.name, dns.TypeSRV)
	if err != nil {
		return nil, 0, fmt.Errorf("look up %s: %w", w.name, err)
	}
	records := make([]*dns.SRV, 0, len(a.records))
	for _, rr := range a.records {
		if srv, ok := rr.(*dns.SRV); ok {
			records = append(records, srv)
		}
	}
	if len(records) == 0 {
		return nil, 0, fmt.Errorf("look up %s: %w", w.name, ErrNotFound)
	}
	if len(records) == 1 && records[0].Target == "." {
		clear(w.hosts)
		return []Target{}, seconds(a.ttl), nil
	}
	slices.SortStableFunc(records, func(a, b *dns.SRV) int { return cmp.Compare(a.Priority, b.Priority) })
	addrs, least, err := w.resolve(ctx, records, m)
	if list = targets(records, addrs); len(list) == 0 {
		if !w.gone() {
			list = nil
		}
		if err == nil { // all that is left: ports of 0
			err = ErrNotFound
		}
	}
	if err != nil {
		err = fmt.Errorf("look up %s: %w", w.name, err)
	}
	return list, seconds(min(a.ttl, least)), err
}

// gone says that all hosts have been without addresses for long enough.
func (w *watch) gone() bool {
	for _, h := range w.hosts {
		if !h.gone {
			return false
		}
	}
	return len(w.hosts) > 0
}

// resolve finds the addresses of the hosts that the records name: in the
// additional section, by asking, or for want of an answer by remembering. The
// error is that of the first host that has one.
func (w *watch) resolve(ctx context.Context, records []*dns.SRV, m *dns.Msg) (map[string][]netip.Addr, uint32, error) {
	type family struct {
		typ   uint16
		addrs []netip.Addr
		ttl   uint32
		err   error // ErrNotFound, or no answer
	}
	found := make(map[string]*[2]family)
	var names []string
	least := uint32(math.MaxUint32)
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, r := range records {
		name := dns.CanonicalName(r.Target)
		if found[name] != nil || name == "." || len(names) == maxHosts {
			continue
		}
		names = append(names, name)
		both := &[2]family{{typ: dns.TypeA}, {typ: dns.TypeAAAA}}
		found[name] = both
		for i := range both {
			f := &both[i]
			// The other family's records may have been left out for want of
			// room: what is not there has to be asked for.
			if f.addrs, f.ttl = glue(m, name, f.typ); len(f.addrs) > 0 {
				least = min(least, f.ttl)
				continue
			}
			g.Go(func() error {
				_, a, err := w.follow(ctx, name, f.typ)
				if err != nil {
					f.err = err
					return nil
				}
				for _, rr := range a.records {
					if addr, ok := address(rr); ok {
						f.addrs = append(f.addrs, addr)
					}
				}
				if len(f.addrs) == 0 {
					f.err = ErrNotFound
				}
				f.ttl = a.ttl
				return nil
			})
		}
	}
	_ = g.Wait()
	addrs := make(map[string][]netip.Addr, len(names))
	known := make(map[string]*host, len(names))
	var first error
	for _, name := range names {
		h := w.hosts[name]
		if h == nil {
			h = &host{}
		}
		known[name] = h
		var now []netip.Addr
		var err error // no answer
		heard := false
		for _, f := range found[name] {
			if f.err == nil || errors.Is(f.err, ErrNotFound) {
				// Half of the hosts have no address of one of the families; how
				// long that holds is of no interest if they have another.
				if f.err == nil {
					least = min(least, f.ttl)
				}
				now = append(now, f.addrs...)
				heard = heard || f.err == nil
				continue
			}
			if err == nil {
				err = f.err
			}
			for _, a := range h.addrs {
				if a.Is4() == (f.typ == dns.TypeA) {
					now = append(now, a)
				}
			}
		}
		slices.SortFunc(now, netip.Addr.Compare)
		now = slices.Compact(now)
		switch {
		case heard:
			*h = host{addrs: now}
		case err != nil: // what was known of both, if anything, still is
		default:
			err = ErrNotFound
			if h.absent.IsZero() {
				h.absent = time.Now()
			}
			if time.Since(h.absent) >= w.absence {
				h.addrs, h.gone = nil, true
			}
		}
		if err != nil && first == nil {
			first = fmt.Errorf("host %s: %w", name, err)
		}
		addrs[name] = h.addrs
	}
	w.hosts = known
	return addrs, least, first
}

// follow asks for records, and again if what answers gives only an alias.
func (w *watch) follow(ctx context.Context, name string, typ uint16) (*dns.Msg, answer, error) {
	least := uint32(math.MaxUint32)
	for range maxAliases + 1 {
		m, err := w.ask.ask(ctx, name, typ)
		if err != nil {
			return nil, answer{}, err
		}
		a := read(m, name, typ)
		least = min(least, a.ttl)
		if len(a.records) > 0 || a.name == name || m.Rcode == dns.RcodeNameError {
			a.ttl = least
			return m, a, nil
		}
		name = a.name
	}
	return nil, answer{}, fmt.Errorf("more than %d aliases", maxAliases)
}

func seconds(n uint32) time.Duration { return time.Duration(n) * time.Second }
