package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// zone is a name server on the host's loopback address, for the daemon alone:
// its resolv.conf says so.
type zone struct {
	mu      sync.Mutex
	records []dns.RR
	broken  bool
	asked   int
}

func (h *host) zone(t *testing.T) *zone {
	t.Helper()
	z := &zone{}
	pc, err := h.Host.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	ln, err := h.Host.Listen("tcp", "127.0.0.1:53")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: z}, {Listener: ln, Handler: z}} {
		up, ended := make(chan struct{}), make(chan error, 1)
		s.NotifyStartedFunc = func() { close(up) }
		go func() { ended <- s.ActivateAndServe() }()
		<-up
		t.Cleanup(func() {
			if err := s.Shutdown(); err != nil {
				t.Error(err)
			}
			<-ended
		})
	}
	h.resolv = filepath.Join(h.dir, "resolv.conf")
	if err := os.WriteFile(h.resolv, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return z
}

// set replaces what the zone has; without records it answers SERVFAIL.
func (z *zone) set(t *testing.T, records ...string) {
	t.Helper()
	var list []dns.RR
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rr)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records, z.broken = list, len(list) == 0
}

// questions is how many have been asked.
func (z *zone) questions() int {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.asked
}

func (z *zone) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked++
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	if z.broken {
		m.Rcode = dns.RcodeServerFailure
	}
	for _, rr := range z.records {
		if h := rr.Header(); h.Name == q.Question[0].Name && h.Rrtype == q.Question[0].Qtype {
			m.Answer = append(m.Answer, rr)
		}
	}
	_ = w.WriteMsg(m)
}

// serving lists the backends that get new flows.
func serving(st control.ServiceStatus) string {
	var list []string
	for _, b := range st.Backends {
		if b.Weight > 0 {
			list = append(list, b.Name)
		}
	}
	return strings.Join(list, " ")
}

// TestSRV: a service of an SRV name serves by the weights of its first tier, by
// the next one when nothing of the first is healthy, follows the zone by its
// TTL, cuts no flow, and stays with what it knows when the DNS is lost.
func TestSRV(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	z := h.zone(t)
	n := testenv.NewBackendNet(t, h.Host, 3)
	servers := make([]*testenv.Server, 3)
	at := make([]string, 3)
	zone := []string{}
	for i, b := range n.Backends {
		servers[i] = testenv.StartServer(t, b.NS)
		at[i] = netip.AddrPortFrom(b.Addr4, 8080).String()
		zone = append(zone, fmt.Sprintf("b%d.example.org. 1 IN A %s", i, b.Addr4))
	}
	srv := func(i, priority, weight int) string {
		return fmt.Sprintf("_web._tcp.example.org. 1 IN SRV %d %d 8080 b%d.example.org.", priority, weight, i)
	}
	z.set(t, append(zone, srv(0, 10, 3), srv(1, 10, 1), srv(2, 20, 1))...)
	d := h.start(t, h.configure(t, fmt.Sprintf("[service.web]\nlisten = [\"%s:80/tcp\"]\nhealth = { interval = \"200ms\", fall = 2 }\n"+
		"[[service.web.backend]]\nsrv = \"_web._tcp.example.org\"\n", address)))
	until := func(want ...string) {
		t.Helper()
		d.until(t, strings.Join(want, " "), func(st control.ServiceStatus) bool { return serving(st) == strings.Join(want, " ") })
	}
	until(at[0], at[1])
	counts := map[string]int{}
	for range 16 {
		counts[testenv.WhoAnswered(t, h.Client, address+":80").Name]++
	}
	if counts["backend0"] != 12 || counts["backend1"] != 4 {
		t.Errorf("of 16 connections %v, want 12 and 4", counts)
	}

	servers[0].Kill(t)
	until(at[1])
	servers[1].Kill(t)
	until(at[2])
	if got := testenv.WhoAnswered(t, h.Client, address+":80").Name; got != "backend2" {
		t.Errorf("%s answered, want the second tier's", got)
	}
	open := h.hold(t)
	testenv.StartServer(t, n.Backends[0].NS)
	until(at[0])

	testenv.StartServer(t, n.Backends[1].NS)
	z.set(t, append(zone, srv(1, 5, 0))...)
	until(at[1])
	if got := testenv.WhoAnswered(t, h.Client, address+":80").Name; got != "backend1" {
		t.Errorf("%s answered, want the one of the new zone", got)
	}

	z.set(t)
	asked := z.questions()
	testenv.Eventually(t, patient, func() (bool, string) { return z.questions() > asked+4, "the daemon does not ask again" })
	if got := testenv.WhoAnswered(t, h.Client, address+":80").Name; got != "backend1" {
		t.Errorf("%s answered while the DNS is lost", got)
	}
	if err := open.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	for range 3 { // a dot each 200 ms
		if _, err := open.Read(make([]byte, 1)); err != nil {
			t.Fatalf("the flow on a backend that has left the zone: %v", err)
		}
	}
}

// TestMasquerade: backends that would answer past this host, as they know no
// way to the client but another, are reached with source = "masquerade".
func TestMasquerade(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	n := testenv.NewBackendNet(t, h.Host, 1)
	b := n.Backends[0]
	// What it sends to anybody but its neighbours ends there.
	b.IP(t, "route replace default dev lo", "route del ::/0", "route add ::/0 dev lo")
	testenv.StartServer(t, b.NS, "UDP_PORT=8080")
	text := ""
	for port, source := range map[int]string{81: "preserve", 82: "masquerade"} {
		for _, proto := range []string{"tcp", "udp"} {
			text += fmt.Sprintf("[service.%[1]s-%[2]s]\nlisten = [\"%[3]s:%[4]d/%[2]s\", \"[2001:db8::10]:%[4]d/%[2]s\"]\nsource = %[1]q\n"+
				"backend = [ { address = \"%[5]s\" }, { address = \"%[6]s\" } ]\n", source, proto, address, port,
				netip.AddrPortFrom(b.Addr4, 8080), netip.AddrPortFrom(b.Addr6, 8080))
		}
	}
	d := h.start(t, h.configure(t, text))
	for service, seen := range map[string]netip.Addr{address: n.Addr4, "2001:db8::10": n.Addr6} {
		for _, proto := range []string{"tcp", "udp"} {
			d.untilReady(t, "preserve-"+proto, 2)
			d.untilReady(t, "masquerade-"+proto, 2)
			at := netip.AddrPortFrom(netip.MustParseAddr(service), 82).String()
			got, err := ask(t, h.Client, proto, at)
			if err != nil {
				t.Fatalf("%s %s: %v", proto, at, err)
			}
			if got.Name != "backend0" || got.Remote.Addr() != seen {
				t.Errorf("%s %s: %s answered and saw %s, want backend0 and %s", proto, at, got.Name, got.Remote, seen)
			}
			// The same without: or else the above would prove nothing.
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			c, err := h.Client.Dial(ctx, proto, netip.AddrPortFrom(netip.MustParseAddr(service), 81).String())
			cancel()
			if err == nil && proto == "udp" {
				_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
				_, _ = c.Write([]byte("who"))
				_, err = c.Read(make([]byte, 100))
			}
			if err == nil {
				t.Errorf("%s: answered with the client's address too", proto)
			}
			if c != (net.Conn)(nil) {
				_ = c.Close()
			}
		}
	}
}
