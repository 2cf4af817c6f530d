package conntrack

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestLiveShared: many counts that come while a dump runs are answered by one
// more, each with its own number.
func TestLiveShared(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	c := l.open()
	const backends = 20
	at := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 88, 0, byte(i)}), 8080)
	}
	var b Batch
	for i, e := range numbered(3 * backends) {
		e.Backend = at(i % backends % 7) // some have none
		if err := b.Create(e); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Do(&b); err != nil {
		t.Fatal(err)
	}
	want := make([]int, backends)
	for i := range want {
		var err error
		if want[i], _, err = c.Live(at(i), unix.IPPROTO_TCP, (*Flow).Half); err != nil {
			t.Fatal(err)
		}
	}
	if want[0] < 3 || want[7] != 0 {
		t.Fatalf("%d alone", want)
	}
	var wg sync.WaitGroup
	waits := false
	err := c.Snapshot(func(*Flow) error {
		if waits {
			return nil
		}
		waits = true
		for i := range backends {
			wg.Go(func() {
				if n, _, err := c.Live(at(i), unix.IPPROTO_TCP, (*Flow).Half); err != nil || n != want[i] {
					t.Errorf("%s has %d, %v, want %d", at(i), n, err, want[i])
				}
			})
		}
		testenv.Eventually(t, 10*time.Second, func() (bool, string) {
			c.tally.mu.Lock()
			defer c.tally.mu.Unlock()
			n := 0
			if c.tally.next != nil {
				n = len(c.tally.next.of)
			}
			return n == backends, fmt.Sprintf("%d of %d wait", n, backends)
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	before := backends + 1
	wg.Wait()
	if n := int(c.dumps.seq) - before; n != 1 {
		t.Errorf("%d dumps for %d counts", n, backends)
	}
}
