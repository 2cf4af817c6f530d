package nft_test

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"
)

// TestAffinity: clients take their turns once, and keep what they got while
// other backends come and go.
func TestAffinity(t *testing.T) {
	t.Parallel()
	l := newLab(t, 4)
	list4, list6 := l.clients(t, 6)
	type group struct {
		network, addr string
		clients       []netip.Addr
		at            nft.Endpoint
		to            func(...int) *nft.Service
	}
	groups := []group{
		{"tcp", "192.0.2.10:80", list4, tcp("192.0.2.10:80"), l.to4},
		{"udp", "192.0.2.10:80", list4, udp("192.0.2.10:80"), l.to4},
		{"tcp", "[2001:db8::10]:80", list6, tcp("[2001:db8::10]:80"), l.to6},
		{"udp", "[2001:db8::10]:80", list6, udp("[2001:db8::10]:80"), l.to6},
		{"tcp", "192.0.2.11:81", list4, tcp("0.0.0.0:81"), l.to4},
		{"udp", "[fd99::1]:81", list6, udp("[::]:81"), l.to6},
	}
	for _, g := range groups {
		t.Run(fmt.Sprint(g.network, " ", g.at), func(t *testing.T) {
			set := func(backends ...int) {
				t.Helper()
				s := g.to(backends...)
				s.Affinity = time.Hour
				apply(t, l.table, map[nft.Endpoint]*nft.Service{g.at: s})
			}
			from := func(i int) string {
				t.Helper()
				return askFrom(t, l.Client, netip.AddrPortFrom(g.clients[i], 0), g.network, g.addr)
			}
			has := make([]string, len(g.clients))
			check := func(when string) {
				t.Helper()
				for range 2 {
					for i := range has {
						if got := from(i); got != has[i] {
							t.Errorf("%s, client %d: %s answered, want %s", when, i, got, has[i])
						}
					}
				}
			}
			// Remembered from the time of the only backend.
			set(0)
			has[0] = from(0)
			set(0, 1, 2)
			for i := 1; i < len(has); i++ {
				has[i] = from(i)
			}
			// Whose turn it is first, the counter knows.
			if has[1] == has[2] || has[2] == has[3] || has[1] == has[3] || has[4] != has[1] || has[5] != has[2] {
				t.Errorf("turns %v", has[1:])
			}
			check("at first")
			set(0, 1, 2, 3)
			check("one more backend")
			set(3, 3, 3, 3, 2, 1, 0, 3)
			check("other slots")

			// One goes. Its clients choose from what is left, and stay there
			// when it comes back.
			set(1, 2, 3)
			for i := range has {
				if got := from(i); has[i] != "b0" && got != has[i] || got == "b0" {
					t.Errorf("b0 gone, client %d: %s answered, before %s", i, got, has[i])
				} else {
					has[i] = got
				}
			}
			check("b0 gone")
			set(0, 1, 2, 3)
			check("b0 back")
			// Nothing is left but one.
			set(3)
			for i := range has {
				has[i] = "b3"
			}
			check("all but b3 gone")
			// Asleep and awake.
			set()
			set(0, 1, 2, 3)
			check("after a sleep")
		})
	}
	// Without affinity what is remembered counts no more.
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): l.to4(0)})
	if got := askFrom(t, l.Client, netip.AddrPortFrom(list4[0], 0), "tcp", "192.0.2.10:80"); got != "b0" {
		t.Errorf("no affinity: %s answered", got)
	}
}

// TestAffinityExpires: each service has a time of its own, which the latest new
// flow begins again.
func TestAffinityExpires(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	short, long := l.to4(0, 1), l.to4(0, 1)
	short.Affinity, long.Affinity = time.Second, 90*time.Minute
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): short, tcp("192.0.2.11:80"): long})
	if got := l.table.Services()[tcp("192.0.2.11:80")].Affinity; got != 2*time.Hour {
		t.Errorf("90 minutes became %v", got)
	}
	one, two := ask(t, l.Client, "tcp", "192.0.2.10:80"), ask(t, l.Client, "tcp", "192.0.2.11:80")
	list := l.Host.Run(t, "nft", "list", "map", "inet", "sluice", "affinity4")
	for _, want := range []string{"192.0.2.10 . tcp . 80 . 10.99.0.2 timeout 1s", "192.0.2.11 . tcp . 80 . 10.99.0.2 timeout 2h"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %s in %s", want, list)
		}
	}
	// Another flow begins the time again.
	left := func() time.Duration {
		t.Helper()
		list := l.Host.Run(t, "nft", "list", "map", "inet", "sluice", "affinity4")
		m := regexp.MustCompile(`192\.0\.2\.11 \S+ tcp \S+ 80 \S+ \S+ timeout 2h expires (\w+)`).FindStringSubmatch(list)
		if m == nil {
			t.Fatalf("not remembered: %s", list)
		}
		d, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	deadline := time.Now().Add(patience)
	before := left()
	for before > 2*time.Hour-time.Second {
		before = left()
	}
	for ask(t, l.Client, "tcp", "192.0.2.11:80"); left() <= before; ask(t, l.Client, "tcp", "192.0.2.11:80") {
		if time.Now().After(deadline) {
			t.Fatalf("%v left, before another flow %v", left(), before)
		}
	}
	for strings.Contains(l.Host.Run(t, "nft", "list", "map", "inet", "sluice", "affinity4"), "timeout 1s") {
		if time.Now().After(deadline) {
			t.Fatal("still remembered")
		}
	}
	if got := ask(t, l.Client, "tcp", "192.0.2.10:80"); got == one {
		t.Errorf("%s answered, not the next in turn", got)
	}
	if got := ask(t, l.Client, "tcp", "192.0.2.11:80"); got != two {
		t.Errorf("%s answered, want %s", got, two)
	}
}

// TestAffinityMarks: marks of others are as they were, whether the client is
// remembered or not, and do not keep it from being so.
func TestAffinityMarks(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	// The first packet has the marks, later ones not: they must not cover up
	// what became of them.
	l.Host.RunInput(t, `table inet other {
		chain early { type filter hook prerouting priority -150; ct state new ct mark set 0x00a01234 meta mark set 0x2000; }
		chain late { type filter hook postrouting priority 300; ct state new meta mark 0x2000 counter; }
	}`, "nft", "-f", "-")
	four, six := l.to4(0, 1, 2), l.to6(0, 1, 2)
	four.Affinity, six.Affinity = time.Hour, time.Hour
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): four, tcp("[2001:db8::10]:80"): six})
	for _, addr := range []string{"192.0.2.10:80", "[2001:db8::10]:80"} {
		one := ask(t, l.Client, "tcp", addr)
		for range 4 {
			if got := ask(t, l.Client, "tcp", addr); got != one {
				t.Errorf("%s: %s answered, want %s", addr, got, one)
			}
		}
	}
	n := 0
	for _, f := range testenv.Conntrack(t, l.Host) {
		if f.DNAT() {
			n++
			if f.Mark != 0x51a01234 {
				t.Errorf("mark %#x: %s", f.Mark, f)
			}
		}
	}
	if n != 10 {
		t.Errorf("%d flows, want 10", n)
	}
	if list := l.Host.Run(t, "nft", "list", "chain", "inet", "other", "late"); !strings.Contains(list, "counter packets 10 ") {
		t.Errorf("packet marks lost: %s", list)
	}
}
