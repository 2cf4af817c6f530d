package nft

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestLingered: a backend that comes back after the kernel has forgotten it is
// put in at once: nothing is refused, and nothing read again.
func TestLingered(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "linger")
	open := func() *Table {
		t.Helper()
		fd, err := ns.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		tab, err := Open(Options{NetNS: int(fd.Fd())})
		if err != nil {
			t.Fatal(err)
		}
		return tab
	}
	at := Endpoint{Addr: netip.MustParseAddr("192.0.2.10"), Proto: unix.IPPROTO_TCP, Port: 80}
	to := netip.MustParseAddrPort("10.88.0.5:8080")
	b := backendOf(at, to)
	apply := func(tab *Table, slots ...netip.AddrPort) {
		t.Helper()
		if err := tab.Apply(map[Endpoint]*Service{at: {Slots: slots}}); err != nil {
			t.Fatal(err)
		}
	}
	first := open()
	apply(first, to)
	apply(first)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}

	tab := open() // which reads what is left
	defer tab.Close()
	for _, how := range []string{"found", "left"} {
		if left := time.Until(tab.ends[b]); left < linger-time.Hour || left > linger {
			t.Fatalf("%s: lingers for %v more", how, left)
		}
		// A day later.
		ns.Run(t, "nft", "delete element inet sluice backends4 { 10.88.0.5 . tcp . 8080 }")
		tab.swept = time.Time{}
		tab.forget(time.Now().Add(linger + lingerSlack))
		have := tab.have
		apply(tab, to)
		if tab.have != have {
			t.Errorf("%s: the table was read again", how)
		}
		if list := ns.Run(t, "nft", "list", "set", "inet", "sluice", "backends4"); !strings.Contains(list, "10.88.0.5 . tcp . 8080") || strings.Contains(list, "expires") {
			t.Errorf("%s: %s", how, list)
		}
		if len(tab.ends) > 0 {
			t.Errorf("%s: %v", how, tab.ends)
		}
		apply(tab)
	}

	// One that the kernel has forgotten too early.
	ns.Run(t, "nft", "delete element inet sluice backends4 { 10.88.0.5 . tcp . 8080 }")
	have := tab.have
	apply(tab, to)
	if tab.have == have {
		t.Error("the table was not read again: nothing is told by this test")
	}
}
