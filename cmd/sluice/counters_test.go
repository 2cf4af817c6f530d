package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// carried is what is told of a service or a backend.
type carried struct{ flows, packetsIn, bytesIn, packetsOut, bytesOut float64 }

// carried reads what the metrics tell of a service, or of one of its backends.
func (h *host) carried(t *testing.T, service, backend string) carried {
	t.Helper()
	m := h.metrics(t)
	kind, label := "sluice_", ""
	if backend != "" {
		kind, label = "sluice_backend_", fmt.Sprintf("backend=%q,", backend)
	}
	get := func(name, direction string) float64 {
		if direction != "" {
			direction = fmt.Sprintf("direction=%q,", direction)
		}
		// Labels are exported in the order of their names.
		key := kind + name + "{" + label + direction + fmt.Sprintf("service=%q}", service)
		v, ok := m[key]
		if !ok {
			t.Fatalf("no metric %s", key)
		}
		return v
	}
	return carried{get("flows_total", ""), get("packets_total", "in"), get("bytes_total", "in"), get("packets_total", "out"), get("bytes_total", "out")}
}

// tracked is what conntrack's own program tells of a service, or of one of its
// backends, and how many of the flows are not finished.
func (h *host) tracked(t *testing.T, proto uint8, backend netip.AddrPort) (c carried, live int) {
	t.Helper()
	for _, f := range testenv.Conntrack(t, h.Host) {
		if f.Proto != proto || f.Orig.Dst.Addr().String() != address || backend.IsValid() && f.Reply.Src != backend {
			continue
		}
		c.flows++
		c.packetsIn += float64(f.OrigCount.Packets)
		c.bytesIn += float64(f.OrigCount.Bytes)
		c.packetsOut += float64(f.ReplyCount.Packets)
		c.bytesOut += float64(f.ReplyCount.Bytes)
		if f.State != "TIME_WAIT" && f.State != "CLOSE" {
			live++
		}
	}
	return c, live
}

// metered counts what goes over a connection.
type metered struct {
	net.Conn
	in, out float64 // as the service sees it
}

func (m *metered) Read(b []byte) (int, error) {
	n, err := m.Conn.Read(b)
	m.out += float64(n)
	return n, err
}

func (m *metered) Write(b []byte) (int, error) {
	n, err := m.Conn.Write(b)
	m.in += float64(n)
	return n, err
}

// TestCounters: flows, bytes and packets of each direction, of a service and of
// each of its replicas, are those that conntrack and the clients have counted,
// and do not fall whatever becomes of the replicas.
func TestCounters(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	// So that what is found open below is what is open, on a busy machine too.
	h.Host.Sysctl(t, "net.netfilter.nf_conntrack_udp_timeout", "300")
	h.Host.Sysctl(t, "net.netfilter.nf_conntrack_udp_timeout_stream", "300")
	configure := func(scale string) string {
		udp := strings.NewReplacer("service.web", "service.dgram", ":80/tcp", ":53/udp").Replace(web(scale, `PORT = "0", UDP_PORT = "8080"`,
			"[service.web.drain]\ntimeout = \"1s\""))
		return h.configure(t, web(scale, "", "")+udp)
	}
	d := h.start(t, configure("min = 2\nmax = 2"))
	d.untilReady(t, "web", 2)
	d.untilReady(t, "dgram", 2)

	// Whatever happens, no total falls.
	stop, scraper := make(chan struct{}), sync.WaitGroup{}
	scraper.Go(func() {
		last := map[string]float64{}
		for {
			for name, v := range h.metrics(t) {
				metric, _, _ := strings.Cut(name, "{")
				if strings.HasPrefix(name, "sluice_") && strings.HasSuffix(metric, "_total") {
					if v < last[name] {
						t.Errorf("%s fell from %v to %v", name, last[name], v)
					}
					last[name] = v
				}
			}
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	defer scraper.Wait()
	defer close(stop)

	const conns, up, down = 8, 128 << 10, 384 << 10 // 1 MiB and 3 MiB in all
	var tcpIn, tcpOut float64
	for range conns {
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		conn, err := h.Client.Dial(ctx, "tcp", address+":80")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		m := &metered{Conn: conn}
		s := newSession(t, m)
		for _, resp := range []io.Closer{
			consume(t, s.ask(t, "POST", "/upload", bytes.NewReader(make([]byte, up)), up).Body),
			consume(t, s.ask(t, "GET", fmt.Sprintf("/bytes?n=%d", down), nil, 0).Body),
		} {
			_ = resp.Close()
		}
		_ = conn.Close()
		tcpIn += m.in
		tcpOut += m.out
	}
	const sockets, datagrams = 6, 10
	var dgram carried // known to the byte
	for range sockets {
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		conn, err := h.Client.Dial(ctx, "udp", address+":53")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		dgram.flows++
		for i := range datagrams {
			question := strings.Repeat("q", 10*i+1)
			answer := exchange(t, conn, question)
			dgram.packetsIn++
			dgram.bytesIn += float64(20 + 8 + len(question))
			dgram.packetsOut++
			dgram.bytesOut += float64(20 + 8 + len(answer))
		}
		_ = conn.Close()
	}
	var tcp carried
	testenv.Eventually(t, patient, func() (bool, string) {
		var live int
		tcp, live = h.tracked(t, unix.IPPROTO_TCP, netip.AddrPort{})
		return live == 0, fmt.Sprintf("%d connections are not finished", live)
	})
	if tcp.flows != conns || tcp.bytesIn < tcpIn+20*tcp.packetsIn || tcp.bytesIn > 1.1*tcpIn+120*tcp.packetsIn ||
		tcp.bytesOut < tcpOut+20*tcp.packetsOut || tcp.bytesOut > 1.1*tcpOut+120*tcp.packetsOut ||
		tcpIn < conns*up || tcpOut < conns*down {
		t.Errorf("conntrack has %+v for %v bytes in and %v out", tcp, tcpIn, tcpOut)
	}

	total := map[string]carried{"web": tcp, "dgram": dgram}
	settled := func(when, service string) {
		t.Helper()
		testenv.Eventually(t, patient, func() (bool, string) {
			got := h.carried(t, service, "")
			return got == total[service], fmt.Sprintf("%s, %s: %+v, want %+v", when, service, got, total[service])
		})
	}
	for service, proto := range map[string]uint8{"web": unix.IPPROTO_TCP, "dgram": unix.IPPROTO_UDP} {
		settled("before anything ends", service)
		for _, b := range h.backends(t, service) {
			want, _ := h.tracked(t, proto, netip.MustParseAddrPort(b.Address))
			if got := h.carried(t, service, b.Name); got != want || got.flows == 0 {
				t.Errorf("%s: %+v, conntrack has %+v", b.Name, got, want)
			}
		}
	}
	if m := h.metrics(t); m[`sluice_flows{service="dgram"}`] != sockets || m[`sluice_flows{service="web"}`] != 0 ||
		m[`sluice_backend_flows{backend="sluice-dgram-1",service="dgram"}`]+m[`sluice_backend_flows{backend="sluice-dgram-2",service="dgram"}`] != sockets {
		t.Errorf("live flows: %v and %v", m[`sluice_flows{service="dgram"}`], m[`sluice_flows{service="web"}`])
	}

	// A replica of each dies and is replaced, and in the end all are gone: the
	// kernel's entries with them, but not what they have carried.
	for service := range total {
		from := d.mark()
		h.pod.CLI(t, "kill", "sluice-"+service+"-1")
		d.waitFrom(t, from, func(l line) bool { return l.field("service") == service && l.fields["event"] == "died" })
		d.untilReady(t, service, 2)
		settled("a replica has died", service)
	}
	configure("min = 0\nmax = 2")
	h.must(t, "reload")
	for service := range total {
		h.must(t, "drain", service)
		testenv.Eventually(t, patient, func() (bool, string) {
			left := h.backends(t, service)
			return len(left) == 0, fmt.Sprintf("%s has %+v", service, left)
		})
		settled("no replica is left", service)
		for name := range h.metrics(t) {
			if strings.HasPrefix(name, "sluice_backend_") && strings.Contains(name, fmt.Sprintf("service=%q", service)) {
				t.Errorf("without replicas there is %s", name)
			}
		}
	}
}

func (h *host) backends(t *testing.T, service string) []control.BackendStatus {
	t.Helper()
	st, err := admin.Dial(h.admin()).Status(context.Background(), service)
	if err != nil {
		t.Fatal(err)
	}
	return st.Services[0].Backends
}

func consume(t *testing.T, r io.ReadCloser) io.Closer {
	t.Helper()
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	return r
}
