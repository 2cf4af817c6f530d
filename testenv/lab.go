package testenv

import (
	"fmt"
	"net/netip"
)

// Lab is a host and one client joined by a veth pair, both ends named eth0. The
// client's default routes lead to the host, so that an address put on the
// host's lo is reached from it. The host forwards IPv4 and IPv6.
type Lab struct {
	Client, Host             *NS
	ClientAddr4, ClientAddr6 netip.Addr // 10.99.0.2, fd99::2
	HostAddr4, HostAddr6     netip.Addr // 10.99.0.1, fd99::1
}

// NewLab makes a Lab that is taken down when t ends.
func NewLab(t TB) *Lab {
	t.Helper()
	l := &Lab{
		Client:      NewNS(t, "client"),
		Host:        NewNS(t, "host"),
		ClientAddr4: netip.MustParseAddr("10.99.0.2"),
		ClientAddr6: netip.MustParseAddr("fd99::2"),
		HostAddr4:   netip.MustParseAddr("10.99.0.1"),
		HostAddr6:   netip.MustParseAddr("fd99::1"),
	}
	l.Host.Sysctl(t, "net.ipv4.ip_forward", "1")
	l.Host.Sysctl(t, "net.ipv6.conf.all.forwarding", "1")
	l.Host.IP(t,
		"link add eth0 type veth peer name eth0 netns "+l.Client.Path(),
		fmt.Sprintf("addr add %s/24 dev eth0", l.HostAddr4),
		fmt.Sprintf("addr add %s/64 dev eth0 nodad", l.HostAddr6),
		"link set eth0 up",
	)
	l.Client.IP(t,
		fmt.Sprintf("addr add %s/24 dev eth0", l.ClientAddr4),
		fmt.Sprintf("addr add %s/64 dev eth0 nodad", l.ClientAddr6),
		"link set eth0 up",
		fmt.Sprintf("route add default via %s", l.HostAddr4),
		fmt.Sprintf("route add ::/0 via %s", l.HostAddr6),
	)
	return l
}

// BackendNet is a bridge in a host namespace with plain namespaces on it, for
// tests that need backends but no Podman.
type BackendNet struct {
	Bridge       string     // device in the host: backends0
	Addr4, Addr6 netip.Addr // of the bridge: 10.98.0.1, fd98::1
	Backends     []*Backend
}

// Backend is a namespace on a BackendNet.
type Backend struct {
	*NS
	Addr4, Addr6 netip.Addr // the first backend is 10.98.0.11, fd98::11
}

// NewBackendNet makes a bridge with n backends (at most 200) whose default
// routes lead to the host.
func NewBackendNet(t TB, host *NS, n int) *BackendNet {
	t.Helper()
	if n < 0 || n > 200 {
		t.Fatalf("backend net of %d backends", n)
	}
	b := &BackendNet{
		Bridge: "backends0",
		Addr4:  netip.MustParseAddr("10.98.0.1"),
		Addr6:  netip.MustParseAddr("fd98::1"),
	}
	lines := []string{
		"link add backends0 type bridge",
		fmt.Sprintf("addr add %s/24 dev backends0", b.Addr4),
		fmt.Sprintf("addr add %s/64 dev backends0 nodad", b.Addr6),
		"link set backends0 up",
	}
	for i := range n {
		be := &Backend{
			NS: NewNS(t, fmt.Sprintf("backend%d", i)),
			// The last part reads alike in both families: .11 and ::11.
			Addr4: netip.MustParseAddr(fmt.Sprintf("10.98.0.%d", 11+i)),
			Addr6: netip.MustParseAddr(fmt.Sprintf("fd98::%d", 11+i)),
		}
		b.Backends = append(b.Backends, be)
		lines = append(lines,
			fmt.Sprintf("link add backend%d type veth peer name eth0 netns %s", i, be.Path()),
			fmt.Sprintf("link set backend%d master backends0 up", i),
		)
	}
	host.IP(t, lines...)
	for _, be := range b.Backends {
		be.IP(t,
			fmt.Sprintf("addr add %s/24 dev eth0", be.Addr4),
			fmt.Sprintf("addr add %s/64 dev eth0 nodad", be.Addr6),
			"link set eth0 up",
			fmt.Sprintf("route add default via %s", b.Addr4),
			fmt.Sprintf("route add ::/0 via %s", b.Addr6),
		)
	}
	return b
}
