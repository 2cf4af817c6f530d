package nft

import (
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzNames: what is read from comments and chain names, which anyone with nft
// may have written, is written back as it was read, or refused.
func FuzzNames(f *testing.F) {
	for _, s := range []string{
		"", "random", "masquerade", "least-connections masquerade affinity=1m0s", "affinity=-1s", "affinity=1h",
		"rr-2-15", "rr-3-0", "random-16", "source-1024", "flow-2048", "rr-02-1", "rr-1-0",
		"client-rate-100", "client-flows-8", "keep-60", "keep-any-86400", "max-flows=10",
	} {
		f.Add(s)
	}
	f.Add(traits{limits: Limits{MaxFlows: 1, MaxFlowsPerClient: 2, NewPerSecond: 3, NewPerSecondPerClient: 4}}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if tr, err := parseTraits(s); err == nil && tr.String() != s {
			t.Errorf("comment %q became %q", s, tr)
		}
		if l, ok := parseLane(s); ok && (l.String() != s || l.mod < 2) {
			t.Errorf("lane %q became %q", s, l)
		}
		for _, k := range []kind{clientRates, clientFlows} {
			if n, ok := parseClientChain(k, s); ok && clientChain(k, n) != s {
				t.Errorf("client chain %q became %q", s, clientChain(k, n))
			}
		}
		for _, wild := range []bool{false, true} {
			if d, ok := parseKeep(s, wild); ok && keepChain(d, wild) != s {
				t.Errorf("chain %q became %q", s, keepChain(d, wild))
			}
		}
	})
}

// FuzzKey: a key or a value of any bytes is refused, or becomes the same bytes
// again as far as they mean something.
func FuzzKey(f *testing.F) {
	f.Add([]byte("\xc0\x00\x02\x0a\x06\x00\x00\x00\x00\x50\x00\x00\x01\x00\x00\x00"))
	f.Add([]byte("\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x11\x00\x00\x00\x00\x35\x00\x00"))
	f.Add([]byte("\x0a\x00\x00\x01\x1f\x90"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, fam := range families() {
			if e, _, err := parseKey(b, fam); err == nil {
				if again, _, err := parseKey(endpointKey(e), fam); err != nil || again != e {
					t.Errorf("%x: %v became %v, %v", b, e, again, err)
				}
				if e.Addr.Is4() != (fam.proto == unix.NFPROTO_IPV4) {
					t.Errorf("%x: %v of the other family", b, e)
				}
			}
			if a, err := parseAddrPort(b, fam); err == nil {
				if again, err := parseAddrPort(addrPort(a), fam); err != nil || again != a {
					t.Errorf("%x: %v became %v, %v", b, a, again, err)
				}
			}
		}
	})
}
