package nft_test

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"
)

// TestWild: a service at every local address, and what is not its own.
func TestWild(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	l.Host.Sysctl(t, "net.ipv4.conf."+l.net.Bridge+".route_localnet", "1")
	for _, b := range l.net.Backends {
		serve(t, b.NS, "[::]:80", "direct")
		serveUDP(t, b.NS, "[::]:80", "direct")
	}
	for _, addr := range []string{"192.0.2.12:80", "[2001:db8::12]:80", "[::1]:80"} {
		if addr == "[2001:db8::12]:80" {
			l.Host.AddAddr(t, "2001:db8::12/128", "lo")
		}
		serve(t, l.Host, addr, "host")
		serveUDP(t, l.Host, addr, "host")
	}
	l.Host.AddAddr(t, "2001:db8::11/128", "lo")
	changes := make(map[nft.Endpoint]*nft.Service)
	for _, at := range []func(string) nft.Endpoint{tcp, udp} {
		changes[at("0.0.0.0:80")], changes[at("[::]:80")] = l.to4(0), l.to6(0)
		changes[at("192.0.2.11:80")], changes[at("[2001:db8::11]:80")] = l.to4(1), l.to6(1)
		changes[at("192.0.2.12:80")], changes[at("[2001:db8::12]:80")] = l.to4(), l.to6()
	}
	apply(t, l.table, changes)

	b0 := l.net.Backends[0]
	for _, c := range []struct {
		from       *testenv.NS
		addr, want string
	}{
		{l.Client, "192.0.2.10:80", "b0"},
		{l.Client, "10.99.0.1:80", "b0"},
		{l.Client, "10.98.0.1:80", "b0"},
		{l.Client, "192.0.2.11:80", "b1"},
		{l.Client, "192.0.2.12:80", "host"},
		{l.Client, "[2001:db8::10]:80", "b0"},
		{l.Client, "[fd99::1]:80", "b0"},
		{l.Client, "[2001:db8::11]:80", "b1"},
		{l.Client, "[2001:db8::12]:80", "host"},
		// These are forwarded.
		{l.Client, netip.AddrPortFrom(b0.Addr4, 80).String(), "direct"},
		{l.Client, netip.AddrPortFrom(b0.Addr6, 80).String(), "direct"},
		{l.Host, "192.0.2.10:80", "b0"},
		{l.Host, "10.99.0.1:80", "b0"},
		{l.Host, "127.0.0.1:80", "b0"},
		{l.Host, "127.1.2.3:80", "b0"},
		{l.Host, "192.0.2.11:80", "b1"},
		{l.Host, "192.0.2.12:80", "host"},
		{l.Host, "[fd99::1]:80", "b0"},
		{l.Host, "[2001:db8::12]:80", "host"},
		{l.Host, "[::1]:80", "host"},
		{l.Host, netip.AddrPortFrom(b0.Addr4, 80).String(), "direct"},
		{l.Host, netip.AddrPortFrom(b0.Addr6, 80).String(), "direct"},
		{l.net.Backends[1].NS, "10.98.0.1:80", "b0"},
		{l.net.Backends[1].NS, "[fd98::1]:80", "b0"},
		{l.net.Backends[1].NS, netip.AddrPortFrom(b0.Addr4, 80).String(), "direct"},
	} {
		for _, network := range []string{"tcp", "udp"} {
			if got := ask(t, c.from, network, c.addr); got != c.want {
				t.Errorf("%s %s from %s: %s answered, want %s", network, c.addr, c.from.Name, got, c.want)
			}
		}
	}
}

// TestWildBalance: it has turns of its own at all its addresses together, which
// a service at one address in the same class does not disturb.
func TestWildBalance(t *testing.T) {
	t.Parallel()
	l := newLab(t, 3)
	masked := l.to6(0, 1, 2)
	masked.Masquerade = true
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("0.0.0.0:80"): l.to4(0, 1, 2), tcp("192.0.2.10:80"): l.to4(2, 1, 0),
		tcp("[::]:80"): masked, tcp("[2001:db8::10]:80"): l.to6(2, 1, 0),
	})
	for i := range 9 {
		for addr, want := range map[string]int{
			[]string{"192.0.2.11:80", "10.99.0.1:80"}[i%2]: i % 3, "192.0.2.10:80": 2 - i%3,
			"[fd99::1]:80": i % 3, "[2001:db8::10]:80": 2 - i%3,
		} {
			got := dial(t, l.Client, "tcp", addr).answer
			if got.name != fmt.Sprintf("b%d", want) {
				t.Errorf("%s, flow %d: %s answered, want b%d", addr, i, got.name, want)
			}
			seen := l.ClientAddr6
			if addr == "[fd99::1]:80" {
				seen = l.net.Addr6
			}
			if got.from.Addr().Is6() && got.from.Addr() != seen {
				t.Errorf("%s: the backend saw %s, want %s", addr, got.from, seen)
			}
		}
	}
	hash := l.to4(0, 1, 2)
	hash.Balance = nft.SourceHash
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("0.0.0.0:80"): hash})
	one := ask(t, l.Client, "tcp", "192.0.2.11:80")
	for range 5 {
		if got := ask(t, l.Client, "tcp", "10.99.0.1:80"); got != one {
			t.Errorf("%s answered, want %s", got, one)
		}
	}
}

// TestWildCold: timestamps go from what a cold one is sent, and from nothing
// that is sent to others on the same port.
func TestWildCold(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	serve(t, l.net.Backends[0].NS, "[::]:80", "direct")
	b := l.net.Backends[0]
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("0.0.0.0:80"): {}, tcp("192.0.2.11:80"): l.to4(0), tcp("[::]:80"): {}, tcp("[fd99::1]:80"): l.to6(0),
	})
	ln, err := l.Host.Listen("tcp", "[::]:80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for addr, held := range map[string]bool{
		"192.0.2.10:80": true, "[2001:db8::10]:80": true, "10.99.0.1:80": true,
		"192.0.2.11:80": false, "[fd99::1]:80": false,
		netip.AddrPortFrom(b.Addr4, 80).String(): false,
		netip.AddrPortFrom(b.Addr6, 80).String(): false,
	} {
		if !held {
			if !timestamps(t, dial(t, l.Client, "tcp", addr).Conn) {
				t.Errorf("%s: no timestamps", addr)
			}
			continue
		}
		c, err := l.Client.Dial(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = ln.(*net.TCPListener).SetDeadline(time.Now().Add(patience))
		s, err := ln.Accept()
		if err != nil {
			t.Fatalf("%s: %v", addr, err)
		}
		defer s.Close()
		if timestamps(t, s) {
			t.Errorf("%s: timestamps on a connection to a cold service", addr)
		}
	}
}
