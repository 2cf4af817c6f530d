package main

import (
	"context"
	"net"
	"slices"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestLocalUDP: clients of UDP at [::1], whom the kernel cannot translate, are
// served like others: cold and warm, each by one replica for as long as it talks;
// they are load, delay a drain until its deadline, and let the service sleep once
// they are silent.
func TestLocalUDP(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	configured := func(more string) string {
		text := web("idle = \"1s\"\nmax = 2", `PORT = "0", UDP_PORT = "8080"`, more)
		text = strings.Replace(text, address+":80/tcp", ":80/udp\", \"[::1]:81/udp", 1)
		return h.configure(t, strings.Replace(text, "port = 8080", "port = 8080\nnetwork = \"dual\"", 1))
	}
	h.silence(t, 300)
	d := h.start(t, configured(""))
	call := func(addr string) net.Conn {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		defer cancel()
		c, err := h.Host.Dial(ctx, "udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	server := func(c net.Conn) string {
		t.Helper()
		words := strings.Fields(exchange(t, c, "hello"))
		if len(words) != 3 || words[2] != "hello" {
			t.Fatalf("answer %q", words)
		}
		return words[0]
	}
	relaying := func(n int) control.ServiceStatus {
		t.Helper()
		return d.until(t, "exchanges", func(st control.ServiceStatus) bool { return st.Relaying == n && st.Flows == n })
	}

	one := call("[::1]:80")
	first := server(one)
	relaying(1)
	h.must(t, "scale", "web", "2")
	d.untilReady(t, "web", 2)
	two := call("[::1]:81")
	second := server(two)
	relaying(2)
	if first == second || server(one) != first || server(two) != second {
		t.Errorf("two clients are served by %s and %s, now by %s and %s", first, second, server(one), server(two))
	}

	// A replica that drains goes on with whom it has, until its time is up.
	h.must(t, "drain", "web", "sluice-web-1")
	d.until(t, "drain", func(st control.ServiceStatus) bool {
		return slices.ContainsFunc(st.Backends, func(b control.BackendStatus) bool { return b.State == "draining" && b.Flows == 1 })
	})
	if server(call("[::1]:80")) == first || server(one) != first {
		t.Error("a draining replica has a new client, or has lost one")
	}
	from := d.mark()
	configured("[service.web.drain]\ntimeout = \"1s\"\n")
	h.must(t, "reload")
	if l := d.waitFrom(t, from, event("drained")); !strings.Contains(l.field("message"), "1 connection cut") {
		t.Errorf("at its deadline: %s", l.text)
	}
	testenv.Eventually(t, patient, func() (bool, string) {
		return d.status(t).Relaying == 2, "an exchange with a replica that is gone"
	})
	if now := server(one); now == first {
		t.Error("a replica answers that is gone")
	}
	h.must(t, "drain", "web")
	d.until(t, "sleep", asleep)

	// Silence ends an exchange as it ends a flow.
	h.silence(t, 1)
	for range 2 {
		server(one)
		st := d.until(t, "sleep", asleep)
		if st.Relaying != 0 || st.RelayedIn == 0 || st.RelayedOut == 0 || st.HandedOver != 0 {
			t.Errorf("after an exchange: %+v", st)
		}
	}
}
