package nft_test

import (
	"net/netip"
	"testing"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

func open(t testing.TB, ns *testenv.NS) *nft.Table {
	t.Helper()
	f, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	tab, err := nft.Open(nft.Options{NetNS: int(f.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tab.Close(); err != nil {
			t.Error(err)
		}
	})
	return tab
}

func tcp(s string) nft.Endpoint {
	a := netip.MustParseAddrPort(s)
	return nft.Endpoint{Addr: a.Addr(), Proto: unix.IPPROTO_TCP, Port: a.Port()}
}

func to(addrs ...string) *nft.Service {
	s := new(nft.Service)
	for _, a := range addrs {
		s.Slots = append(s.Slots, netip.MustParseAddrPort(a))
	}
	return s
}

func TestListing(t *testing.T) {
	ns := testenv.NewNS(t, "listing")
	tab := open(t, ns)
	err := tab.Apply(map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"):     to("10.98.0.11:8080", "10.98.0.12:8080"),
		tcp("192.0.2.11:80"):     to("10.98.0.11:8080"),
		tcp("192.0.2.12:80"):     to(),
		tcp("[2001:db8::10]:80"): to("[fd98::11]:8080", "[fd98::12]:8080", "[fd98::13]:8080"),
		{Addr: netip.MustParseAddr("192.0.2.10"), Proto: unix.IPPROTO_UDP, Port: 53}: to("10.98.0.11:53"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Log(ns.Run(t, "nft", "list", "ruleset"))
}
