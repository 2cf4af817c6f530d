package nft_test

import (
	"slices"
	"strings"
	"testing"

	"sluice/nft"
	"sluice/testenv"
)

// TestOthers: whatever drops or rejects in a chain of others, or in one that it
// leads to, is found, and what is about nothing of ours is not.
func TestOthers(t *testing.T) {
	t.Parallel()
	l := testenv.NewLab(t)
	others := func() (list []nft.Foreign) {
		t.Helper()
		if err := l.Host.Do(func() (err error) {
			list, err = nft.Others()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return list
	}
	for _, c := range []struct{ rules, ends string }{
		{"chain c { type filter hook input priority 0; ct state established accept; counter drop; }", "c"},
		{"chain c { type filter hook forward priority 0; tcp dport 22 accept; reject with icmpx admin-prohibited; }", "c"},
		{"chain x { drop; }; chain y { goto x; }; chain c { type filter hook prerouting priority -300; iif lo accept; jump y; }", "x"},
		{"chain x { reject; }; chain c { type filter hook input priority 0; tcp dport vmap { 1 : accept, 2 : jump x }; }", "x"},
		{"map m { type inet_service : verdict; elements = { 80 : drop }; }; chain c { type filter hook input priority 0; tcp dport vmap @m; }", "c"},
		{"chain x { counter; }; chain c { type filter hook input priority 0; jump x; ct state invalid drop; accept; }", ""},
		{"chain x { drop; }; chain c { type filter hook input priority 0; policy drop; accept; }", ""},
		{"chain c { type filter hook postrouting priority 0; drop; }", "none"},
	} {
		l.Host.RunInput(t, "table inet wall {\n"+strings.ReplaceAll(c.rules, "; ", "\n")+"\n}", "nft", "-f", "-")
		list := others()
		switch i := slices.IndexFunc(list, func(f nft.Foreign) bool { return f.Table == "wall" && f.Chain == "c" }); {
		case c.ends == "none":
			if i >= 0 {
				t.Errorf("%s: %+v", c.rules, list[i])
			}
		case i < 0 || list[i].Ends != c.ends:
			t.Errorf("%s: %+v, want %q", c.rules, list, c.ends)
		}
		l.Host.Run(t, "nft", "delete", "table", "inet", "wall")
	}
	for _, args := range [][]string{
		{"-N", "NETAVARK_FORWARD"}, {"-A", "NETAVARK_FORWARD", "-j", "DROP"}, {"-A", "FORWARD", "-j", "NETAVARK_FORWARD"},
		{"-N", "WALL"}, {"-A", "INPUT", "-j", "WALL"}, {"-A", "WALL", "-p", "tcp", "--dport", "1", "-j", "REJECT"},
	} {
		l.Host.Run(t, "iptables-nft", args...)
	}
	want := map[string]string{"FORWARD": "", "INPUT": "WALL"}
	for _, f := range others() {
		if ends, ok := want[f.Chain]; ok && f.Ends != ends {
			t.Errorf("%+v, want %q", f, ends)
		}
	}
}
