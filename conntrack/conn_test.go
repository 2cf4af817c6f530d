package conntrack

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// find returns the entry with this original tuple.
func find(t *testing.T, c *Conn, orig Tuple) (got Flow, ok bool) {
	t.Helper()
	err := c.Snapshot(func(f *Flow) error {
		if f.Orig == orig {
			got, ok = *f, true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got, ok
}

// What is created is what a dump shows, and what the conntrack program shows.
func TestCreate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	w := l.watch(Options{})
	v4 := sampleEntry("198.51.100.7:40000", "192.0.2.10:80", "10.88.0.5:8080")
	v6 := sampleEntry("[2001:db8:1::7]:40000", "[2001:db8::10]:80", "[fd99::5]:8080")
	v6.OrigSeqAdj = SeqAdj{1, 2, 3}
	masked := sampleEntry("127.0.0.1:40001", "127.0.0.1:80", "10.88.0.5:8080")
	masked.Source = addrPort("10.88.0.1:1025")
	masked.ReplySeqAdj = SeqAdj{}
	udp := Entry{
		Orig:    Tuple{Src: addrPort("198.51.100.7:40000"), Dst: addrPort("192.0.2.10:53"), Proto: unix.IPPROTO_UDP},
		Backend: addrPort("10.88.0.5:53"), Mark: testMark, Timeout: 25 * time.Second,
	}
	zoned := udp
	zoned.Orig.Zone = 7
	for name, e := range map[string]Entry{"v4": v4, "v6": v6, "masqueraded": masked, "udp": udp, "zone": zoned} {
		if err := c.Create(e); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		got, ok := find(t, c, e.Orig)
		if !ok {
			t.Errorf("%s: not in the table", name)
			continue
		}
		want := e.asRequested()
		// What the kernel has made of it.
		src := e.Orig.Src
		want.Status |= conntrack.StatusDstNAT | conntrack.StatusDstNATDone | conntrack.StatusSrcNATDone
		if e.Source.IsValid() {
			src = e.Source
			want.Status |= conntrack.StatusSrcNAT
		}
		if e.OrigSeqAdj != (SeqAdj{}) || e.ReplySeqAdj != (SeqAdj{}) {
			want.Status |= conntrack.StatusSeqAdjust
		}
		want.Reply.Src, want.Reply.Dst = e.Backend, src
		want.ID = got.ID
		if d := want.Timeout - got.Timeout; d < 0 || d > 5*time.Second {
			t.Errorf("%s: timeout %s, want %s", name, got.Timeout, want.Timeout)
		}
		want.Timeout = got.Timeout
		if got != want {
			t.Errorf("%s: got\n%+v, want\n%+v", name, got, want)
		}
		if err := c.Create(e); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: created twice: %v", name, err)
		}
	}
	listed := slices.DeleteFunc(testenv.Conntrack(t, l.Host), func(f testenv.CTFlow) bool {
		return f.State != "ESTABLISHED" || !f.Has("ASSURED") || f.Mark != v4.Mark || !f.DNAT() ||
			f.Orig.Src != v4.Orig.Src || f.Orig.Dst != v4.Orig.Dst || f.Reply.Src != v4.Backend || f.Reply.Dst != v4.Orig.Src
	})
	if len(listed) != 1 {
		t.Errorf("conntrack lists %v", listed)
	}
	b := Backend{v4.Orig.Dst, v4.Backend, unix.IPPROTO_TCP}
	l.untilCount(w, b, 1, 1)
	if err := c.Delete(v4.Orig); err != nil {
		t.Error(err)
	}
	l.untilCount(w, b, 0, 1)
	if err := c.Delete(v4.Orig); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := c.Delete(zoned.Orig); err != nil {
		t.Error(err)
	}
	if _, ok := find(t, c, udp.Orig); !ok {
		t.Error("deleting in a zone took the entry of another")
	}
}

// A client's port is never changed behind its back: if the backend knows it
// already from elsewhere, creation fails.
func TestCreateClash(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	one := sampleEntry("198.51.100.7:40000", "192.0.2.10:80", "10.88.0.5:8080")
	two := one
	two.Orig.Dst = addrPort("192.0.2.10:81") // another service, same backend
	if err := c.Create(one); err != nil {
		t.Fatal(err)
	}
	if err := c.Create(two); !errors.Is(err, fs.ErrExist) {
		t.Errorf("clash of the reply direction: %v", err)
	}
	if err := c.Create(Entry{}); !errors.Is(err, ErrEntry) {
		t.Errorf("empty entry: %v", err)
	}
}

// One round trip replaces many entries; each has its own result.
func TestBatch(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	const n = 1000 // more than go into one send
	var b Batch
	entries := numbered(n)
	for i, e := range entries {
		if i%2 == 0 {
			if err := c.Create(Entry{Orig: e.Orig, Backend: addrPort("10.88.9.9:9"), Timeout: time.Hour, State: StateEstablished}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, e := range entries {
		b.Delete(e.Orig)
		if err := b.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Create(Entry{}); !errors.Is(err, ErrEntry) || b.Len() != 2*n {
		t.Fatalf("%v, %d changes", err, b.Len())
	}
	for round := range 2 { // a batch can be used again
		errs, err := c.Do(&b)
		if err != nil || len(errs) != 2*n {
			t.Fatal(len(errs), err)
		}
		for i, err := range errs {
			missing := i%4 == 2 && round == 0
			if missing != errors.Is(err, fs.ErrNotExist) || !missing && err != nil {
				t.Fatalf("round %d, change %d: %v", round, i, err)
			}
		}
		if live, half, err := c.Live(entries[0].Backend, unix.IPPROTO_TCP, (*Flow).Half); live != n || half != 0 || err != nil {
			t.Fatalf("%d live, want %d, %v", live, n, err)
		}
	}
	b.Reset()
	if errs, err := c.Do(&b); len(errs) != 0 || err != nil {
		t.Errorf("empty batch: %v, %v", errs, err)
	}
}

func numbered(n int) []Entry {
	entries := make([]Entry, n)
	for i := range entries {
		e := sampleEntry("198.51.100.7:40000", "192.0.2.10:80", "10.88.0.5:8080")
		e.Orig.Src = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1024+i>>16))
		entries[i] = e
	}
	return entries
}

func TestLiveAndDeleteBackend(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	b := l.backend(8000, unix.IPPROTO_TCP)
	l.serve(8000, closeAfter)
	l.serve(8001, closeAfter)
	for range 3 {
		l.dial(b.Service, 0)
	}
	_ = l.dial(b.Service, 0).Close() // finished, but in the table
	l.dial(l.backend(8001, b.Proto).Service, 0)
	l.dial(netip.AddrPortFrom(unmarked4, 8000), 0) // same backend, not our mark
	if err := l.burst(5, b.Service, "udp"); err != nil {
		t.Fatal(err)
	}
	until(t, func() string { return "close" }, func() bool { live, all := l.oracle(b); return live == 3 && all == 4 })
	attempt := sampleEntry("198.51.100.7:40000", b.Service.String(), b.Backend.String())
	attempt.State, attempt.Status = StateSynRecv, conntrack.StatusSeenReply
	if err := c.Create(attempt); err != nil {
		t.Fatal(err)
	}
	if n, half, err := c.Live(b.Backend, b.Proto, (*Flow).Half); n != 4 || half != 1 || err != nil {
		t.Errorf("%d live, %d of them half open, want 4 and 1, %v", n, half, err)
	}
	if n, half, err := c.Live(b.Backend, unix.IPPROTO_UDP, (*Flow).Half); n != 5 || half != 0 || err != nil {
		t.Errorf("%d live, %d of them half open, want 5 and 0, %v", n, half, err)
	}
	if n, err := c.DeleteBackend(t.Context(), b.Backend, b.Proto); n != 5 || err != nil {
		t.Errorf("%d deleted, want 5, %v", n, err)
	}
	if _, all := l.oracle(b); all != 0 {
		t.Errorf("%d entries left", all)
	}
	for _, o := range []Backend{l.backend(8001, unix.IPPROTO_TCP), l.backend(8000, unix.IPPROTO_UDP)} {
		if _, all := l.oracle(o); all == 0 {
			t.Errorf("entries of %s are gone too", o)
		}
	}
	foreign := slices.ContainsFunc(l.flows(), func(f Flow) bool { return f.Orig.Dst.Addr() == unmarked4 })
	if !foreign {
		t.Error("an unmarked entry is gone too")
	}
	if n, err := c.DeleteBackend(t.Context(), b.Backend, unix.IPPROTO_UDP); n != 5 || err != nil {
		t.Errorf("%d deleted, want 5, %v", n, err)
	}
	if n, err := c.DeleteBackend(t.Context(), b.Backend, unix.IPPROTO_UDP); n != 0 || err != nil {
		t.Errorf("%d deleted, want 0, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.DeleteBackend(ctx, l.backend(8001, b.Proto).Backend, b.Proto); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// An id protects the next entry of the same tuple from the deletion meant for
// the last.
func TestDeleteFlow(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	e := numbered(1)[0]
	if err := c.Create(e); err != nil {
		t.Fatal(err)
	}
	f, _ := find(t, c, e.Orig)
	old := f
	old.ID++
	var b Batch
	b.DeleteFlow(&old)
	b.DeleteFlow(&f)
	errs, err := c.Do(&b)
	if err != nil || !errors.Is(errs[0], fs.ErrNotExist) || errs[1] != nil {
		t.Errorf("%v, %v", errs, err)
	}
}

func TestSnapshot(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	const n = 3000
	var b Batch
	for i, e := range numbered(n) {
		if i%3 == 0 {
			e.Mark = 0x52000000 // someone else's
		}
		if err := b.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	if errs, err := c.Do(&b); err != nil || slices.ContainsFunc(errs, func(err error) bool { return err != nil }) {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	seen := 0
	if err := c.Snapshot(func(*Flow) error { seen++; return stop }); !errors.Is(err, stop) || seen != 1 {
		t.Errorf("stopped with %v after %d", err, seen)
	}
	// Each part is announced before its entries are, which the Watcher relies on
	// to read events in between; a refusal leaves out the rest.
	parts, refuse := 0, 3
	seen = 0
	err := c.dump(func() error {
		if parts++; parts == refuse {
			return stop
		}
		return nil
	}, func(*Flow) error {
		if seen++; parts == 0 {
			t.Fatal("entry before its part")
		}
		return nil
	})
	if !errors.Is(err, stop) || parts != refuse || seen == 0 || seen >= n-n/3 {
		t.Errorf("%v after %d parts and %d entries", err, parts, seen)
	}
	// A change does not wait for the end of a dump: a handover would.
	nothing := Tuple{Src: addrPort("198.51.100.9:1"), Dst: addrPort("192.0.2.10:80"), Proto: unix.IPPROTO_TCP}
	err = c.Snapshot(func(*Flow) error {
		changed := make(chan error, 1)
		go func() { changed <- c.Delete(nothing) }()
		select {
		case err := <-changed:
			return err
		case <-time.After(10 * time.Second):
			return errors.New("a change waits for a dump")
		}
	})
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// Whole right after one that was given up, and by many at a time.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				seen := map[Tuple]bool{}
				if err := c.Snapshot(func(f *Flow) error { seen[f.Orig] = true; return nil }); err != nil {
					t.Error(err)
				}
				if len(seen) != n-n/3 {
					t.Errorf("%d entries, want %d", len(seen), n-n/3)
				}
				if err := c.Delete(nothing); !errors.Is(err, fs.ErrNotExist) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	all, agree := l.flows(), 0
	if len(all) != n {
		t.Errorf("%d entries in all, want %d", len(all), n)
	}
	// The library's own dump is the oracle for all fields.
	l.in(l.Host, func() error {
		lc, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer lc.Close()
		flows, err := lc.Dump(nil)
		if err != nil {
			return err
		}
		byID := map[uint32]Flow{}
		for _, f := range all {
			byID[f.ID] = f
		}
		for _, f := range flows {
			o := byID[f.ID]
			if o.Orig.Src.Addr() == f.TupleOrig.IP.SourceAddress && o.Mark == f.Mark && o.Status == f.Status {
				agree++
			}
		}
		return nil
	})
	if agree < n-2 { // ids may collide
		t.Errorf("the library's dump agrees on %d of %d", agree, n)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.Snapshot(func(*Flow) error { return nil }); err == nil {
		t.Error("a closed connection works")
	}
}
