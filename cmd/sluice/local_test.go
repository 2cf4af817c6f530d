package main

import (
	"context"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestLocal: a service at every local address answers clients outside, on the
// host by any of its addresses, and containers beside and in the service, cold
// and warm.
func TestLocal(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	text := strings.Replace(web("idle = \"1s\"", "", ""), address+":80/tcp", ":80/tcp", 1)
	text = strings.Replace(text, "port = 8080", "port = 8080\nnetwork = \"dual\"", 1)
	d := h.start(t, h.configure(t, text))
	places := []struct {
		from *testenv.NS
		addr string
	}{
		{h.Client, address + ":80"},
		{h.Client, h.HostAddr4.String() + ":80"},
		{h.Client, "[" + h.HostAddr6.String() + "]:80"},
		{h.Host, address + ":80"},
		{h.Host, h.HostAddr4.String() + ":80"},
		{h.Host, "127.0.0.1:80"},
		{h.Host, "[::1]:80"},
		{h.Host, "[" + h.HostAddr6.String() + "]:80"},
	}
	for _, p := range places {
		for _, how := range []string{"cold", "warm"} {
			ctx, cancel := context.WithTimeout(context.Background(), patient/2)
			got, err := testenv.Who(ctx, p.from, p.addr)
			cancel()
			if err != nil {
				t.Errorf("%s from %s, %s: %v", p.addr, p.from.Name, how, err)
				continue
			}
			t.Logf("%s from %s, %s: the container sees %s", p.addr, p.from.Name, how, got.Remote)
			d.until(t, "warm", func(st control.ServiceStatus) bool { return st.Phase != "waking" })
		}
		d.until(t, "sleep", asleep)
	}
}
