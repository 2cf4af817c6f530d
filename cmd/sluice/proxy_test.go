package main

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"sluice/cmd/internal/admin"
	"sluice/testenv"
)

// TestProxyHeader: an application that closes every connection without a PROXY
// header gets one with each, cold and warm, and hears who the client is; health
// checks say that they are the proxy's own.
func TestProxyHeader(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	text := ""
	checks := map[string]string{"v1": "http", "v2": "http", "tcp": "tcp"}
	ports := map[string]int{"v1": 81, "v2": 82, "tcp": 83}
	for name, check := range checks {
		version := strings.Replace(name, "tcp", "v2", 1)
		text += fmt.Sprintf("[service.%s]\nlisten = [\"%s:%d/tcp\", \"[2001:db8::10]:%[3]d/tcp\"]\nforward = \"proxy\"\nproxy_protocol = %[4]q\n"+
			"container = { image = %[5]q, port = 81, pull = \"never\", stop_timeout = \"2s\", env = { PORT = \"0\", PROXY_PORT = \"81\" } }\n"+
			"scale = { idle = \"1s\" }\nhealth = { type = %[6]q, interval = \"100ms\" }\n",
			name, address, ports[name], version, testenv.Image, check)
	}
	d := h.start(t, h.configure(t, text))
	for name, check := range checks {
		container := "sluice-" + name + "-1"
		for _, how := range []string{"cold", "warm"} {
			for at, want := range map[string]netip.Addr{address: h.ClientAddr4, "2001:db8::10": h.ClientAddr6} {
				addr := netip.AddrPortFrom(netip.MustParseAddr(at), uint16(ports[name])).String()
				if got := testenv.WhoAnswered(t, h.Client, addr); got.Remote.Addr() != want {
					t.Errorf("%s, %s at %s: the application takes %s for its client, it is %s", name, how, at, got.Remote, want)
				}
			}
		}
		// Its own steady checks keep the replica healthy.
		own := regexp.MustCompile(`(?m)^proxy 81 own$`)
		log := ""
		testenv.Eventually(t, patient, func() (bool, string) {
			log = h.pod.ContainerLogs(t, container)
			return check != "http" || len(own.FindAllString(log, -1)) > 2, "the container's log has no checks: " + log
		})
		// An attempt that ran out of time may have ended before it said anything.
		if strings.Count(log, "proxy 81 none") > 2 && check == "http" {
			t.Errorf("%s: a connection without a header: %s", name, log)
		}
		st, err := admin.Dial(d.admin()).Status(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if s := st.Services[0]; s.Relayed != 4 || s.HandedOver != 0 || s.LastError != "" {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// TestProxyHeaderFirst: where the kernel forwards and handover = "relay", the
// first connection is relayed, and has the header that proxy_protocol asks for.
func TestProxyHeaderFirst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.AddAddr(t, "2001:db8::10/128", "lo")
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	text := ""
	ports := map[string]int{"v1": 81, "v2": 82}
	for version, port := range ports {
		text += fmt.Sprintf("[service.%s]\nlisten = [\"%s:%d/tcp\", \"[2001:db8::10]:%[3]d/tcp\"]\nhandover = \"relay\"\nproxy_protocol = %[1]q\n"+
			"container = { image = %[4]q, port = 81, pull = \"never\", stop_timeout = \"2s\", network = \"dual\", env = { PORT = \"0\", PROXY_PORT = \"81\" } }\n"+
			"scale = { idle = \"5m\" }\n", version, address, port, testenv.Image)
	}
	d := h.start(t, h.configure(t, text))
	for version, port := range ports {
		for at, want := range map[string]netip.Addr{address: h.ClientAddr4, "2001:db8::10": h.ClientAddr6} {
			addr := netip.AddrPortFrom(netip.MustParseAddr(at), uint16(port)).String()
			if got := testenv.WhoAnswered(t, h.Client, addr); got.Remote.Addr() != want {
				t.Errorf("%s at %s: the application takes %s for its client, it is %s", version, at, got.Remote, want)
			}
			// The next is the kernel's, which writes no headers.
			d.untilReady(t, version, 1)
			ctx, cancel := context.WithTimeout(t.Context(), patient)
			if got, err := testenv.Who(ctx, h.Client, addr); err == nil {
				t.Errorf("%s at %s: the second connection was relayed as well: %+v", version, at, got)
			}
			cancel()
			h.must(t, "drain", version)
			testenv.Eventually(t, patient, func() (bool, string) {
				st, err := admin.Dial(d.admin()).Status(t.Context(), version)
				return err == nil && asleep(st.Services[0]), fmt.Sprint(version, " is not asleep: ", st, err)
			})
		}
		st, err := admin.Dial(d.admin()).Status(t.Context(), version)
		if err != nil {
			t.Fatal(err)
		}
		if s := st.Services[0]; s.Relayed != 2 || s.HandedOver != 0 {
			t.Errorf("%s: %+v", version, s)
		}
	}
}
