package resolve

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/miekg/dns"
)

func TestTargets(t *testing.T) {
	t.Parallel()
	addrs := map[string][]netip.Addr{}
	for host, list := range map[string][]string{
		"a.": {"10.0.0.1"}, "b.": {"10.0.0.2"}, "many.": {"10.0.0.3", "10.0.0.4", "fd00::3"}, "none.": nil,
	} {
		for _, s := range list {
			addrs[host] = append(addrs[host], netip.MustParseAddr(s))
		}
	}
	for what, c := range map[string]struct {
		records []dns.SRV
		want    []string
	}{
		"weights":             {[]dns.SRV{{Weight: 1, Port: 1, Target: "a."}, {Weight: 65535, Port: 1, Target: "b."}}, []string{"10.0.0.1:1/0/100", "10.0.0.2:1/0/6553500"}},
		"no weight at all":    {[]dns.SRV{{Port: 1, Target: "a."}, {Port: 1, Target: "b."}}, []string{"10.0.0.1:1/0/100", "10.0.0.2:1/0/100"}},
		"one without weight":  {[]dns.SRV{{Port: 1, Target: "a."}, {Weight: 1, Port: 1, Target: "b."}}, []string{"10.0.0.1:1/0/1", "10.0.0.2:1/0/100"}},
		"of another priority": {[]dns.SRV{{Port: 1, Target: "a."}, {Priority: 1, Weight: 2, Port: 1, Target: "b."}}, []string{"10.0.0.1:1/0/100", "10.0.0.2:1/1/200"}},
		"addresses of a host": {[]dns.SRV{{Weight: 3, Port: 1, Target: "MANY."}}, []string{"10.0.0.3:1/0/150", "10.0.0.4:1/0/150", "[fd00::3]:1/0/300"}},
		"too many of them":    {[]dns.SRV{{Port: 1, Target: "many."}, {Weight: 1, Port: 1, Target: "a."}}, []string{"10.0.0.1:1/0/100", "10.0.0.3:1/0/1", "10.0.0.4:1/0/1", "[fd00::3]:1/0/1"}},
		"priority":            {[]dns.SRV{{Priority: 65535, Port: 1, Target: "a."}, {Priority: 2, Port: 1, Target: "b."}}, []string{"10.0.0.2:1/2/100", "10.0.0.1:1/65535/100"}},
		"twice":               {[]dns.SRV{{Weight: 1, Port: 1, Target: "a."}, {Weight: 2, Port: 1, Target: "a."}}, []string{"10.0.0.1:1/0/300"}},
		"at two priorities":   {[]dns.SRV{{Priority: 2, Weight: 9, Port: 1, Target: "a."}, {Priority: 1, Weight: 2, Port: 1, Target: "a."}}, []string{"10.0.0.1:1/1/200"}},
		"at two ports":        {[]dns.SRV{{Port: 2, Target: "a."}, {Port: 1, Target: "a."}}, []string{"10.0.0.1:1/0/100", "10.0.0.1:2/0/100"}},
		"no port":             {[]dns.SRV{{Target: "a."}}, nil},
		"no address":          {[]dns.SRV{{Port: 1, Target: "none."}, {Port: 1, Target: "unknown."}}, nil},
	} {
		var records []*dns.SRV
		for i := range c.records {
			records = append(records, &c.records[i])
		}
		if got := show(targets(records, addrs)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", what, got, c.want)
		}
	}
}

func TestAddress(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]string{
		"A 10.0.0.1":           "10.0.0.1",
		"AAAA fd00::1":         "fd00::1",
		"AAAA ::ffff:10.0.0.1": "10.0.0.1",
		"A 127.0.0.1":          "127.0.0.1",
		"A 0.0.0.0":            "",
		"AAAA ::":              "",
		"A 224.0.0.1":          "",
		"AAAA ff02::1":         "",
		"A 255.255.255.255":    "",
		"TXT 10.0.0.1":         "",
	} {
		got := ""
		if a, ok := address(parse(t, "x. 1 "+s)[0]); ok {
			got = a.String()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", s, got, want)
		}
	}
}

// FuzzAnswer makes targets of whatever a server may send.
func FuzzAnswer(f *testing.F) {
	m := new(dns.Msg).SetQuestion(name+".", dns.TypeSRV)
	m.Answer = parse(f, srv(60, 1, 1, 80, "a.example.org"), srv(60, 1, 0, 80, "b.example.org"), name+". 60 CNAME b.example.org.")
	m.Extra = parse(f, "a.example.org. 60 A 10.0.0.1", "a.example.org. 60 AAAA fd00::1", "b.example.org. 1 A 10.0.0.2")
	b, err := m.Pack()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		_ = m.Unpack(b) // what it could read of a broken message is there
		a := read(m, name+".", dns.TypeSRV)
		var records []*dns.SRV
		addrs := map[string][]netip.Addr{}
		for _, rr := range a.records {
			srv, ok := rr.(*dns.SRV)
			if !ok {
				t.Fatalf("%s is no SRV record", rr)
			}
			records = append(records, srv)
			host := dns.CanonicalName(srv.Target)
			if addrs[host] != nil {
				continue
			}
			for _, typ := range []uint16{dns.TypeA, dns.TypeAAAA} {
				list, _ := glue(m, host, typ)
				addrs[host] = append(addrs[host], list...)
			}
		}
		seen := map[netip.AddrPort]bool{}
		list := targets(records, addrs)
		for i, x := range list {
			if !x.Addr.IsValid() || x.Addr.Port() == 0 || x.Addr.Addr().Is4In6() || x.Addr.Addr().IsUnspecified() || x.Weight < 1 || x.Priority < 0 || seen[x.Addr] {
				t.Fatalf("target %+v", x)
			}
			seen[x.Addr] = true
			if i > 0 && list[i-1].Priority > x.Priority {
				t.Fatalf("order of %v", list)
			}
		}
	})
}
