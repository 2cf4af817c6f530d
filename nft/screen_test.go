package nft_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, p := range list {
		all = append(all, netip.MustParsePrefix(p))
	}
	return all
}

// turnedAway says that a client was answered as by a closed port. Of UDP this
// is the answer to its first datagram.
func turnedAway(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }

// from dials from an address of the namespace and closes.
func from(ns *testenv.NS, local, network, addr string) (string, error) {
	c, err := tryDialFrom(ns, netip.AddrPortFrom(netip.MustParseAddr(local), 0), network, addr)
	if err != nil {
		return "", err
	}
	return c.answer.name, c.Close()
}

// TestScreen: while a service has no slots, who is not allowed is refused by the
// kernel, and nothing is kept of him; with slots all are served.
func TestScreen(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	l.Client.AddAddr(t, "198.51.100.7/32", "lo")
	l.Client.AddAddr(t, "2001:db8:7::7/128", "lo")
	l.Host.IP(t, "route add 198.51.100.7 via 10.99.0.2", "route add 2001:db8:7::7 via fd99::2")
	const friend4, other4, friend6, other6 = "198.51.100.7", "10.99.0.2", "2001:db8:7::7", "fd99::2"

	// In place of the daemon's own sockets.
	for _, a := range []string{"192.0.2.10:80", "[2001:db8::10]:80", "[::]:81"} {
		serve(t, l.Host, a, "host")
	}
	for _, a := range []string{"192.0.2.10:80", "[2001:db8::10]:80", "192.0.2.11:81", "192.0.2.12:81", "[2001:db8::10]:81"} {
		serveUDP(t, l.Host, a, "host")
	}
	allow4, allow6 := prefixes("198.51.100.0/24", "198.51.100.7/32"), prefixes("2001:db8:7::/48")
	screen := func(allow []netip.Prefix) *nft.Service { return &nft.Service{Screen: true, Allow: allow} }
	cold := map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): screen(allow4), udp("192.0.2.10:80"): screen(allow4),
		tcp("[2001:db8::10]:80"): screen(allow6), udp("[2001:db8::10]:80"): screen(allow6),
		tcp("0.0.0.0:81"): screen(allow4), udp("0.0.0.0:81"): screen(allow4),
		tcp("[::]:81"): screen(allow6), udp("[::]:81"): screen(allow6),
		// One at its own address, which the one at every address leaves alone.
		tcp("192.0.2.11:81"): {}, udp("192.0.2.11:81"): {},
	}
	apply(t, l.table, cold)

	ask := func(t *testing.T, ns *testenv.NS, local, network, addr, want string) {
		t.Helper()
		name, err := from(ns, local, network, addr)
		switch {
		case want == "" && !turnedAway(err):
			t.Errorf("%s from %s to %s: answered by %q, %v; want a refusal", network, local, addr, name, err)
		case want != "" && (err != nil || name != want):
			t.Errorf("%s from %s to %s: answered by %q, %v; want %s", network, local, addr, name, err, want)
		}
	}
	for _, network := range []string{"tcp", "udp"} {
		for _, c := range []struct{ local, addr, want string }{
			{friend4, "192.0.2.10:80", "host"}, {other4, "192.0.2.10:80", ""},
			{friend6, "[2001:db8::10]:80", "host"}, {other6, "[2001:db8::10]:80", ""},
			{friend4, "192.0.2.12:81", "host"}, {other4, "192.0.2.12:81", ""},
			{friend6, "[2001:db8::10]:81", "host"}, {other6, "[2001:db8::10]:81", ""},
			{other4, "192.0.2.11:81", "host"},
		} {
			ask(t, l.Client, c.local, network, c.addr, c.want)
		}
		// Of the host itself, by its source address; ::1 comes by here too.
		for _, c := range []struct{ local, addr string }{
			{"192.0.2.10", "192.0.2.10:80"}, {"127.0.0.1", "127.0.0.1:81"}, {"::1", "[::1]:81"}, {"2001:db8::10", "[2001:db8::10]:80"},
		} {
			ask(t, l.Host, c.local, network, c.addr, "")
		}
	}
	others := []netip.Addr{netip.MustParseAddr(other4), netip.MustParseAddr(other6)}
	for _, f := range testenv.Conntrack(t, l.Host) {
		if slices.Contains(others, f.Orig.Src.Addr()) && f.Orig.Dst.Addr() != netip.MustParseAddr("192.0.2.11") {
			t.Errorf("kept of a client that was turned away: %v", f)
		}
	}

	// The list is found again, without what is inside another.
	again := open(t, l.Host)
	if got := again.Services()[tcp("192.0.2.10:80")]; !got.Screen || !slices.Equal(got.Allow, prefixes("198.51.100.0/24")) {
		t.Errorf("found again: %+v", got)
	}
	if !reflect.DeepEqual(again.Services(), l.table.Services()) {
		t.Error("what is found again differs")
	}
	if changed, err := l.table.Restore(); err != nil || changed {
		t.Errorf("restore: %v, %v", changed, err)
	}

	// Local ones by the list.
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): screen(prefixes("192.0.2.10/32")),
		tcp("0.0.0.0:81"):    screen(prefixes("127.0.0.0/8", "0.0.0.0/1")), tcp("[::]:81"): screen(prefixes("::1/128")),
	})
	ask(t, l.Host, "192.0.2.10", "tcp", "192.0.2.10:80", "host")
	ask(t, l.Host, "127.0.0.1", "tcp", "127.0.0.1:81", "host")
	ask(t, l.Host, "::1", "tcp", "[::1]:81", "host")
	ask(t, l.Client, friend4, "tcp", "192.0.2.10:80", "")

	// Awake, everyone; the list stays where it is.
	for at, s := range cold {
		if !s.Screen {
			continue
		}
		s.Screen, s.Slots = false, l.to4(0).Slots
		if at.Addr.Is6() {
			s.Slots = l.to6(0).Slots
		}
	}
	apply(t, l.table, cold)
	for _, network := range []string{"tcp", "udp"} {
		ask(t, l.Client, other4, network, "192.0.2.10:80", "b0")
		ask(t, l.Client, other6, network, "[2001:db8::10]:80", "b0")
		ask(t, l.Client, other4, network, "192.0.2.12:81", "b0")
		ask(t, l.Client, other6, network, "[2001:db8::10]:81", "b0")
		ask(t, l.Host, "192.0.2.10", network, "192.0.2.10:80", "b0")
	}
}

// TestScreenSlots: with slots, screened, who is not allowed does not meet them
// either, limits or not; and what he sends on an open flow is no alarm.
func TestScreenSlots(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	next := alarms(t, l.Host)
	l.Client.AddAddr(t, "198.51.100.7/32", "lo")
	l.Client.AddAddr(t, "2001:db8:7::7/128", "lo")
	l.Host.IP(t, "route add 198.51.100.7 via 10.99.0.2", "route add 2001:db8:7::7 via fd99::2")
	const friend4, other4, friend6, other6 = "198.51.100.7", "10.99.0.2", "2001:db8:7::7", "fd99::2"
	b := l.net.Backends[0]
	four, six := netip.AddrPortFrom(b.Addr4, 8080), netip.AddrPortFrom(b.Addr6, 8080)
	for _, limits := range []nft.Limits{{}, {NewPerSecond: 1000, NewPerSecondPerClient: 1000}} {
		for _, at := range []struct {
			key, addr, friend, other string
			slots                    []netip.AddrPort
			allow                    []netip.Prefix
		}{
			{"192.0.2.10:80", "192.0.2.10:80", friend4, other4, []netip.AddrPort{four}, prefixes("198.51.100.0/24")},
			{"0.0.0.0:81", "192.0.2.12:81", friend4, other4, []netip.AddrPort{four}, prefixes("198.51.100.0/24")},
			{"[2001:db8::10]:80", "[2001:db8::10]:80", friend6, other6, []netip.AddrPort{six}, prefixes("2001:db8:7::/48")},
			{"[::]:81", "[2001:db8::10]:81", friend6, other6, []netip.AddrPort{six, six}, prefixes("2001:db8:7::/48")},
		} {
			t.Run(fmt.Sprint(at.key, " ", limits), func(t *testing.T) {
				s := nft.Service{Slots: at.slots, Allow: at.allow, Limits: limits}
				awake := map[nft.Endpoint]*nft.Service{tcp(at.key): &s, udp(at.key): &s}
				apply(t, l.table, awake)
				open, err := tryDialFrom(l.Client, netip.AddrPortFrom(netip.MustParseAddr(at.other), 0), "tcp", at.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer open.Close()
				mine, err := tryDialFrom(l.Client, netip.AddrPortFrom(netip.MustParseAddr(at.friend), 0), "tcp", at.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer mine.Close()

				s.Screen = true
				apply(t, l.table, awake)
				backend := nft.Endpoint{Addr: at.slots[0].Addr(), Proto: unix.IPPROTO_TCP, Port: 8080}
				if err := l.table.Asleep(map[nft.Endpoint]bool{backend: true}); err != nil {
					t.Fatal(err)
				}
				for _, network := range []string{"tcp", "udp"} {
					if name, err := from(l.Client, at.other, network, at.addr); !turnedAway(err) {
						t.Errorf("%s from a stranger: answered by %q, %v", network, name, err)
					}
				}
				for next(50 * time.Millisecond).IsValid() { // what was under way before it slept
					continue
				}
				if err := open.echo("a stranger's"); err != nil {
					t.Error(err)
				}
				if to := next(100 * time.Millisecond); to.IsValid() {
					t.Errorf("alarm for %s by a stranger", to)
				}
				if err := mine.echo("a friend's"); err != nil {
					t.Error(err)
				}
				if to := next(patience); to != backend.Addr {
					t.Errorf("alarm for %s, want %s", to, backend.Addr)
				}
				for _, network := range []string{"tcp", "udp"} {
					if name, err := from(l.Client, at.friend, network, at.addr); err != nil || name != "b0" {
						t.Errorf("%s from a friend: answered by %q, %v", network, name, err)
					}
				}
				if err := l.table.Asleep(map[nft.Endpoint]bool{backend: false}); err != nil {
					t.Fatal(err)
				}
				for next(50 * time.Millisecond).IsValid() { // what is left of the friend's
				}
				apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp(at.key): nil, udp(at.key): nil})
			})
		}
	}
}

// TestPatient: a connection to a backend that sleeps is no alarm, its first byte
// is; a datagram always.
func TestPatient(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	next := alarms(t, l.Host)
	mute := func(ns *testenv.NS, addr string) {
		ln, err := ns.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = ln.Close() })
	}
	b := l.net.Backends[0]
	mute(b.NS, "[::]:9090")
	for _, at := range []struct {
		key, addr string
		backend   netip.Addr
	}{
		{"192.0.2.10:80", "192.0.2.10:80", b.Addr4}, {"0.0.0.0:81", "192.0.2.12:81", b.Addr4},
		{"[2001:db8::10]:80", "[2001:db8::10]:80", b.Addr6}, {"[::]:81", "[2001:db8::10]:81", b.Addr6},
	} {
		t.Run(at.key, func(t *testing.T) {
			s := &nft.Service{Slots: []netip.AddrPort{netip.AddrPortFrom(at.backend, 9090)}, Patient: true}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp(at.key): s, udp(at.key): s})
			sleeps := map[nft.Endpoint]bool{
				{Addr: at.backend, Proto: unix.IPPROTO_TCP, Port: 9090}: true,
				{Addr: at.backend, Proto: unix.IPPROTO_UDP, Port: 9090}: true,
			}
			if err := l.table.Asleep(sleeps); err != nil {
				t.Fatal(err)
			}
			c, err := l.Client.Dial(t.Context(), "tcp", at.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if to := next(100 * time.Millisecond); to.IsValid() {
				t.Errorf("alarm for %s by a bare connection", to)
			}
			if _, err := c.Write([]byte{0xff}); err != nil {
				t.Fatal(err)
			}
			if to := next(patience); to != at.backend {
				t.Errorf("alarm for %s by a byte, want %s", to, at.backend)
			}
			u, err := l.Client.Dial(t.Context(), "udp", at.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer u.Close()
			if _, err := u.Write(nil); err != nil && !errors.Is(err, net.ErrClosed) {
				t.Fatal(err)
			}
			if to := next(patience); to != at.backend {
				t.Errorf("alarm for %s by a datagram, want %s", to, at.backend)
			}
			for next(50 * time.Millisecond).IsValid() {
			}
		})
	}
}

// TestScreenInvalid: prefixes that the endpoint's family has none of.
func TestScreenInvalid(t *testing.T) {
	t.Parallel()
	tab := open(t, testenv.NewNS(t, "invalid"))
	for at, p := range map[string]netip.Prefix{
		"192.0.2.10:80": netip.MustParsePrefix("2001:db8::/32"), "[2001:db8::10]:80": netip.MustParsePrefix("192.0.2.0/24"),
		"192.0.2.11:80": {},
	} {
		err := tab.Apply(map[nft.Endpoint]*nft.Service{tcp(at): {Allow: []netip.Prefix{p}}})
		if !errors.Is(err, nft.ErrInvalid) {
			t.Errorf("%s with %s: %v", at, p, err)
		}
	}
}
