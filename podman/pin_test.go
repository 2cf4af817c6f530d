package podman

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"sluice/testenv"
)

// TestPin: a bridge that is made again, as with every start of the only
// container on it, is given its address again; nothing is kept of the old one.
func TestPin(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "pin")
	var n *neighbours
	if err := ns.Do(func() (err error) { n, err = openNeighbours(); return err }); err != nil {
		t.Fatal(err)
	}
	defer n.close()
	address := func() string {
		_, after, _ := strings.Cut(ns.Run(t, "ip", "-o", "link", "show", "dev", "br0"), "link/ether ")
		mac, _, _ := strings.Cut(after, " ")
		return mac
	}
	for i := range 3 {
		ns.IP(t, "link add br0 type bridge", "addr add 10.0.0.1/24 dev br0", "link set br0 up",
			"link add high0 address 02:00:00:00:00:03 type veth peer name high1", "link set high0 master br0")
		before := address()
		if err := n.set(netip.MustParseAddr("10.0.0.2"), net.HardwareAddr{2, 0, 0, 0, 0, 9}); err != nil {
			t.Fatal(err)
		}
		ns.IP(t, "link add low0 address 02:00:00:00:00:01 type veth peer name low1", "link set low0 master br0")
		if after := address(); before == "" || after != before {
			t.Errorf("bridge %d had %q, now %q", i, before, after)
		}
		ns.IP(t, "link del br0", "link del high0", "link del low0")
	}
	if len(n.pinned) != 1 {
		t.Errorf("of one bridge is kept: %v", n.pinned)
	}
}
