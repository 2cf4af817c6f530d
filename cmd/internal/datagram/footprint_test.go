package datagram

import (
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"sluice/testenv"
)

// usage is what the process holds; not to be called in a parallel test.
func usage(t *testing.T) (goroutines, fds int, bytes uint64) {
	t.Helper()
	runtime.GC()
	runtime.GC() // pools keep their content through one
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return runtime.NumGoroutine(), len(list), m.HeapAlloc + m.StackInuse
}

// A thousand idle listeners; and nothing is left of them and of what they held.
func TestFootprint(t *testing.T) {
	const n = 1000
	l := newLab(t, Limits{})
	l.must(l.group.Close())
	goroutines, fds, bytes := usage(t)
	l.group = l.open(Limits{})
	l.must(l.Host.Do(func() error {
		for i := range uint64(n) {
			if _, err := l.group.Listen(i+1, netip.AddrPortFrom(l.HostAddr4, uint16(10000+i))); err != nil {
				return err
			}
		}
		return nil
	}))
	g, f, b := usage(t)
	each := (int64(b) - int64(bytes)) / n
	t.Logf("an idle listener: %d bytes, %d goroutines and %d descriptors for all", each, g-goroutines, f-fds)
	if each > 32<<10 {
		t.Errorf("%d bytes for an idle listener", each)
	}
	p := l.dial(l.Client, netip.AddrPortFrom(l.HostAddr4, 10000), 0)
	p.send("held")
	h := l.next()
	done := make(chan error, 1)
	l.listener(h.Listener).Release(h.ID, func(err error) { done <- err })
	l.must(<-done)
	l.must(l.group.Close())
	p.Close()
	testenv.Eventually(t, patience, func() (bool, string) {
		g, f, _ := usage(t)
		return g <= goroutines && f <= fds,
			fmt.Sprintf("%d goroutines and %d descriptors, before %d and %d", g, f, goroutines, fds)
	})
}
