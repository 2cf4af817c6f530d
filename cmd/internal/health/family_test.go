package health

import (
	"net"
	"net/netip"
	"testing"
)

// TestFamilies: backends of both families are tried, however the address is
// written.
func TestFamilies(t *testing.T) {
	t.Parallel()
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", listen)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		at := netip.MustParseAddrPort(l.Addr().String())
		for _, addr := range []netip.Addr{at.Addr(), netip.AddrFrom16(at.Addr().As16())} {
			start(t, check(TCP), Target{Addr: netip.AddrPortFrom(addr, at.Port())}).healthy(t)
		}
	}
}
