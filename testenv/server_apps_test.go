package testenv

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/pires/go-proxyproto"
)

// The applications are tried with the libraries that everybody uses.

func TestServerDNS(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "DNS_PORT=53")
	ask := func(network, name string, size uint16) *dns.Msg {
		t.Helper()
		c, err := client.Dial(t.Context(), network, at(be.Addr4, 53))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		q := new(dns.Msg).SetQuestion(name, dns.TypeTXT)
		if size > 0 {
			q.SetEdns0(size, false)
		}
		dc := &dns.Conn{Conn: c, UDPSize: 4096}
		if err := dc.WriteMsg(q); err != nil {
			t.Fatal(err)
		}
		m, err := dc.ReadMsg()
		if err != nil {
			t.Fatal(err)
		}
		if m.Id != q.Id || m.Rcode != dns.RcodeSuccess || len(m.Question) != 1 || m.Question[0].Name != name {
			t.Fatalf("answer to %s: %v", name, m)
		}
		return m
	}
	m := ask("udp", "who.example.", 0)
	if len(m.Answer) != 1 || !strings.HasPrefix(m.Answer[0].(*dns.TXT).Txt[0], "backend0 10.98.0.12:") {
		t.Errorf("answer %v", m)
	}
	for size, cut := range map[uint16]bool{0: true, 1232: true, 4096: false} {
		m := ask("udp", "30.fill.example.", size)
		m.Compress = true // for Len
		if m.Truncated != cut || m.Len() > max(int(size), 512) || (len(m.Answer) == 30) == cut {
			t.Errorf("size %d: truncated %v, %d records, %d bytes", size, m.Truncated, len(m.Answer), m.Len())
		}
	}
	if m := ask("tcp", "300.fill.example.", 0); m.Truncated || len(m.Answer) != 300 {
		t.Errorf("by TCP: truncated %v, %d records", m.Truncated, len(m.Answer))
	}
}

func TestServerProxy(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "PROXY_PORT=81")
	ask := func(header []byte) string {
		t.Helper()
		c := dial(t, client, at(be.Addr4, 81))
		if _, err := c.Write(append(header, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n"...)); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return "closed"
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	addr := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	for version := byte(1); version <= 2; version++ {
		for client, service := range map[string]string{"203.0.113.5:4711": "192.0.2.10:80", "[2001:db8::5]:4711": "[2001:db8::10]:80", "": ""} {
			var h *proxyproto.Header
			want := `"remote":"` + client + `"`
			if client == "" {
				h, want = proxyproto.HeaderProxyFromAddrs(version, nil, nil), `"remote":"10.98.0.12:`
			} else {
				h = proxyproto.HeaderProxyFromAddrs(version, addr(client), addr(service))
			}
			b, err := h.Format()
			if err != nil {
				t.Fatal(err)
			}
			if got := ask(b); !strings.Contains(got, want) {
				t.Errorf("version %d, %q: %s", version, client, got)
			}
		}
	}
	if got := ask(nil); got != "closed" {
		t.Errorf("without a header: %s", got)
	}
}

func TestServerDialogue(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "DIALOGUE_PORT=443")
	socket := func() net.Conn {
		t.Helper()
		c, err := client.Dial(t.Context(), "udp", at(be.Addr4, 443))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	hear := func(c net.Conn) string {
		t.Helper()
		b := make([]byte, 2048)
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	say := func(c net.Conn, text string) string {
		t.Helper()
		if _, err := fmt.Fprint(c, text); err != nil {
			t.Fatal(err)
		}
		return hear(c)
	}
	one, two := socket(), socket()
	if got := say(one, "ping a 1"); got != "reset a backend0" {
		t.Errorf("without hello: %s", got)
	}
	var token string
	if n, err := fmt.Sscanf(say(one, "hello a"), "retry a %s", &token); n != 1 {
		t.Fatal(err)
	}
	if got := say(two, "hello a "+token); !strings.HasPrefix(got, "retry a ") {
		t.Errorf("with the token of another address: %s", got)
	}
	if got, want := say(one, "hello a "+token), "welcome a backend0 "+one.LocalAddr().String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for i := range 3 {
		// From anywhere: the connection is its id.
		if got, want := say([]net.Conn{one, two}[i%2], fmt.Sprintf("ping a %d", 10+i)), fmt.Sprintf("pong a %d backend0 %d", 10+i, i+1); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if got := say(one, "speak a 1ms 50ms"); got != "word a 0" {
		t.Errorf("got %q", got)
	}
	for n := 1; ; n++ {
		got := hear(one)
		if got == fmt.Sprintf("said a %d", n) {
			break
		}
		if got != fmt.Sprintf("word a %d", n) {
			t.Fatalf("word %d: %q", n, got)
		}
	}
	if got := say(one, "bye a"); got != "gone a" {
		t.Errorf("got %q", got)
	}
}
