package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestUDP: the first datagram of a sleeping UDP service is answered by the
// container, which sees the client; so are those of a client that never
// changes its port, across sleep and wake.
func TestUDP(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.silence(t, 2)
	text := strings.Replace(web("idle = \"1s\"", `PORT = "0", UDP_PORT = "8080"`, ""), ":80/tcp", ":80/udp", 1)
	d := h.start(t, h.configure(t, text))
	for passed := range uint64(2) {
		local := netip.AddrPortFrom(h.ClientAddr4, 40053)
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		conn, err := h.Client.DialFrom(ctx, local, "udp", address+":80")
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		for i := range 3 {
			got := exchange(t, conn, "hello")
			if !strings.Contains(got, local.String()) || !strings.HasSuffix(strings.TrimSpace(got), "hello") {
				t.Errorf("answer %d: %q, want the container's, to %s", i, got, local)
			}
		}
		_ = conn.Close()
		// The answer may be here before the daemon has counted it.
		d.until(t, "a datagram passed on", func(st control.ServiceStatus) bool { return st.HandedOver == passed+1 })
		d.until(t, "sleep", asleep)
	}
}

// silence sets the seconds after which a flow of UDP has ended.
func (h *host) silence(t *testing.T, seconds int) {
	t.Helper()
	for _, name := range []string{"udp_timeout", "udp_timeout_stream"} {
		h.Host.Sysctl(t, "net.netfilter.nf_conntrack_"+name, strconv.Itoa(seconds))
	}
}

// exchange sends a datagram and returns the answer to it.
func exchange(t *testing.T, conn net.Conn, text string) string {
	t.Helper()
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 2048)
	n, err := conn.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestIPv6: a service on an IPv6 address, with containers on a dual-stack
// network: woken, handed over, and kernel-direct from then on.
func TestIPv6(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	text := strings.Replace(web("idle = \"5m\"", "", ""), `"192.0.2.10:80/tcp"`, `"192.0.2.10:80/tcp", "[2001:db8::10]:80/tcp"`, 1)
	text = strings.Replace(text, "port = 8080", "port = 8080\nnetwork = \"dual\"", 1)
	d := h.start(t, h.configure(t, text))
	for i := range 3 {
		got := testenv.WhoAnswered(t, h.Client, "[2001:db8::10]:80")
		if got.Remote.Addr() != h.ClientAddr6 {
			t.Errorf("request %d: the container saw %s, the client is %s", i, got.Remote, h.ClientAddr6)
		}
	}
	if got := testenv.WhoAnswered(t, h.Client, address+":80"); got.Remote.Addr() != h.ClientAddr4 {
		t.Errorf("the container saw %s, the client is %s", got.Remote, h.ClientAddr4)
	}
	st := d.until(t, "handover", func(st control.ServiceStatus) bool { return st.HandedOver+st.Relayed > 0 })
	if st.HandedOver != 1 || st.Relayed != 0 {
		t.Errorf("the first connection was not handed over: %+v", st)
	}
}

// TestMembers: backends with fixed addresses serve by priority, and containers
// where none of them does.
func TestMembers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	n := testenv.NewBackendNet(t, h.Host, 2)
	var servers []*testenv.Server
	for _, b := range n.Backends {
		servers = append(servers, testenv.StartServer(t, b.NS))
	}
	text := web("idle = \"1s\"", "", "[service.web.health]\ninterval = \"200ms\"\nfall = 2\n")
	for i, b := range n.Backends {
		text += "[[service.web.backend]]\naddress = \"" + netip.AddrPortFrom(b.Addr4, 8080).String() + "\"\n"
		if i == 1 {
			text += "priority = 1\n"
		}
	}
	text = strings.Replace(text, "pull = \"never\"", "pull = \"never\"\npriority = 2", 1)
	d := h.start(t, h.configure(t, text))
	names := func(st control.ServiceStatus) (list []string) {
		for _, b := range st.Backends {
			if b.Weight > 0 {
				list = append(list, b.Name)
			}
		}
		return list
	}
	for i, b := range n.Backends {
		want := netip.AddrPortFrom(b.Addr4, 8080).String()
		d.until(t, want, func(st control.ServiceStatus) bool { l := names(st); return len(l) == 1 && l[0] == want })
		if got := testenv.WhoAnswered(t, h.Client, address+":80"); !strings.Contains(got.Name, b.Name) {
			t.Errorf("%s answered, want %s", got.Name, b.Name)
		}
		if _, errOut, code := h.sluice(t, "scale", "web", "1"); code != 1 || !strings.Contains(errOut, "better priority") {
			t.Errorf("scale where a member serves: exit %d: %s", code, errOut)
		}
		if len(h.containers(t)) != 0 {
			t.Error("a container runs although a member serves")
		}
		servers[i].Kill(t)
	}
	d.until(t, "no member", func(st control.ServiceStatus) bool { return len(names(st)) == 0 })
	testenv.WhoAnswered(t, h.Client, address+":80")
	if len(h.containers(t)) != 1 {
		t.Error("no container takes over")
	}
}

// TestProxy: every connection is relayed, and the container sees the client all
// the same.
func TestProxy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web("idle = \"5m\"", "", ""), "[service.web.container]", "forward = \"proxy\"\n[service.web.container]", 1)
	d := h.start(t, h.configure(t, text))
	for range 3 {
		if got := testenv.WhoAnswered(t, h.Client, address+":80"); got.Remote.Addr() != h.ClientAddr4 {
			t.Errorf("the container saw %s, the client is %s", got.Remote, h.ClientAddr4)
		}
	}
	if st := d.status(t); st.Relayed != 3 || st.HandedOver != 0 {
		t.Errorf("not relayed: %+v", st)
	}
}

// TestCrossUDP: a client of IPv6 is served by a container that has only IPv4, and
// answered from the address that it has called.
func TestCrossUDP(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	text := strings.Replace(web("idle = \"5m\"", `PORT = "0", UDP_PORT = "8080"`, ""), address+":80/tcp", ":80/udp", 1)
	d := h.start(t, h.configure(t, text))
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "udp", "[2001:db8::10]:80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 3 {
		if got := exchange(t, conn, "hello"); !strings.HasSuffix(strings.TrimSpace(got), "hello") {
			t.Errorf("answer %q", got)
		}
	}
	if st := d.status(t); st.Relayed != 1 || st.HandedOver != 0 {
		t.Errorf("not relayed: %+v", st)
	}
}

// untilReady waits until the kernel gives new flows of a service to n backends.
func (d *proc) untilReady(t *testing.T, service string, n int) {
	t.Helper()
	testenv.Eventually(t, patient, func() (bool, string) {
		st, err := admin.Dial(d.admin()).Status(context.Background(), service)
		if err != nil {
			return false, err.Error()
		}
		serving := 0
		for _, b := range st.Services[0].Backends {
			if b.Weight > 0 {
				serving++
			}
		}
		return serving == n, fmt.Sprintf("waiting for %s: %+v", service, st.Services[0])
	})
}

// TestBalances: every algorithm reaches both replicas, or keeps to one where
// the client's address decides.
func TestBalances(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := ""
	sticky := map[string]bool{"source-hash": true, "affinity": true}
	ports := map[string]int{"round-robin": 81, "random": 82, "least-connections": 83, "source-hash": 84, "maglev": 85, "affinity": 86}
	for name, port := range ports {
		one := named(name, port, "min = 2\nmax = 2")
		set := "balance = \"" + name + "\"\n"
		if name == "affinity" {
			set = "affinity = \"10m\"\n"
		}
		text += strings.Replace(one, "[service."+name+".container]", set+"[service."+name+".container]", 1)
	}
	d := h.start(t, h.configure(t, text))
	for name, port := range ports {
		d.untilReady(t, name, 2)
		seen := map[string]int{}
		for range 40 {
			seen[testenv.WhoAnswered(t, h.Client, netip.AddrPortFrom(netip.MustParseAddr(address), uint16(port)).String()).Name]++
		}
		want := 2
		if sticky[name] {
			want = 1
		}
		if len(seen) != want {
			t.Errorf("%s: %v, want %d replicas", name, seen, want)
		}
	}
}
