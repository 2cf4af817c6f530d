package nft_test

import (
	"errors"
	"net/netip"
	"testing"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

// TestSources: a backend sees the client of a connection that the host makes,
// and its answers reach the host's socket.
func TestSources(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	b := l.net.Backends[0]
	protos := map[string]uint8{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}
	port := uint16(40_000)
	for network, proto := range protos {
		for _, c := range []struct{ backend, client, host, any netip.Addr }{
			{b.Addr4, l.ClientAddr4, l.net.Addr4, netip.IPv4Unspecified()},
			{b.Addr6, l.ClientAddr6, l.net.Addr6, netip.IPv6Unspecified()},
		} {
			port += 10
			to := netip.AddrPortFrom(c.backend, 8080)
			s := nft.Source{Proto: proto, Local: port, Backend: to, Client: netip.AddrPortFrom(c.client, 50_000)}
			other := s
			other.Client = netip.AddrPortFrom(c.client, 50_001)
			// The second takes the first's place.
			for _, list := range [][]nft.Source{{other, s}, {other}, {s}} {
				if err := l.table.AddSources(list); err != nil {
					t.Fatal(err)
				}
			}
			// Somebody else's flow that looks alike but is no flow of the host.
			if got := dialFrom(t, l.Client, netip.AddrPortFrom(c.any, port), network, to.String()).answer; got.from != netip.AddrPortFrom(c.client, port) {
				t.Errorf("%s %s: a forwarded flow became %s", network, to, got.from)
			}
			conn := dialFrom(t, l.Host, netip.AddrPortFrom(c.any, port), network, to.String())
			if conn.answer != (answer{"b0", s.Client}) {
				t.Errorf("%s %s: %v, want b0 to see %s", network, to, conn.answer, s.Client)
			}
			if got := dialFrom(t, l.Host, netip.AddrPortFrom(c.any, port+1), network, to.String()).answer; got.from != netip.AddrPortFrom(c.host, port+1) {
				t.Errorf("%s %s: from another port the backend saw %s", network, to, got.from)
			}
			for range 2 {
				if err := l.table.RemoveSources([]nft.Source{s, other}); err != nil {
					t.Fatal(err)
				}
			}
			if network == "tcp" {
				if err := conn.echo("still here"); err != nil {
					t.Errorf("%s: after its source was removed: %v", to, err)
				}
			}
			s.Local, s.Client = port+2, netip.AddrPortFrom(c.client, 50_002)
			if err := errors.Join(l.table.AddSources([]nft.Source{s}), l.table.RemoveSources([]nft.Source{s})); err != nil {
				t.Fatal(err)
			}
			if got := dialFrom(t, l.Host, netip.AddrPortFrom(c.any, port+2), network, to.String()).answer; got.from != netip.AddrPortFrom(c.host, port+2) {
				t.Errorf("%s %s: after its source was removed the backend saw %s", network, to, got.from)
			}
		}
	}
	bad := nft.Source{Proto: unix.IPPROTO_TCP, Local: 1, Backend: netip.MustParseAddrPort("10.0.0.1:1"), Client: netip.MustParseAddrPort("[fd00::1]:1")}
	if err := l.table.AddSources([]nft.Source{bad}); !errors.Is(err, nft.ErrInvalid) {
		t.Errorf("two families: %v", err)
	}
}

func dialFrom(t testing.TB, ns *testenv.NS, local netip.AddrPort, network, addr string) *conn {
	t.Helper()
	c, err := tryDialFrom(ns, local, network, addr)
	if err != nil {
		t.Fatalf("dial %s from %s: %v", addr, local, err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}
