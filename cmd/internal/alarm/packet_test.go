package alarm

import (
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Headers up to the ports and a little more, in hexadecimal.
const (
	v4    = "45000028 00004000 40060000 c0000201 0a620b0b"
	v6    = "60000000 00140640 20010db8000000000000000000000001 fd980000000000000000000000000011"
	ports = "c350 1f90 00000001"
)

func unhex(s ...string) []byte {
	b, err := hex.DecodeString(strings.ReplaceAll(strings.Join(s, ""), " ", ""))
	if err != nil {
		panic(err)
	}
	return b
}

// with sets one byte.
func with(b []byte, i int, v byte) []byte {
	b = slices.Clone(b)
	b[i] = v
	return b
}

func TestDestination(t *testing.T) {
	t.Parallel()
	to4, to6 := netip.MustParseAddrPort("10.98.11.11:8080"), netip.MustParseAddrPort("[fd98::11]:8080")
	next := func(next string, rest ...string) string { return next + "00000000000000" + strings.Join(rest, "") }
	for what, c := range map[string]struct {
		packet []byte
		to     netip.AddrPort
		proto  uint8
	}{
		"ipv4 tcp":               {unhex(v4, ports), to4, unix.IPPROTO_TCP},
		"ipv4 udp":               {with(unhex(v4, ports), 9, 17), to4, unix.IPPROTO_UDP},
		"ipv4 options":           {unhex("46", v4[2:], "01010100", ports), to4, unix.IPPROTO_TCP},
		"ipv4 only ports":        {unhex(v4, "c3501f90"), to4, unix.IPPROTO_TCP},
		"ipv4 first fragment":    {with(unhex(v4, ports), 6, 0x20), to4, unix.IPPROTO_TCP},
		"ipv4 later fragment":    {with(unhex(v4, ports), 7, 1), netip.AddrPort{}, 0},
		"ipv4 icmp":              {with(unhex(v4, ports), 9, 1), netip.AddrPort{}, 0},
		"ipv4 short ports":       {unhex(v4, "c3501f"), netip.AddrPort{}, 0},
		"ipv4 short header":      {unhex(v4)[:19], netip.AddrPort{}, 0},
		"ipv4 short options":     {unhex("4f", v4[2:], ports), netip.AddrPort{}, 0},
		"ipv4 bad length":        {unhex("44", v4[2:], ports), netip.AddrPort{}, 0},
		"ipv6 tcp":               {unhex(v6, ports), to6, unix.IPPROTO_TCP},
		"ipv6 udp":               {with(unhex(v6, ports), 6, 17), to6, unix.IPPROTO_UDP},
		"ipv6 hop-by-hop":        {with(unhex(v6, next("06", ports)), 6, 0), to6, unix.IPPROTO_TCP},
		"ipv6 three extensions":  {with(unhex(v6, next("2b", next("3c", "1101", strings.Repeat("00", 14), ports))), 6, 0), to6, unix.IPPROTO_UDP},
		"ipv6 first fragment":    {with(unhex(v6, "0600000100000001", ports), 6, 44), to6, unix.IPPROTO_TCP},
		"ipv6 later fragment":    {with(unhex(v6, "0600000900000001", ports), 6, 44), netip.AddrPort{}, 0},
		"ipv6 short extension":   {with(unhex(v6, "0602", ports), 6, 0), netip.AddrPort{}, 0},
		"ipv6 nothing follows":   {with(unhex(v6, ports), 6, 59), netip.AddrPort{}, 0},
		"ipv6 short header":      {unhex(v6)[:39], netip.AddrPort{}, 0},
		"ipv6 header only":       {with(unhex(v6), 6, 0), netip.AddrPort{}, 0},
		"nothing":                {nil, netip.AddrPort{}, 0},
		"another version of ip":  {unhex("55", v4[2:], ports), netip.AddrPort{}, 0},
		"an ethernet frame":      {unhex("ffffffffffff0200000000010800", v4, ports), netip.AddrPort{}, 0},
		"ipv6 extension endless": {with(unhex(v6, strings.Repeat("0000000000000000", 10)), 6, 0), netip.AddrPort{}, 0},
	} {
		to, proto, ok := destination(c.packet)
		if to != c.to || proto != c.proto || ok != c.to.IsValid() {
			t.Errorf("%s: %s, %d, %v, want %s, %d", what, to, proto, ok, c.to, c.proto)
		}
	}
}

func FuzzDestination(f *testing.F) {
	f.Add(unhex(v4, ports))
	f.Add(unhex(v6, ports))
	f.Add(with(unhex(v6, "0600000000000000", ports), 6, 0))
	f.Add(with(unhex(v6, "0600000100000001", ports), 6, 44))
	f.Fuzz(func(t *testing.T, b []byte) {
		to, proto, ok := destination(b)
		switch {
		case !ok && (to.IsValid() || proto != 0):
			t.Fatalf("%x: not ok, but %s, %d", b, to, proto)
		case !ok:
			return
		case proto != unix.IPPROTO_TCP && proto != unix.IPPROTO_UDP, to.Addr().Is4() != (b[0]>>4 == 4):
			t.Fatalf("%x: %s, %d", b, to, proto)
		}
		// What a longer copy would have told is the same.
		if again, _, _ := destination(append(slices.Clip(b), 0xff)); again != to {
			t.Fatalf("%x: %s, but %s of a longer copy", b, to, again)
		}
	})
}
