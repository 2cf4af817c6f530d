package nft_test

import (
	"context"
	"errors"
	"flag"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

func equal(a, b nft.Service) bool {
	same := slices.Equal(a.Slots, b.Slots)
	a.Slots, b.Slots = nil, nil
	return same && reflect.DeepEqual(a, b)
}

func same(t *testing.T, tab *nft.Table, want map[nft.Endpoint]*nft.Service) {
	t.Helper()
	w := make(map[nft.Endpoint]nft.Service)
	for at, s := range want {
		if s != nil {
			w[at] = *s
		}
	}
	if got := tab.Services(); !maps.EqualFunc(got, w, equal) {
		t.Errorf("services\n%v, want\n%v", got, w)
	}
}

// foreign is a connection of somebody else.
func foreign(t *testing.T, ns *testenv.NS) *nftables.Conn {
	t.Helper()
	var c *nftables.Conn
	err := ns.Do(func() (err error) {
		c, err = nftables.New(nftables.AsLasting())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.CloseLasting() })
	return c
}

func generation(t *testing.T, c *nftables.Conn) uint32 {
	t.Helper()
	g, err := c.GetGen()
	if err != nil {
		t.Fatal(err)
	}
	return g.ID
}

func some() map[nft.Endpoint]*nft.Service {
	far := to("10.98.0.11:8080", "10.98.0.13:8080")
	far.Balance, far.Masquerade, far.Affinity = nft.SourceHash, true, time.Hour
	far.Limits = nft.Limits{MaxFlows: 1000, NewPerSecondPerClient: 5}
	far6 := to("[fd98::11]:8080")
	far6.Balance, far6.Affinity = nft.FlowHash, time.Second
	return map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.13:80"):     far,
		tcp("0.0.0.0:81"):        to("10.98.0.11:8080", "10.98.0.12:8080"),
		udp("[::]:53"):           to(),
		tcp("[2001:db8::13]:80"): far6,
		tcp("192.0.2.10:80"):     to("10.98.0.11:8080", "10.98.0.12:8080"),
		tcp("192.0.2.11:80"):     to("10.98.0.11:8080"),
		tcp("192.0.2.12:80"):     to(),
		udp("192.0.2.10:53"):     to("10.98.0.11:53"),
		tcp("[2001:db8::10]:80"): to("[fd98::11]:8080", "[fd98::12]:8080", "[fd98::13]:8080"),
		udp("[2001:db8::11]:53"): to(),
	}
}

// TestAdopt: a later process changes nothing and goes on from there.
func TestAdopt(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "adopt")
	tab := open(t, ns)
	apply(t, tab, some())
	// Leave a backend that lingers.
	apply(t, tab, map[nft.Endpoint]*nft.Service{tcp("192.0.2.11:80"): to("10.98.0.99:8080")})
	apply(t, tab, map[nft.Endpoint]*nft.Service{tcp("192.0.2.11:80"): to("10.98.0.11:8080")})
	if err := tab.Close(); err != nil {
		t.Fatal(err)
	}
	other := foreign(t, ns)
	before, rules := generation(t, other), ns.Run(t, "nft", "-a", "list", "ruleset")

	tab = open(t, ns)
	same(t, tab, some())
	if after := generation(t, other); after != before {
		t.Errorf("generation %d, was %d", after, before)
	}
	// Expiries count on.
	expiry := regexp.MustCompile(` expires \w+`)
	if now := ns.Run(t, "nft", "-a", "list", "ruleset"); expiry.ReplaceAllString(now, "") != expiry.ReplaceAllString(rules, "") {
		t.Error("the listing has changed")
	}
	if !strings.Contains(rules, "10.98.0.99 . tcp . 8080 timeout 1d") {
		t.Error("a backend let go does not linger")
	}
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
	apply(t, tab, some())
	if after := generation(t, other); after != before {
		t.Errorf("generation %d after applying what is there, was %d", after, before)
	}
	change := map[nft.Endpoint]*nft.Service{tcp("192.0.2.12:80"): to("10.98.0.99:8080"), tcp("192.0.2.10:80"): nil}
	apply(t, tab, change)
	want := some()
	maps.Copy(want, change)
	same(t, tab, want)
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore after changes: %v, %v", changed, err)
	}
}

// TestReplace: a table that is not ours to the letter is built anew, and the
// flows to its services do not notice.
func TestReplace(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]string{
		"no mark":        "",
		"foreign rule":   `insert rule inet sluice filter-forward counter`,
		"rule missing":   `flush chain inet sluice raw-output`,
		"chain added":    `add chain inet sluice mine`,
		"set added":      `add set inet sluice mine { type mark; }`,
		"dormant":        `add table inet sluice { flags dormant; }`,
		"foreign value":  `add element inet sluice spread4 { 192.0.2.77 . tcp . 80 : drop }`,
		"policy altered": `add chain inet sluice filter-forward { policy drop; }`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, 2)
			serve(t, l.Host, "192.0.2.10:80", "host")
			want := map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): l.to4(0, 1), tcp("192.0.2.11:80"): {}}
			apply(t, l.table, want)
			clean := l.Host.Run(t, "nft", "list", "table", "inet", "sluice")
			old := dial(t, l.Client, "tcp", "192.0.2.10:80")
			if err := l.table.Close(); err != nil {
				t.Fatal(err)
			}
			if spoil == "" {
				mark := regexp.MustCompile(`layout-[0-9a-f]+-[0-9a-f]+`).FindString(clean)
				spoil = "delete chain inet sluice " + mark
			}
			l.Host.Run(t, "nft", spoil)
			if name == "dormant" || name == "policy altered" {
				// Flows are lost already; only the outcome counts.
				if tab := open(t, l.Host); !maps.EqualFunc(tab.Services(), map[nft.Endpoint]nft.Service{
					tcp("192.0.2.10:80"): *l.to4(0, 1), tcp("192.0.2.11:80"): {}}, equal) {
					t.Errorf("services %v", tab.Services())
				}
			} else {
				var wg sync.WaitGroup
				var stop atomic.Bool
				wg.Go(func() {
					for !stop.Load() {
						c, err := tryDial(l.Client, "tcp", "192.0.2.10:80")
						if err != nil {
							t.Error(err)
							return
						}
						if c.answer.name == "host" {
							t.Error("a flow fell through to the host")
						}
						_ = c.Close()
					}
				})
				tab := open(t, l.Host)
				stop.Store(true)
				wg.Wait()
				same(t, tab, want)
			}
			if now := l.Host.Run(t, "nft", "list", "table", "inet", "sluice"); now != clean {
				t.Errorf("listing\n%s\nwas\n%s", head(now), head(clean))
			}
			if err := old.echo("still here"); err != nil {
				t.Errorf("an established flow: %v", err)
			}
		})
	}
}

// earlier is what a process of the layout before plain services came first would
// have left, as far as it concerns IPv4 and BACKEND0, BACKEND1.
const earlier = `table inet sluice {
	set known4 {
		type ipv4_addr . inet_proto . inet_service
		elements = { 192.0.2.10 . tcp . 80, 192.0.2.11 . tcp . 80 comment "affinity=5m0s flows=300",
			192.0.2.12 . tcp . 80, 0.0.0.0 . tcp . 81, 192.0.2.13 . udp . 53 }
	}
	set cold4 { type ipv4_addr . inet_proto . inet_service; elements = { 192.0.2.13 . udp . 53 }; }
	set backends4 {
		type ipv4_addr . inet_proto . inet_service; flags timeout
		elements = { BACKEND0 . tcp . 8080, BACKEND1 . tcp . 8080, 10.98.0.99 . tcp . 8080 timeout 1d }
	}
	set limited4 { type ipv4_addr . inet_proto . inet_service; elements = { 192.0.2.11 . tcp . 80 }; }
	set sticky4 { type ipv4_addr . inet_proto . inet_service; elements = { 192.0.2.11 . tcp . 80 }; }
	map first4 {
		type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
		elements = { 192.0.2.10 . tcp . 80 : BACKEND0 . 8080, 192.0.2.11 . tcp . 80 : BACKEND0 . 8080,
			192.0.2.12 . tcp . 80 : BACKEND1 . 8080, 0.0.0.0 . tcp . 81 : BACKEND1 . 8080 }
	}
	map slots4-2 {
		type ipv4_addr . inet_proto . inet_service . mark : ipv4_addr . inet_service
		elements = { 192.0.2.10 . tcp . 80 . 0 : BACKEND0 . 8080, 192.0.2.10 . tcp . 80 . 1 : BACKEND1 . 8080,
			192.0.2.11 . tcp . 80 . 0 : BACKEND0 . 8080, 192.0.2.11 . tcp . 80 . 1 : BACKEND1 . 8080,
			0.0.0.0 . tcp . 81 . 0 : BACKEND1 . 8080, 0.0.0.0 . tcp . 81 . 1 : BACKEND0 . 8080 }
	}
	# nft cannot write what a lane is, numgen being an integer and slots marks.
	chain rr-2-0 {
		meta nfproto ipv4 ct mark set ct mark & 0x51ffffff | 0x51000000 dnat ip to ip daddr . meta l4proto . th dport map @first4
		meta nfproto ipv4 ct mark set ct mark & 0x51ffffff | 0x51000000 dnat ip to ip daddr & 0.0.0.0 . meta l4proto . th dport map @first4
	}
	map spread4 {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 192.0.2.10 . tcp . 80 : jump rr-2-0, 192.0.2.11 . tcp . 80 : jump rr-2-0 }
	}
	map spread-any4 {
		type ipv4_addr . inet_proto . inet_service : verdict
		elements = { 0.0.0.0 . tcp . 81 : jump rr-2-0 }
	}
	chain local {
		ip daddr & 0.0.0.0 . meta l4proto . th dport vmap @spread-any4
		meta nfproto ipv4 ct mark set ct mark & 0x51ffffff | 0x51000000 dnat ip to ip daddr & 0.0.0.0 . meta l4proto . th dport map @first4
	}
	chain nat-prerouting {
		type nat hook prerouting priority -105; policy accept;
		ip daddr . meta l4proto . th dport vmap @spread4
		meta nfproto ipv4 ct mark set ct mark & 0x51ffffff | 0x51000000 dnat ip to ip daddr . meta l4proto . th dport map @first4
		ip daddr & 0.0.0.0 . meta l4proto . th dport @known4 fib daddr type local jump local
	}
	chain layout-0123456789abcdef-0123456789abcdef { }
}
`

// TestEarlierLayout: services are carried over from a table of another layout,
// and no flow to them is cut or goes astray meanwhile.
func TestEarlierLayout(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	if err := l.table.Close(); err != nil {
		t.Fatal(err)
	}
	b := l.net.Backends
	text := strings.NewReplacer("BACKEND0", b[0].Addr4.String(), "BACKEND1", b[1].Addr4.String()).Replace(earlier)
	l.Host.Run(t, "nft", "delete table inet sluice\n"+text)
	addrs := []string{"192.0.2.10:80", "192.0.2.11:80", "192.0.2.12:80", "192.0.2.15:81"}
	var old []*conn
	for _, addr := range addrs {
		serve(t, l.Host, addr, "host")
		old = append(old, dial(t, l.Client, "tcp", addr))
	}
	var wg sync.WaitGroup
	var stop atomic.Bool
	for _, addr := range addrs {
		wg.Go(func() {
			for !stop.Load() {
				c, err := tryDial(l.Client, "tcp", addr)
				if err != nil {
					t.Errorf("%s: %v", addr, err)
					return
				}
				if c.answer.name == "host" {
					t.Errorf("%s: a flow fell through to the host", addr)
				}
				_ = c.Close()
			}
		})
	}
	tab := open(t, l.Host)
	stop.Store(true)
	wg.Wait()
	ruled := l.to4(0, 1)
	ruled.Affinity, ruled.Limits = 5*time.Minute, nft.Limits{MaxFlows: 300}
	same(t, tab, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): l.to4(0, 1), tcp("192.0.2.11:80"): ruled, tcp("192.0.2.12:80"): l.to4(1),
		tcp("0.0.0.0:81"): l.to4(1, 0), udp("192.0.2.13:53"): {},
	})
	for i, c := range old {
		if err := c.echo("still here"); err != nil {
			t.Errorf("%s: an established flow: %v", addrs[i], err)
		}
		if name := ask(t, l.Client, "tcp", addrs[i]); name == "host" {
			t.Errorf("%s: the host answers", addrs[i])
		}
	}
	if !strings.Contains(l.Host.Run(t, "nft", "list", "set", "inet", "sluice", "backends4"), "10.98.0.99 . tcp . 8080 timeout 1d") {
		t.Error("a backend let go does not linger")
	}
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
}

func head(s string) string {
	if i := strings.Index(s, "chain rr-"); i > 0 {
		return s[:i]
	}
	return s
}

// TestWatch: what others do to the table is noticed and mended; what we do is not.
func TestWatch(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "watch")
	tab := open(t, ns)
	apply(t, tab, some())
	ctx, cancel := context.WithCancel(context.Background())
	news, done := make(chan bool, 100), make(chan error, 1)
	watch := func() {
		done <- tab.Watch(ctx, func() {
			changed, err := tab.Restore()
			if err != nil {
				t.Error(err)
			}
			news <- changed
		})
	}
	next := func() bool {
		t.Helper()
		select {
		case c := <-news:
			return c
		case <-time.After(patience):
			t.Fatal("nothing noticed")
			return false
		}
	}
	go watch()
	if next() {
		t.Error("something to mend at the start")
	}
	clean := ns.Run(t, "nft", "list", "table", "inet", "sluice")
	for _, cmd := range []string{
		"flush ruleset",
		"delete table inet sluice",
		"delete element inet sluice known4 { 192.0.2.10 . tcp . 80 }",
		"add element inet sluice cold4 { 192.0.2.10 . tcp . 80 }",
		"flush map inet sluice slots4-2",
		"flush chain inet sluice nat-prerouting",
		"delete element inet sluice backends6 { fd98::11 . tcp . 8080 }",
		"add element inet sluice slots6-2 { 2001:db8::77 . tcp . 80 . 1 : fd98::99 . 80 }",
	} {
		ns.Run(t, "nft", cmd)
		if !next() {
			t.Errorf("%s: nothing mended", cmd)
		}
		if now := ns.Run(t, "nft", "list", "table", "inet", "sluice"); sorted(now) != sorted(clean) {
			t.Errorf("after %s\n%s", cmd, head(now))
		}
	}
	// Our own transactions and other tables are no news. The last one is, and
	// must be the next.
	apply(t, tab, map[nft.Endpoint]*nft.Service{tcp("192.0.2.12:80"): to("10.98.0.11:80")})
	ns.Run(t, "nft", "add table inet other")
	ns.Run(t, "nft", "add table ip sluice")
	ns.Run(t, "nft", "add element inet sluice cold4 { 192.0.2.88 . tcp . 80 }")
	if !next() {
		t.Error("woken by our own transaction or another table")
	}
	same(t, tab, func() map[nft.Endpoint]*nft.Service {
		m := some()
		m[tcp("192.0.2.12:80")] = to("10.98.0.11:80")
		return m
	}())
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	// It can be watched again.
	ctx, cancel = context.WithCancel(context.Background())
	go watch()
	next()
	ns.Run(t, "nft", "flush ruleset")
	if !next() {
		t.Error("nothing mended by the second watch")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// sorted undoes the order of elements, which is that of a seeded hash.
func sorted(s string) string {
	var words []string
	for f := range strings.FieldsFuncSeq(s, func(r rune) bool { return strings.ContainsRune(",{}\n", r) }) {
		if f = strings.TrimSpace(f); f != "" {
			words = append(words, strings.TrimPrefix(f, "elements = "))
		}
	}
	slices.Sort(words)
	return strings.Join(words, "\n")
}

// TestApplyAfterTampering: a change that the kernel refuses since the table is
// not as we left it is made from what is really there.
func TestApplyAfterTampering(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "tamper")
	tab := open(t, ns)
	for i, cmd := range []string{
		"delete element inet sluice rest4 { 192.0.2.10 . tcp . 80 }",
		"add element inet sluice cold4 { 192.0.2.10 . tcp . 80 }",
		"delete table inet sluice",
		"flush ruleset",
	} {
		apply(t, tab, some())
		ns.Run(t, "nft", cmd)
		change := map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): to()}
		apply(t, tab, change)
		want := some()
		maps.Copy(want, change)
		same(t, tab, want)
		// Nothing is left to mend, but it tells, once, that the table was gone.
		for _, want := range []bool{i >= 2, false} {
			if changed, err := tab.Restore(); err != nil || changed != want {
				t.Errorf("after %s: restore: %v, %v", cmd, changed, err)
			}
		}
	}
}

// TestApplyRefused: if nothing helps, the error says so and Services tells the
// truth.
func TestApplyRefused(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "refused")
	tab := open(t, ns)
	apply(t, tab, some())
	ns.Run(t, "nft", "delete table inet sluice")
	other := foreign(t, ns)
	other.AddTable(&nftables.Table{Name: nft.Name, Family: nftables.TableFamilyINet, Flags: nftables.TableFlagOwner})
	if err := other.Flush(); err != nil {
		t.Fatal(err)
	}
	err := tab.Apply(map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): to()})
	if !errors.Is(err, unix.EPERM) {
		t.Fatalf("apply to a table that has another owner: %v", err)
	}
	same(t, tab, nil)
	if _, err := tab.Restore(); !errors.Is(err, unix.EPERM) {
		t.Errorf("restore: %v", err)
	}
	if err := tab.Apply(map[nft.Endpoint]*nft.Service{{}: to()}); !errors.Is(err, nft.ErrInvalid) {
		t.Errorf("apply of nonsense: %v", err)
	}
	// The table goes with its owner.
	if err := other.CloseLasting(); err != nil {
		t.Fatal(err)
	}
	if changed, err := tab.Restore(); err != nil || !changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
	same(t, tab, some())
}

func TestRemove(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "remove")
	remove := func() {
		t.Helper()
		f, err := ns.Open()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := nft.Remove(nft.Options{NetNS: int(f.Fd())}); err != nil {
			t.Fatal(err)
		}
	}
	remove()
	ns.Run(t, "nft", "add table inet other")
	apply(t, open(t, ns), some())
	remove()
	if got := strings.TrimSpace(testenv.Ruleset(t, ns)); got != "table inet other {\n}" {
		t.Errorf("left behind: %s", got)
	}
	remove()
}

// TestMany: several transactions' worth of elements.
func TestMany(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "many")
	tab := open(t, ns)
	all := many(5_000, 2)
	wide := new(nft.Service)
	for i := range 1024 {
		wide.Slots = append(wide.Slots, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}), 80))
	}
	for i := range 80 {
		all[numbered(i)] = wide
	}
	apply(t, tab, all)
	same(t, tab, all)
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
	none := make(map[nft.Endpoint]*nft.Service)
	for at := range all {
		none[at] = nil
	}
	apply(t, tab, none)
	same(t, tab, nil)
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
}

// TestListing holds the ruleset, as nft lists it, against a golden text. Of the
// lanes, all alike, it has two.
func TestListing(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "listing")
	tab := open(t, ns)
	apply(t, tab, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): to("10.98.0.11:8080"),
		tcp("[2001:db8::10]:80"): {Slots: to("[fd98::11]:8080", "[fd98::12]:8080").Slots, Balance: nft.FlowHash, Masquerade: true, Affinity: 5 * time.Minute,
			Limits: nft.Limits{MaxFlows: 300, MaxFlowsPerClient: 10, NewPerSecond: 50, NewPerSecondPerClient: 5}},
		tcp("[2001:db8::11]:80"): {},
		udp("192.0.2.11:53"):     {Screen: true, Allow: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}},
		tcp("[2001:db8::12]:80"): {
			Slots: to("[fd98::11]:8080").Slots, Screen: true, Patient: true,
			Allow: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/48"), netip.MustParsePrefix("2001:db8:2::/47")},
		},
	})
	err := tab.Freeze([]nft.Tuple{{
		Client:  netip.MustParseAddrPort("198.51.100.1:40000"),
		Service: netip.MustParseAddrPort("192.0.2.10:80"),
		Backend: netip.MustParseAddrPort("10.98.0.11:8080"),
	}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	got := testenv.Ruleset(t, ns)
	if n, want := strings.Count(got, "\n\tchain rr-"), 3*16+4*8+21*4; n != want {
		t.Errorf("%d lanes, want %d", n, want)
	}
	for _, by := range []string{"random", "source", "flow"} {
		if n := strings.Count(got, "\n\tchain "+by+"-"); n != 28 {
			t.Errorf("%d chains %s, want 28", n, by)
		}
	}
	for _, cut := range []string{
		`\n\tchain (rr-(\d+-[1-9]\d*|([3-9]|\d\d+)-0)|(random|source|flow)-([3-9]|\d\d+)) \{[^}]*\}\n`, // the other lanes
		`\n\tmap slots[46]-([3-9]|\d\d+) \{[^}]*\}\n`,                                                  // and their maps
		`\n\tchain keep-(any-)?(\d\d?|[1269]\d\d|\d{4,}) \{\n[^}]*\}\n[^}]*\}\n\t\}\n`,                 // other times
		`\n\tchain client-(rate|flows)-([2-9]|\d\d+) \{\n[^}]*\}[^}]*\}[^}]*\}\n`,                      // other limits
		` expires \w+`, // the clock
	} {
		got = regexp.MustCompile(cut).ReplaceAllString(got, "")
	}
	// The order of elements is that of a seeded hash.
	got = regexp.MustCompile(`elements = \{[^}]*\}`).ReplaceAllStringFunc(got, func(s string) string {
		list := strings.Split(strings.Trim(s[len("elements = "):], "{}"), ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		slices.Sort(list)
		return "elements = { " + strings.Join(list, ",\n\t\t\t     ") + " }"
	})
	got = regexp.MustCompile(`layout-[0-9a-f]{16}-[0-9a-f]{16}`).ReplaceAllString(got, "layout-DIGESTS")
	const golden = "testdata/ruleset.nft"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("listing differs from %s (rewrite it with -update)\n%s", golden, got)
	}
}

var update = flag.Bool("update", false, "rewrite the golden listing")
