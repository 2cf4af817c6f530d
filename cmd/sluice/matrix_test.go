package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"sluice/testenv"
)

// TestMatrix: each algorithm, over TCP and UDP, IPv4 and IPv6, for clients
// outside, on the host, and in containers beside the replicas and on another
// network: the right containers answer, and see the client by its own address,
// or by the bridge's if it is a container.
func TestMatrix(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	gateways := h.networks(t, "dual", "far")
	places := []*testenv.NS{h.Client, h.Host, h.pod.ContainerNS(t, "dual"), h.pod.ContainerNS(t, "far")}
	type cell struct {
		name, proto string
		port        int
		sticky      bool
	}
	var cells []cell
	var text strings.Builder
	for i, alg := range []string{"round-robin", "random", "least-connections", "source-hash", "maglev", "affinity"} {
		for j, proto := range []string{"tcp", "udp"} {
			c := cell{alg, proto, 100 + 2*i + j, alg == "source-hash" || alg == "affinity"}
			cells = append(cells, c)
			set, env := fmt.Sprintf("balance = %q", alg), ""
			if alg == "affinity" {
				set = `affinity = "10m"`
			}
			if proto == "udp" {
				env = `PORT = "0", UDP_PORT = "8080"`
			}
			fmt.Fprintf(&text, "[service.%[1]s-%[2]s]\nlisten = [\"%[3]s:%[4]d/%[2]s\", \"[2001:db8::10]:%[4]d/%[2]s\"]\n%[5]s\n"+
				"container = { image = %[6]q, port = 8080, pull = \"never\", stop_timeout = \"2s\", network = \"dual\", env = { %[7]s } }\n"+
				"scale = { min = 2, max = 2 }\nstart = { timeout = \"2m\" }\n", alg, proto, address, c.port, set, testenv.Image, env)
		}
	}
	d := h.start(t, h.configure(t, text.String()))
	for _, c := range cells {
		d.untilReady(t, c.name+"-"+c.proto, 2)
	}
	var wg sync.WaitGroup
	for _, c := range cells {
		for _, service := range []string{address, "2001:db8::10"} {
			for i, from := range places {
				wg.Go(func() {
					where := fmt.Sprintf("%s, %s, %s from %s", c.name, c.proto, service, from.Name)
					addr := netip.AddrPortFrom(netip.MustParseAddr(service), uint16(c.port)).String()
					seen := map[string]int{}
					for range 16 {
						got, err := ask(t, from, c.proto, addr)
						if err != nil {
							t.Errorf("%s: %v", where, err)
							return
						}
						seen[got.Name]++
						if a := got.Remote.Addr(); a.Is4() != netip.MustParseAddr(service).Is4() ||
							from == h.Client && a != h.ClientAddr4 && a != h.ClientAddr6 || i > 1 && a != gateways[a.Is4()] {
							t.Errorf("%s: the container saw %s", where, got.Remote)
							return
						}
					}
					want := 2
					if c.sticky {
						want = 1
					}
					if len(seen) != want {
						t.Errorf("%s: %v, want %d containers", where, seen, want)
					}
				})
			}
		}
	}
	wg.Wait()
}

// ask asks who serves. A datagram may be lost on a busy host, and is then sent
// again, which the log tells.
func ask(t *testing.T, from *testenv.NS, proto, addr string) (got testenv.Answer, err error) {
	if proto == "tcp" {
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		defer cancel()
		return testenv.Who(ctx, from, addr)
	}
	for range 8 {
		ctx, cancel := context.WithTimeout(context.Background(), patient/4)
		got, err = testenv.WhoUDP(ctx, from, addr)
		cancel()
		if err == nil {
			return got, nil
		}
		t.Logf("%s from %s: %v", addr, from.Name, err)
	}
	return got, err
}
