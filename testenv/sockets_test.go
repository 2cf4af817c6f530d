package testenv

import (
	"strings"
	"testing"
)

// FuzzParseSocket: a line of /proc/net/tcp is read or refused.
func FuzzParseSocket(f *testing.F) {
	f.Add("0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4242 1")
	f.Add("1: 0000000000000000FFFF00000100007F:0050 0:0 01 1:2 3 4 5 6 7")
	f.Add("a b c d e f g h i j")
	f.Fuzz(func(t *testing.T, line string) {
		words := strings.Fields(line)
		if len(words) < 10 {
			return
		}
		if s, err := parseSocket(words); err == nil && (!s.Local.IsValid() || !s.Remote.IsValid() || s.State == "") {
			t.Fatalf("%q: %+v", line, s)
		}
	})
}
