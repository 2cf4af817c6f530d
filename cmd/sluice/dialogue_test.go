package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// shortMemory makes conntrack forget silent datagrams after two seconds.
func (h *host) shortMemory(t *testing.T) {
	t.Helper()
	h.Host.Sysctl(t, "net.netfilter.nf_conntrack_udp_timeout", "2")
	h.Host.Sysctl(t, "net.netfilter.nf_conntrack_udp_timeout_stream", "2")
}

// query asks for the TXT records of a name, once, from a port of its own.
func (h *host) query(network, name string) (*dns.Msg, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c, err := h.Client.Dial(ctx, network, address+":53")
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patient)); err != nil {
		return nil, netip.AddrPort{}, err
	}
	dc := &dns.Conn{Conn: c, UDPSize: 1232}
	q := new(dns.Msg).SetQuestion(name, dns.TypeTXT).SetEdns0(1232, false)
	if err := dc.WriteMsg(q); err != nil {
		return nil, netip.AddrPort{}, err
	}
	m, err := dc.ReadMsg()
	if err == nil && m.Id != q.Id {
		err = dns.ErrId
	}
	return m, netip.MustParseAddrPort(c.LocalAddr().String()), err
}

// server is who has answered; it must have seen the client itself.
func (h *host) server(network string) (string, error) {
	m, local, err := h.query(network, "who.example.org.")
	if err != nil {
		return "", err
	}
	if len(m.Answer) != 1 {
		return "", fmt.Errorf("answer %v", m)
	}
	words := strings.Fields(m.Answer[0].(*dns.TXT).Txt[0])
	if words[1] != local.String() {
		return words[0], fmt.Errorf("the server saw %s, the client is %s", words[1], local)
	}
	return words[0], nil
}

// TestDNS: a name server, each query from a port of its own. All first ones are
// answered, though nothing is asked twice; the queries of two replicas are even;
// one of them is drained by silence, without a query lost; what does not fit a
// datagram is fetched by TCP; and it sleeps.
func TestDNS(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.shortMemory(t)
	d := h.start(t, h.configure(t, fmt.Sprintf("[service.dns]\nlisten = [\"%[1]s:53/udp\", \"%[1]s:53/tcp\"]\n"+
		"container = { image = %[2]q, port = 53, pull = \"never\", stop_timeout = \"2s\", env = { PORT = \"0\", DNS_PORT = \"53\" } }\n"+
		"scale = { idle = \"1s\", max = 3, stable_window = \"6s\", panic_window = \"3s\" }\ndrain = { timeout = \"5m\" }\n", address, testenv.Image)))
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			if _, err := h.server("udp"); err != nil {
				t.Errorf("query %d of a sleeping server: %v", i, err)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	m, _, err := h.query("udp", "40.fill.example.org.")
	if err != nil || !m.Truncated {
		t.Errorf("a long answer by UDP: %v, %v", m, err)
	}
	if m, _, err = h.query("tcp", "40.fill.example.org."); err != nil || m.Truncated || len(m.Answer) != 40 {
		t.Errorf("a long answer by TCP: %v, %v", m, err)
	}

	h.must(t, "scale", "dns", "2")
	d.untilReady(t, "dns", 2)
	// Ready is one moment, and in the kernel another.
	seen, order := map[string]int{}, []string{}
	testenv.Eventually(t, patient, func() (bool, string) {
		name, err := h.server("udp")
		if err != nil {
			t.Fatal(err)
		}
		seen[name]++
		return len(seen) == 2, fmt.Sprint("all queries go to one server: ", seen)
	})
	clear(seen)
	for range 40 {
		name, err := h.server("udp")
		if err != nil {
			t.Fatal(err)
		}
		seen[name]++
		order = append(order, name)
	}
	for name, n := range seen {
		if len(seen) != 2 || n != 20 {
			t.Errorf("%s answered %d of 40 queries, want 20: %v", name, n, order)
		}
	}

	// Queries go on all the time; not one may be lost.
	stop, asked := make(chan struct{}), 0
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := h.server("udp"); err != nil {
				t.Errorf("query %d: %v", asked, err)
				return
			}
			asked++
		}
	})
	h.must(t, "drain", "dns", "sluice-dns-1")
	end := d.wait(t, func(l line) bool { return event("drained")(l) && l.field("backend") == "sluice-dns-1" })
	if end.field("level") == "warn" {
		t.Errorf("flows were cut: %s", end.text)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d queries meanwhile", asked)
	d.until(t, "sleep", asleep)
}

// dialogue is a client's end of a connection over datagrams; see testenv/server.
type dialogue struct {
	net.Conn
	t  *testing.T
	id string
	by string // who has it
}

// dialogue opens one from a port; 0 is any.
func (h *host) dialogue(t *testing.T, id string, port uint16) *dialogue {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c, err := h.Client.DialFrom(ctx, netip.AddrPortFrom(h.ClientAddr4, port), "udp", address+":443")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	g := &dialogue{Conn: c, t: t, id: id}
	g.open()
	return g
}

// open makes the connection known to a server, in two round trips.
func (g *dialogue) open() {
	g.t.Helper()
	token := g.ask("hello")
	if token[0] != "retry" {
		g.t.Fatalf("%s: %v to the first hello", g.id, token)
	}
	w := g.ask("hello", token[2])
	if w[0] != "welcome" || w[3] != g.LocalAddr().String() {
		g.t.Fatalf("%s: %v to the second hello of %s", g.id, w, g.LocalAddr())
	}
	g.by = w[2]
}

// ask says a thing, once, and returns what comes back.
func (g *dialogue) ask(verb string, more ...string) []string {
	g.t.Helper()
	if _, err := fmt.Fprint(g, strings.Join(append([]string{verb, g.id}, more...), " ")); err != nil {
		g.t.Fatal(err)
	}
	return g.hear()
}

func (g *dialogue) hear() []string {
	g.t.Helper()
	if err := g.SetDeadline(time.Now().Add(patient)); err != nil {
		g.t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := g.Read(b)
	if err != nil {
		g.t.Fatalf("%s, on %s: %v", g.id, g.by, err)
	}
	words := strings.Fields(string(b[:n]))
	if len(words) < 2 || words[1] != g.id {
		g.t.Fatalf("%s hears %q", g.id, b[:n])
	}
	return words
}

// ping expects the server that has the connection, with its count of pings.
func (g *dialogue) ping(count int) {
	g.t.Helper()
	got, want := strings.Join(g.ask("ping", "7"), " "), fmt.Sprintf("pong %s 7 %s %d", g.id, g.by, count)
	if got != want {
		g.t.Errorf("got %q, want %q", got, want)
	}
}

// TestDialogue: connections over datagrams, whose state one server has. One in
// which the server alone speaks, for many times what conntrack remembers, is not
// cut by the drain of its replica, which ends with its silence. A client that
// keeps its port meets the next replica after a sleep.
func TestDialogue(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.shortMemory(t)
	d := h.start(t, h.configure(t, dialogues("idle = \"1s\", max = 3, stable_window = \"1h\"")))
	const port = 40443
	one := h.dialogue(t, "one", port)
	for i := range 3 {
		one.ping(i + 1)
	}
	h.must(t, "scale", "quic", "2")
	d.untilReady(t, "quic", 2)
	servers := map[string]bool{one.by: true}
	for i := range 4 {
		g := h.dialogue(t, fmt.Sprint("other", i), 0)
		g.ping(1)
		servers[g.by] = true
	}
	if len(servers) != 2 {
		t.Errorf("connections on %v, want two servers", servers)
	}

	if got := one.ask("speak", "200ms", "16s"); got[2] != "0" {
		t.Fatalf("it does not speak: %v", got)
	}
	victim := d.container(t, one.by)
	h.must(t, "drain", "quic", victim)
	for n := 1; ; n++ {
		got := one.hear()
		if got[2] != fmt.Sprint(n) {
			t.Fatalf("word %d is %v", n, got)
		}
		if got[0] == "said" {
			break
		}
	}
	one.ping(4)
	if g := h.dialogue(t, "newcomer", 0); g.by == one.by {
		t.Error("a new connection on the draining server")
	}
	end := d.wait(t, func(l line) bool { return event("drained")(l) && l.field("backend") == victim })
	if end.field("level") == "warn" {
		t.Errorf("flows were cut: %s", end.text)
	}

	h.must(t, "scale", "quic", "0")
	d.until(t, "sleep", asleep)
	before := one.by
	if got := one.ask("ping", "8"); got[0] != "reset" || got[2] == before {
		t.Errorf("%v, want the word of a server that does not know it", got)
	}
	one.open()
	one.ping(1)
}

// TestDialoguePause: a paused server keeps its connections: the next datagram
// of a client wakes it, and is answered as if nothing had been.
func TestDialoguePause(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.shortMemory(t)
	d := h.start(t, h.configure(t, dialogues("idle = \"1s\", sleep = \"pause\"")))
	g := h.dialogue(t, "one", 40444)
	g.ping(1)
	for i := range 2 {
		d.until(t, "pause", pausedOne)
		g.ping(i + 2)
	}
}

func dialogues(scale string) string {
	return fmt.Sprintf("[service.quic]\nlisten = [\"%s:443/udp\"]\n"+
		"container = { image = %q, port = 443, pull = \"never\", stop_timeout = \"2s\", env = { PORT = \"0\", DIALOGUE_PORT = \"443\" } }\n"+
		"scale = { %s }\ndrain = { timeout = \"5m\" }\n", address, testenv.Image, scale)
}

// container is the name of the replica whose program calls itself so: by its
// host name, the short id.
func (d *proc) container(t *testing.T, server string) string {
	t.Helper()
	st := d.until(t, "replicas", func(st control.ServiceStatus) bool { return len(st.Backends) > 0 })
	for _, b := range st.Backends {
		if strings.HasPrefix(d.pod.CLI(t, "inspect", "--format", "{{.Id}}", b.Name), server) {
			return b.Name
		}
	}
	t.Fatalf("no container of %+v is %s", st.Backends, server)
	return ""
}
