package podman_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"sluice/podman"
	"sluice/testenv"
)

// TestNeighbour gives a replica the address of one that the kernel has just
// talked to at another MAC.
func TestNeighbour(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := bounded(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.89.78.0/24", "--subnet", "fd78::/64", "dual")
	h.pod.CLI(t, "run", "-d", "--network", "dual", "--name", "anchor", "--env", "NEVER_LISTEN=1", testenv.Image)
	n, err := h.c.Network(ctx, "dual")
	ok(t, err)

	make := func(i int) podman.Replica {
		t.Helper()
		name := podman.Name("n", i)
		h.pod.CLI(t, "create", "--name", name, "--label", "sluice.service=n", "--label", fmt.Sprintf("sluice.index=%d", i), "--label", "sluice.port=8080",
			"--network", fmt.Sprintf("dual:ip=10.89.78.50,ip=fd78::50,mac=02:00:00:00:00:%02x", i), testenv.Image)
		var r podman.Replica
		if i%2 == 0 { // both ways up
			r = made(t, "init")(h.c.Init(ctx, name))
		}
		r = made(t, "start")(h.c.Start(ctx, name))
		if r.Addr4.String() != "10.89.78.50" || r.Addr6.String() != "fd78::50" {
			t.Fatalf("addresses of %+v", r)
		}
		return r
	}
	entry := func(addr string) string {
		return strings.TrimSpace(h.ns.Run(t, "ip", "neigh", "show", "to", addr, "dev", n.Bridge))
	}
	for i := 1; i <= 4; i++ {
		r := make(i)
		mac := fmt.Sprintf("02:00:00:00:00:%02x", i)
		for _, addr := range []string{r.Addr4.String(), r.Addr6.String()} {
			if e := entry(addr); !strings.Contains(e, mac) {
				t.Errorf("replica %d: entry for %s is %q, MAC is %s", i, addr, e, mac)
			}
		}
		// With the entry of the last one the connect would hang for 30 s and more.
		brief, cancel := context.WithTimeout(ctx, 15*time.Second)
		for _, r := range []podman.Replica{r, six(r)} {
			if status, err := h.get(brief, r); err != nil || !strings.HasPrefix(status, "200") {
				t.Errorf("replica %d at %s: %q, %v", i, r.Addr(), status, err)
			}
		}
		cancel()
		ok(t, h.c.Remove(ctx, r.Name))
		// As after a long talk: good for the next 30 s without a question.
		for _, addr := range []string{r.Addr4.String(), r.Addr6.String()} {
			h.ns.Run(t, "ip", "neigh", "replace", addr, "lladdr", mac, "dev", n.Bridge, "nud", "reachable")
		}
	}
}

// TestBridgeAddress: a container that talks to the host goes on to do so when
// a port with a lower hardware address joins the bridge. Left alone, the bridge
// would take that address, and drop what is sent to its old one.
func TestBridgeAddress(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := bounded(t)
	h.pod.CLI(t, "network", "create", "--subnet", "10.89.79.0/24", "pinned")
	spec := podman.Spec{Service: "p", Image: testenv.Image, Port: 8080, Network: "pinned", Pull: "never"}
	var replicas []podman.Replica
	for i := 1; i <= 2; i++ { // one of them is not on the port that the address is of
		_, err := h.c.Create(ctx, spec, i)
		ok(t, err)
		replicas = append(replicas, made(t, "start")(h.c.Start(ctx, podman.Name("p", i))))
	}
	n, err := h.c.Network(ctx, "pinned")
	ok(t, err)
	ask := func(when string) {
		t.Helper()
		for _, r := range replicas {
			brief, cancel := context.WithTimeout(ctx, 4*time.Second)
			if status, err := h.get(brief, r); err != nil || !strings.HasPrefix(status, "200") {
				t.Errorf("%s, %s: %q, %v", r.Name, when, status, err)
			}
			cancel()
		}
	}
	ask("before")
	address := func() string {
		f := strings.Fields(h.ns.Run(t, "ip", "-o", "link", "show", "dev", n.Bridge))
		for i := range f {
			if f[i] == "link/ether" {
				return f[i+1]
			}
		}
		return ""
	}
	before := address()
	h.ns.IP(t, "link add low0 address 02:00:00:00:00:01 type veth peer name low1 address 02:00:00:00:00:02",
		"link set low0 master "+n.Bridge, "link set low0 up", "link set low1 up")
	if after := address(); before == "" || after != before {
		t.Errorf("the bridge had %q, now %q", before, after)
	}
	ask("after")
}
