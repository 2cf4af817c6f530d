package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"sluice/testenv"
)

// bridgeNF is whether packets on a bridge pass through iptables; on hosts
// without the module br_netfilter the setting is not there.
const bridgeNF = "net.bridge.bridge-nf-call-ip%stables"

// TestContainers: containers reach a service, cold and warm, by TCP and UDP,
// IPv4 and IPv6: one beside the replica, one on another network, one on an
// isolated network, and the replica itself. Whether packets on bridges are
// translated is a setting of the host.
func TestContainers(t *testing.T) {
	t.Parallel()
	settings := []string{"0", "1"}
	if _, err := os.Stat("/proc/sys/net/bridge"); err != nil {
		settings = []string{""} // the module is not there
	}
	for _, setting := range settings {
		t.Run("bridged="+setting, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			if setting != "" {
				h.Host.Sysctl(t, fmt.Sprintf(bridgeNF, ""), setting)
				h.Host.Sysctl(t, fmt.Sprintf(bridgeNF, "6"), setting)
			}
			callContainers(t, h)
		})
	}
}

// errand is a container that calls a service.
type errand struct {
	from, proto string
	service     netip.Addr
	port        int
}

func (c errand) name() string { return fmt.Sprintf("s%d", c.port) }
func (c errand) addr() string { return netip.AddrPortFrom(c.service, uint16(c.port)).String() }
func (c errand) String() string {
	return fmt.Sprintf("%s from %s to %s", c.proto, c.from, c.addr())
}

func callContainers(t *testing.T, h *host) {
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	nets := []string{"near", "far", "alone"}
	gateways := h.networks(t, nets...)
	var calls []errand
	text := ""
	for _, from := range nets {
		for _, proto := range []string{"tcp", "udp"} {
			for _, service := range []string{address, "2001:db8::10"} {
				c := errand{from, proto, netip.MustParseAddr(service), 100 + len(calls)}
				calls = append(calls, c)
				env := ""
				if proto == "udp" {
					env = `PORT = "0", UDP_PORT = "8080"`
				}
				text += fmt.Sprintf("[service.%s]\nlisten = [\"%s/%s\"]\nstart = { timeout = \"2m\" }\n"+
					"container = { image = %q, port = 8080, pull = \"never\", stop_timeout = \"1s\", network = \"near\", env = { NAME = %[1]q, %[5]s } }\n",
					c.name(), c.addr(), proto, testenv.Image, env)
			}
		}
	}
	d := h.start(t, h.configure(t, text))
	var wg sync.WaitGroup
	for _, c := range calls {
		ns := h.pod.ContainerNS(t, c.from)
		wg.Go(func() {
			for _, how := range []string{"cold", "warm"} {
				if how == "warm" {
					d.untilReady(t, c.name(), 1)
				}
				got, err := ask(t, ns, c.proto, c.addr())
				if err != nil {
					t.Errorf("%s, %s: %v", c, how, err)
					return
				}
				// Podman masquerades what leaves a network, and so does sluice
				// what comes back to its own. A connection that was handed over
				// is neither.
				want := netip.PrefixFrom(gateways[c.service.Is4()], c.service.BitLen())
				if how == "cold" && c.proto == "tcp" && c.from != "near" {
					want = subnet(nets, c.from, c.service.Is4())
				}
				if !want.Contains(got.Remote.Addr()) {
					t.Errorf("%s, %s: the application sees %s, want %s", c, how, got.Remote, want)
				}
				if got.Name != c.name() {
					t.Errorf("%s, %s: %s answered", c, how, got.Name)
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, c := range calls {
		if c.from != "near" {
			continue
		}
		self := h.pod.ContainerNS(t, "sluice-"+c.name()+"-1")
		for range 3 {
			got, err := ask(t, self, c.proto, c.addr())
			if err != nil {
				t.Errorf("%s, from itself: %v", c, err)
				break
			}
			if got.Name != c.name() || got.Remote.Addr() != gateways[c.service.Is4()] {
				t.Errorf("%s, from itself: %s answered and saw %s", c, got.Name, got.Remote)
			}
		}
	}
}

// subnet is that of one of the networks that networks has made.
func subnet(names []string, name string, v4 bool) netip.Prefix {
	i := slices.Index(names, name)
	if v4 {
		return netip.MustParsePrefix(fmt.Sprintf("10.77.%d.0/24", i))
	}
	return netip.MustParsePrefix(fmt.Sprintf("fd77:%d::/64", i))
}

// networks makes networks of both families, "alone" and "shut" isolated ones,
// each with a container of the same name, and returns the addresses of the
// first one's bridge by whether they are IPv4.
func (h *host) networks(t *testing.T, names ...string) map[bool]netip.Addr {
	t.Helper()
	for _, name := range names {
		args := []string{"network", "create", "--ipv6", "--subnet", subnet(names, name, true).String(), "--subnet", subnet(names, name, false).String()}
		if name == "alone" || name == "shut" {
			args = append(args, "--opt", "isolate=true")
		}
		h.pod.CLI(t, append(args, name)...)
		h.pod.CLI(t, "run", "-d", "--network", name, "--name", name, "--env", "NEVER_LISTEN=1", testenv.Image)
	}
	return map[bool]netip.Addr{true: netip.MustParseAddr("10.77.0.1"), false: netip.MustParseAddr("fd77::1")}
}

// TestIsolated: two isolated networks do not reach each other by a service
// either, for Podman's rules drop what goes from one to the other; but they do
// through the daemon.
func TestIsolated(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	nets := []string{"shut", "alone"}
	h.networks(t, nets...)
	text := ""
	for port, forward := range map[int]string{81: "nat", 82: "proxy"} {
		text += fmt.Sprintf("[service.%s]\nlisten = [\"%s:%d/tcp\"]\nforward = %[1]q\nscale = { min = 1 }\n"+
			"container = { image = %[4]q, port = 8080, pull = \"never\", stop_timeout = \"1s\", network = \"shut\" }\n",
			forward, address, port, testenv.Image)
	}
	d := h.start(t, h.configure(t, text))
	alone := h.pod.ContainerNS(t, "alone")
	for _, port := range []string{":81", ":82"} {
		if got := testenv.WhoAnswered(t, h.Client, address+port); got.Remote.Addr() != h.ClientAddr4 {
			t.Errorf("%s from outside: the application sees %s, want %s", port, got.Remote, h.ClientAddr4)
		}
	}
	if got, want := testenv.WhoAnswered(t, alone, address+":82"), subnet(nets, "alone", true); !want.Contains(got.Remote.Addr()) {
		t.Errorf("through the daemon: the application sees %s, want %s", got.Remote, want)
	}
	d.untilReady(t, "nat", 1)
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if c, err := alone.Dial(ctx, "tcp", address+":81"); err == nil {
		_ = c.Close()
		t.Error("Podman's isolation is passed by")
	}
}
