package testenv

import (
	"context"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseCTFlow(t *testing.T) {
	t.Parallel()
	ap := netip.MustParseAddrPort
	for _, tt := range []struct {
		line string
		want CTFlow
		dnat bool
	}{
		{
			line: "ipv4     2 tcp      6 431999 ESTABLISHED src=10.99.0.2 dst=192.0.2.10 sport=4000 dport=80 src=10.98.0.11 dst=10.99.0.2 sport=8080 dport=4000 [ASSURED] mark=1358954496 use=1",
			want: CTFlow{Proto: 6, Timeout: 431999, State: "ESTABLISHED", Mark: 0x51000000, Flags: []string{"ASSURED"},
				Orig:  CTTuple{ap("10.99.0.2:4000"), ap("192.0.2.10:80")},
				Reply: CTTuple{ap("10.98.0.11:8080"), ap("10.99.0.2:4000")}},
			dnat: true,
		},
		{
			line: "ipv6     10 udp      17 29 src=fd99::2 dst=2001:db8::10 sport=5 dport=53 packets=1 bytes=60 [UNREPLIED] src=2001:db8::10 dst=fd99::2 sport=53 dport=5 packets=0 bytes=0 mark=0 use=2",
			want: CTFlow{Proto: 17, Timeout: 29, Flags: []string{"UNREPLIED"},
				Orig:  CTTuple{ap("[fd99::2]:5"), ap("[2001:db8::10]:53")},
				Reply: CTTuple{ap("[2001:db8::10]:53"), ap("[fd99::2]:5")}},
		},
		{
			line: "ipv4     2 icmp     1 30 src=10.0.0.1 dst=10.0.0.2 type=8 code=0 id=7 src=10.0.0.2 dst=10.0.0.1 type=0 code=0 id=7 mark=0 use=1",
			want: CTFlow{Proto: 1, Timeout: 30,
				Orig:  CTTuple{ap("10.0.0.1:0"), ap("10.0.0.2:0")},
				Reply: CTTuple{ap("10.0.0.2:0"), ap("10.0.0.1:0")}},
		},
		{ // an offloaded flow has neither timeout nor state
			line: "ipv4     2 tcp      6 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 src=10.0.0.2 dst=10.0.0.1 sport=2 dport=1 [OFFLOAD] mark=0 use=2",
			want: CTFlow{Proto: 6, Flags: []string{"OFFLOAD"},
				Orig:  CTTuple{ap("10.0.0.1:1"), ap("10.0.0.2:2")},
				Reply: CTTuple{ap("10.0.0.2:2"), ap("10.0.0.1:1")}},
		},
	} {
		got, err := parseCTFlow(tt.line)
		if err != nil {
			t.Error(err)
			continue
		}
		if got.Proto != tt.want.Proto || got.Timeout != tt.want.Timeout || got.State != tt.want.State || got.Mark != tt.want.Mark ||
			got.Orig != tt.want.Orig || got.Reply != tt.want.Reply || strings.Join(got.Flags, " ") != strings.Join(tt.want.Flags, " ") || got.DNAT() != tt.dnat {
			t.Errorf("%s\n got %+v\nwant %+v", tt.line, got, tt.want)
		}
	}
	for _, line := range []string{"", "ipv4 2 tcp six 1 src=1.1.1.1", "ipv4 2 tcp 6 1 src=1.1.1.1 dst=1.1.1.2 sport=1 dport=2",
		"ipv4 2 tcp 6 1 src=1.1.1 dst=1.1.1.2 src=1.1.1.2 dst=1.1.1.1"} {
		if f, err := parseCTFlow(line); err == nil {
			t.Errorf("%q: got %+v", line, f)
		}
	}
}

func FuzzParseCTFlow(f *testing.F) {
	f.Add("ipv4 2 tcp 6 431999 ESTABLISHED src=1.1.1.1 dst=1.1.1.2 sport=1 dport=2 src=1.1.1.2 dst=1.1.1.1 sport=2 dport=1 [ASSURED] mark=0 use=1")
	f.Fuzz(func(t *testing.T, line string) { _, _ = parseCTFlow(line) })
}

// A rule made by nft, a flow made by sockets: every oracle sees its part.
func TestOracles(t *testing.T) {
	t.Parallel()
	l := NewLab(t)
	bn := NewBackendNet(t, l.Host, 1)
	be := bn.Backends[0]
	s := StartServer(t, be.NS, "RAW_ECHO_PORT=7")
	for _, vip := range []string{"192.0.2.10/32", "2001:db8::10/128"} {
		l.Host.AddAddr(t, vip, "")
	}
	l.Host.RunInput(t, `
table inet oracle {
	chain prerouting {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr 192.0.2.10 tcp dport 80 ct mark set 0x51000000 dnat ip to 10.98.0.11:7
		ip6 daddr 2001:db8::10 tcp dport 80 ct mark set 0x51000000 dnat ip6 to [fd98::11]:7
	}
}`, "nft", "-f", "-")
	if got := Ruleset(t, l.Host); !strings.Contains(got, "table inet oracle") || !strings.Contains(got, "10.98.0.11:7") {
		t.Errorf("ruleset:\n%s", got)
	}

	for _, tt := range []struct{ vip, backend string }{
		{"192.0.2.10:80", "10.98.0.11:7"},
		{"[2001:db8::10]:80", "[fd98::11]:7"},
	} {
		c := dial(t, l.Client, tt.vip)
		if _, err := io.WriteString(c, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		local := netip.MustParseAddrPort(c.LocalAddr().String())
		want := CTFlow{
			Orig:  CTTuple{local, netip.MustParseAddrPort(tt.vip)},
			Reply: CTTuple{netip.MustParseAddrPort(tt.backend), local},
		}
		found := 0
		for _, f := range Conntrack(t, l.Host) {
			if f.Orig == want.Orig && f.Reply == want.Reply && f.Mark == 0x51000000 && f.State == "ESTABLISHED" && f.Has("ASSURED") {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s: %d entries as wanted in %v", tt.vip, found, Conntrack(t, l.Host))
		}
		found = 0
		for _, k := range Sockets(t, be.NS, s.PID()) {
			if k.Local == want.Reply.Src && k.Remote == local && k.State == "ESTAB" {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%s: %d sockets as wanted in %v", tt.vip, found, Sockets(t, be.NS, s.PID()))
		}
	}
	if got := Sockets(t, l.Host, s.PID()); len(got) != 0 {
		t.Errorf("sockets in another namespace: %v", got)
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	err := Program("late", io.Discard, func(t TB) {
		n := 0
		Eventually(t, time.Minute, func() (bool, string) { n++; return n == 3, "counting" })
		Eventually(t, time.Millisecond, func() (bool, string) { return false, "never so" })
		t.Errorf("went on")
	})
	if err == nil || !strings.Contains(err.Error(), "never so") || strings.Contains(err.Error(), "went on") {
		t.Errorf("error = %v", err)
	}
}

func TestDialFrom(t *testing.T) {
	t.Parallel()
	l := NewLab(t)
	l.Client.AddAddr(t, "10.99.0.77/24", "eth0")
	s := StartServer(t, l.Host)
	if got := len(Sockets(t, l.Host, s.PID())); got != 1 {
		t.Errorf("sockets = %d, want the listener", got)
	}
	local := netip.MustParseAddrPort("10.99.0.77:5555")
	c, err := l.Client.DialFrom(t.Context(), local, "tcp", "10.99.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := c.LocalAddr().String(); got != local.String() {
		t.Errorf("local = %s", got)
	}
	resp, err := l.Client.HTTPClient(HTTPOptions{Local: local.Addr()}).Get("http://10.99.0.1:8080/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !strings.Contains(string(b), "10.99.0.77:") {
		t.Errorf("got %s, %v", b, err)
	}
	if _, err := l.Client.Dial(t.Context(), "tcp", "localhost:80"); err == nil {
		t.Error("dialled a name")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Client.Dial(ctx, "tcp", "10.99.0.1:8080"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled dial: %v", err)
	}
}
