package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestLocal: a service at every local address answers clients outside, on the
// host by any of its addresses, cold and warm, and the container sees them by the
// address that the README says.
func TestLocal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	text := strings.Replace(web("idle = \"1s\"", "", ""), address+":80/tcp", ":80/tcp\", \"[::1]:81/tcp", 1)
	text = strings.Replace(text, "port = 8080", "port = 8080\nnetwork = \"dual\"", 1)
	d := h.start(t, h.configure(t, text))
	service := netip.MustParseAddr(address)
	places := []struct {
		from    *testenv.NS
		at, see netip.Addr
	}{
		{h.Client, service, h.ClientAddr4},
		{h.Client, h.HostAddr4, h.ClientAddr4},
		{h.Client, h.HostAddr6, h.ClientAddr6},
		{h.Host, service, service},
		{h.Host, h.HostAddr4, h.HostAddr4},
		{h.Host, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("10.77.0.1")},
		{h.Host, netip.MustParseAddr("::1"), netip.MustParseAddr("fd77::1")},
		{h.Host, h.HostAddr6, h.HostAddr6},
	}
	for _, p := range places {
		addr := netip.AddrPortFrom(p.at, 80).String()
		for _, how := range []string{"cold", "warm"} {
			ctx, cancel := context.WithTimeout(context.Background(), patient/2)
			got, err := testenv.Who(ctx, p.from, addr)
			cancel()
			if err != nil {
				t.Errorf("%s from %s, %s: %v", addr, p.from.Name, how, err)
				continue
			}
			if got.Remote.Addr() != p.see {
				t.Errorf("%s from %s, %s: the container sees %s, want %s", addr, p.from.Name, how, got.Remote, p.see)
			}
			d.until(t, "warm", func(st control.ServiceStatus) bool { return st.Phase != "waking" })
		}
		d.until(t, "sleep", asleep)
	}
	for range 2 { // cold and warm, by a listener of its own
		testenv.WhoAnswered(t, h.Host, "[::1]:81")
	}
}

// TestSettings: settings that others change are put right, and that is said
// once: clients at 127.0.0.1 and by IPv6 are served again.
func TestSettings(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	bridge := strings.TrimSpace(h.pod.CLI(t, "network", "inspect", "--format", "{{.NetworkInterface}}", "dual"))
	text := strings.Replace(web("min = 1", "", ""), address+":80/tcp", ":80/tcp", 1)
	d := h.start(t, h.configure(t, strings.Replace(text, "port = 8080", "port = 8080\nnetwork = \"dual\"", 1)))
	d.untilReady(t, "web", 1)
	for _, p := range []struct {
		key, addr string
		from      *testenv.NS
	}{
		{"net.ipv4.conf." + bridge + ".route_localnet", "127.0.0.1", h.Host},
		{"net.ipv6.conf.all.forwarding", "[" + h.HostAddr6.String() + "]", h.Client},
	} {
		// Both are for packets that go from one interface to another.
		testenv.WhoAnswered(t, p.from, p.addr+":80")
		if v := h.Host.GetSysctl(t, p.key); v != "1" {
			t.Fatalf("%s is %s", p.key, v)
		}
		from, began := d.mark(), time.Now()
		h.Host.Sysctl(t, p.key, "0")
		testenv.Eventually(t, patient, func() (bool, string) {
			v := h.Host.GetSysctl(t, p.key)
			return v == "1", p.key + " is " + v
		})
		t.Logf("%s: put right after %s", p.key, time.Since(began))
		testenv.WhoAnswered(t, p.from, p.addr+":80")
		said := func(l line) bool {
			return strings.Contains(l.text, p.key) && strings.Contains(l.field("message"), "put right")
		}
		d.waitFrom(t, from, said)
		if n := len(slices.DeleteFunc(d.log.Since(from), func(l line) bool { return !said(l) })); n != 1 {
			t.Errorf("%s: said %d times", p.key, n)
		}
	}
	if n := d.status(t).Relayed; n != 0 {
		t.Errorf("%d connections were relayed", n)
	}
}
