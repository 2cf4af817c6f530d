package conntrack

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func BenchmarkDecode(b *testing.B) {
	f := sampleFlows()[0]
	data := encodeFlow(&f, msgNew, 0)[unix.NLMSG_HDRLEN:]
	b.ReportAllocs()
	for b.Loop() {
		if err := decode(data, &f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTable is the life of a flow, four events, among 100,000 others of 100
// backends.
func BenchmarkTable(b *testing.B) {
	t := newTable()
	flow := func(i int) Flow {
		client := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(1024+i>>16))
		return Flow{
			Orig:  Tuple{Src: client, Dst: addrPort("192.0.2.10:80"), Proto: unix.IPPROTO_TCP},
			Reply: Tuple{Src: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(i % 100)}), 80), Dst: client, Proto: unix.IPPROTO_TCP},
			ID:    uint32(i), State: StateSynSent,
		}
	}
	for i := range 100_000 {
		f := flow(i)
		t.event(kindNew, &f)
	}
	b.ReportAllocs()
	events := 0
	for i := 100_000; b.Loop(); i++ {
		f := flow(i)
		t.event(kindNew, &f)
		f.State = StateSynRecv
		t.event(kindUpdate, &f)
		f.State = StateTimeWait
		t.event(kindUpdate, &f)
		t.event(kindDestroy, &f)
		t.zeros = t.zeros[:0]
		events += 4
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(events), "ns/event")
}

// fill creates n entries in the host's namespace, half of them marked.
func (l *lab) fill(c *Conn, n int) {
	l.t.Helper()
	var b Batch
	for i, e := range numbered(n) {
		if i%2 == 0 {
			e.Mark = 0
		}
		e.Backend = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(i % 100)}), 8080)
		if err := b.Create(e); err != nil {
			l.t.Fatal(err)
		}
	}
	errs, err := c.Do(&b)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, err := range errs {
		if err != nil {
			l.t.Fatal(err)
		}
	}
}

// threadTime is the processor time of the locked thread: on a busy machine it
// says more than the clock.
func threadTime(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEvents reads events from the socket into the flow table: 50,000 NEW,
// then as many DESTROY.
func BenchmarkEvents(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	l := newLab(b)
	c := l.open()
	for b.Loop() {
		b.StopTimer()
		var w *Watcher
		l.in(l.Host, func() (err error) {
			w, err = newWatcher(Options{Mark: testMark, Mask: testMask, ReadBuffer: 128 << 20})
			return err
		})
		l.fill(c, 100_000)
		read := func(what string) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.StartTimer()
			start := threadTime(b)
			if err := w.drain(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((threadTime(b)-start).Nanoseconds())/50_000, "cpu-ns/"+what)
			b.StopTimer()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/50_000, "allocs/"+what)
			if what == "NEW" {
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/50_000, "heapB/flow")
			}
		}
		read("NEW")
		if n := len(w.table.flows); n != 50_000 {
			b.Fatalf("%d flows", n)
		}
		l.conntrack("-F")
		read("DESTROY")
		if n := len(w.table.flows); n != 0 {
			b.Fatalf("%d flows left", n)
		}
		w.finish(ErrClosed)
		b.StartTimer()
	}
}

// BenchmarkSnapshot dumps a table of 100,000 entries, half of them ours.
func BenchmarkSnapshot(b *testing.B) {
	l := newLab(b)
	c := l.open()
	l.fill(c, 100_000)
	b.ReportAllocs()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime(b)
	defer func() {
		b.ReportMetric(float64((threadTime(b)-start).Nanoseconds())/float64(b.N)/1e6, "cpu-ms/op")
	}()
	for b.Loop() {
		n := 0
		if err := c.Snapshot(func(*Flow) error { n++; return nil }); err != nil || n != 50_000 {
			b.Fatal(n, err)
		}
	}
}

// BenchmarkSync is the same with a Watcher that reconciles.
func BenchmarkSync(b *testing.B) {
	l := newLab(b)
	c := l.open()
	l.fill(c, 100_000)
	w := l.watch(Options{})
	l.sync(w)
	b.ReportAllocs()
	for b.Loop() {
		l.sync(w)
	}
}

// BenchmarkReplace deletes and creates 100 entries in one batch, as handing over
// that many connections does.
func BenchmarkReplace(b *testing.B) {
	l := newLab(b)
	c := l.open()
	var batch Batch
	for _, e := range numbered(100) {
		batch.Delete(e.Orig)
		if err := batch.Create(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Do(&batch); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/flow")
}
