package podman_test

import (
	"context"
	"testing"

	"sluice/podman"
	"sluice/testenv"
)

// TestBridge: that a bridge is deleted is told, and which replicas it has cut
// off; a prepared one is too. Those on another bridge are not, nor the dead.
func TestBridge(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := bounded(t)
	nets := map[string]string{"whole": "10.89.81.0/24", "broken": "10.89.82.0/24"}
	var list []podman.Replica
	for name, subnet := range nets {
		h.pod.CLI(t, "network", "create", "--subnet", subnet, "--disable-dns", name)
		for i := 1; i <= 2; i++ {
			_, err := h.c.Create(ctx, podman.Spec{Service: name, Network: name, Image: testenv.Image, Port: 8080, Pull: "never"}, i)
			ok(t, err)
			up := h.c.Start
			if i == 2 {
				up = h.c.Init
			}
			list = append(list, made(t, "start")(up(ctx, podman.Name(name, i))))
		}
	}
	n, err := h.c.Network(ctx, "broken")
	ok(t, err)
	cut := func(want int) {
		t.Helper()
		some, err := h.c.Cut(list)
		ok(t, err)
		if len(some) != want {
			t.Errorf("cut off are %+v, want %d", some, want)
		}
		for _, r := range some {
			if r.Service != "broken" {
				t.Errorf("cut off is %+v", r)
			}
		}
	}
	cut(0)

	for range 2 { // it can be listened to again
		watch, end := context.WithCancel(ctx)
		gone, done := make(chan string, 1), make(chan error, 1)
		go func() {
			done <- h.c.WatchBridges(watch, func(bridge string) {
				select {
				case gone <- bridge:
				default:
				}
			})
		}()
		for told := false; !told; { // it may not listen yet
			h.ns.IP(t, "link add other0 type veth peer name other1", "link del other0", "link add other2 type bridge", "link del other2")
			select {
			case bridge := <-gone:
				if told = true; bridge != "other2" {
					t.Errorf("bridge %s is not deleted", bridge)
				}
			default:
			}
		}
		end()
		ok(t, <-done)
	}
	h.ns.IP(t, "link del "+n.Bridge)
	cut(2)
	for _, r := range list {
		ok(t, h.c.Remove(ctx, r.Name))
	}
	cut(0)
}
