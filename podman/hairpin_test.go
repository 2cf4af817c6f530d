package podman_test

import (
	"os"
	"strings"
	"testing"

	"sluice/podman"
	"sluice/testenv"
)

// TestHairpin: the ports of replicas send packets back where they came from if
// these are translated on the bridge; the ports of others are left alone.
func TestHairpin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := bounded(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.89.80.0/24", "--subnet", "fd80::/64", "mirror")
	h.pod.CLI(t, "run", "-d", "--network", "mirror", "--name", "stranger", "--env", "NEVER_LISTEN=1", testenv.Image)
	spec := podman.Spec{Service: "m", Image: testenv.Image, Port: 8080, Network: "mirror", Pull: "never"}
	for i := 1; i <= 2; i++ { // both ways up
		_, err := h.c.Create(ctx, spec, i)
		ok(t, err)
		name := podman.Name("m", i)
		if i == 1 {
			made(t, "init")(h.c.Init(ctx, name))
			continue
		}
		made(t, "start")(h.c.Start(ctx, name))
	}
	n, err := h.c.Network(ctx, "mirror")
	ok(t, err)
	want := 0
	if b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables"); err == nil && strings.TrimSpace(string(b)) == "1" {
		want = 2
	}
	ports := h.ns.Run(t, "ip", "-d", "link", "show", "master", n.Bridge)
	on, off := strings.Count(ports, "hairpin on"), strings.Count(ports, "hairpin off")
	if on != want || on+off != 3 {
		t.Errorf("%d ports of 3 in hairpin mode, want %d:\n%s", on, want, ports)
	}
}
