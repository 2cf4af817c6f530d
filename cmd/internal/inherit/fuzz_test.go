package inherit

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzName: names that an earlier run, or anyone else, has given are read or
// refused; those that are made are read as they were meant.
func FuzzName(f *testing.F) {
	f.Add("tcp/192.0.2.10/80", []byte{192, 0, 2, 10}, uint16(80))
	f.Add("held/2001-db8--10/80/2001-db8--2/46574", []byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01"), uint16(443))
	f.Add("admin", []byte{}, uint16(0))
	f.Add("udp/---/x", []byte{1}, uint16(1))
	f.Fuzz(func(t *testing.T, name string, ip []byte, port uint16) {
		if k, addr := parse(name); strings.Contains(string(k), "/") || addr.IsValid() && !addr.Addr().IsValid() {
			t.Fatalf("%q: kind %q, address %v", name, k, addr)
		}
		a, ok := netip.AddrFromSlice(ip)
		if !ok {
			return
		}
		want := netip.AddrPortFrom(a, port)
		made := Name(Held, want, want)
		if k, got := parse(made); k != Held || got != want || strings.Contains(made, ":") {
			t.Fatalf("%v became %q, then %v", want, made, got)
		}
	})
}
