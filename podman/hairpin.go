package podman

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// hairpin lets the bridge send a packet out by the port that it came in by, for
// the port of the replica with this process, on the bridge that leads to addr: a
// program that calls its own service may be given itself. A routed packet may do
// so anyway. But where bridged packets pass through iptables they are translated
// on their way over the bridge (br_netfilter, bridge-nf-call-iptables = 1), which
// sends none back by itself.
//
// A port in this mode also gives its own broadcasts back. That does no harm to
// duplicate address detection, which knows its own since Linux 4.10 (RFC 7527).
func (n *neighbours) hairpin(pid int, addr netip.Addr) error {
	bridge, err := n.link(addr)
	if err != nil {
		return err
	}
	port, err := n.port(bridge, pid)
	if err != nil {
		return err
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(unix.IFLA_PROTINFO, func(ae *netlink.AttributeEncoder) error {
		ae.Uint8(unix.IFLA_BRPORT_MODE, 1)
		return nil
	})
	header := make([]byte, unix.SizeofIfInfomsg)
	header[0] = unix.AF_BRIDGE
	binary.NativeEndian.PutUint32(header[4:], port) // ifi_index
	if _, err := n.execute(unix.RTM_SETLINK, netlink.Acknowledge, header, ae); err != nil {
		return fmt.Errorf("set mode of bridge port: %w", err)
	}
	return nil
}

// translated tells whether packets are translated on their way over a bridge.
func translated() bool {
	for _, key := range []string{"iptables", "ip6tables"} {
		b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-" + key)
		if err == nil && !bytes.Equal(bytes.TrimSpace(b), []byte("0")) {
			return true
		}
	}
	return false // also where there is no br_netfilter
}

// port is the port of a bridge behind which a process is. The namespace of the
// process is asked for by name only: to enter it takes more than CAP_NET_ADMIN.
func (n *neighbours) port(bridge uint32, pid int) (uint32, error) {
	ports, err := n.ports(bridge)
	if err != nil {
		return 0, fmt.Errorf("list bridge ports: %w", err)
	}
	// Asked for afterwards: to list a port numbers the namespace behind it.
	ns, err := n.nsid(pid)
	if err != nil {
		return 0, fmt.Errorf("find network namespace of process %d: %w", pid, err)
	}
	for _, p := range ports {
		if p.ns == ns && p.master == bridge {
			return p.index, nil
		}
	}
	return 0, fmt.Errorf("no port of bridge %d leads to process %d", bridge, pid)
}

// port is an interface that leads to another namespace.
type port struct {
	ns            int32 // its number
	index, master uint32
}

// ports are those of a bridge, or all there are for bridge 0, joined or not.
func (n *neighbours) ports(bridge uint32) (list []port, err error) {
	ae := netlink.NewAttributeEncoder()
	if bridge != 0 {
		ae.Uint32(unix.IFLA_MASTER, bridge)
	}
	answer, err := n.execute(unix.RTM_GETLINK, netlink.Dump, make([]byte, unix.SizeofIfInfomsg), ae)
	if err != nil {
		return nil, err
	}
	for _, m := range answer {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
		if err != nil {
			return nil, err
		}
		p, far := port{index: binary.NativeEndian.Uint32(m.Data[4:])}, false // ifi_index
		for ad.Next() {
			switch ad.Type() {
			case unix.IFLA_MASTER:
				p.master = ad.Uint32()
			case unix.IFLA_LINK_NETNSID:
				p.ns, far = ad.Int32(), true
			}
		}
		if err := ad.Err(); err != nil {
			return nil, err
		}
		if far {
			list = append(list, p)
		}
	}
	return list, nil
}

// nsid is the number by which this namespace knows that of a process.
func (n *neighbours) nsid(pid int) (int32, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(unix.NETNSA_PID, uint32(pid)) //nolint:gosec // positive
	const header = 4                        // struct rtgenmsg, padded
	answer, err := n.execute(unix.RTM_GETNSID, 0, make([]byte, header), ae)
	if err != nil {
		return 0, err
	}
	for _, m := range answer {
		if m.Header.Type != unix.RTM_NEWNSID || len(m.Data) < header {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[header:])
		if err != nil {
			return 0, err
		}
		for ad.Next() {
			if ad.Type() == unix.NETNSA_NSID {
				if ns := ad.Int32(); ns != unix.NETNSA_NSID_NOT_ASSIGNED {
					return ns, nil
				}
			}
		}
		if err := ad.Err(); err != nil {
			return 0, err
		}
	}
	return 0, errors.New("none")
}

// execute is for messages, or parts of them, that rtnetlink does not know.
func (n *neighbours) execute(typ netlink.HeaderType, flags netlink.HeaderFlags, header []byte, ae *netlink.AttributeEncoder) ([]netlink.Message, error) {
	b, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	return n.raw.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: netlink.Request | flags},
		Data:   append(header, b...),
	})
}
