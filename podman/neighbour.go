package podman

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/jsimonetti/rtnetlink/v2"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// neighbours keeps the kernel's ARP and NDP entries for replicas right. Podman
// gives an address that one container gave up to the next, which has another
// MAC; for as long as the kernel holds the old entry for good (30 s and more,
// 43 s were seen) connects to the newcomer hang.
//
// The sockets stay in the network namespace they were opened in.
type neighbours struct {
	conn *rtnetlink.Conn
	raw  *netlink.Conn // for what rtnetlink does not know
	news *netlink.Conn // of links, see listen

	mu     sync.Mutex
	pinned map[string]pinned // by name: each time that a bridge is made it has another index
}

// pinned is a bridge that was given its hardware address.
type pinned struct {
	link uint32
	mac  string
}

func openNeighbours() (*neighbours, error) {
	conn, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open rtnetlink socket: %w", err)
	}
	raw, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink socket: %w", err), conn.Close())
	}
	news, err := netlink.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open rtnetlink socket: %w", err), conn.Close(), raw.Close())
	}
	return &neighbours{conn: conn, raw: raw, news: news, pinned: map[string]pinned{}}, nil
}

func (n *neighbours) close() error {
	return errors.Join(n.conn.Close(), n.raw.Close(), n.news.Close())
}

// set makes addr known at mac on the link that leads to it, or forgets what is
// known of it if mac is nil. Setting is better than forgetting: the first SYN
// need not wait for an ARP exchange, whose first request is lost with one
// second's delay if the bridge port is not forwarding yet.
func (n *neighbours) set(addr netip.Addr, mac net.HardwareAddr) error {
	link, err := n.link(addr)
	if err != nil {
		return err
	}
	if err := n.pin(link); err != nil {
		return fmt.Errorf("keep the bridge's hardware address: %w", err)
	}
	msg := &rtnetlink.NeighMessage{
		Family: family(addr),
		Index:  link,
		Type:   unix.RTN_UNICAST,
		// In use at once, and asked for at once: should it be wrong, because
		// the replica is gone already and another has its address, the kernel
		// drops it after three seconds.
		State:      unix.NUD_PROBE,
		Attributes: &rtnetlink.NeighAttributes{Address: addr.AsSlice(), LLAddress: mac},
	}
	if len(mac) == 0 {
		msg.State = unix.NUD_NONE
		_, err = n.conn.Execute(msg, unix.RTM_DELNEIGH, netlink.Request|netlink.Acknowledge)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		return err
	}
	_, err = n.conn.Execute(msg, unix.RTM_NEWNEIGH,
		netlink.Request|netlink.Acknowledge|netlink.Create|netlink.Replace)
	return err
}

// pin gives a bridge the hardware address that it has. Until somebody does, a
// bridge has the lowest of its ports', which changes when a container with a
// lower one starts or the one with the lowest ends. The other containers then
// send their answers to an address that nobody has any more, for as long as
// their entry of the gateway lasts: 40 s and more.
func (n *neighbours) pin(link uint32) error {
	l, err := n.conn.Link.Get(link)
	if err != nil {
		return err
	}
	a := l.Attributes
	if a == nil || a.Info == nil || a.Info.Kind != "bridge" {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	now := pinned{link, a.Address.String()}
	if n.pinned[a.Name] == now {
		return nil
	}
	_, err = n.conn.Execute(&rtnetlink.LinkMessage{
		Family: unix.AF_UNSPEC, Index: link,
		Attributes: &rtnetlink.LinkAttributes{Address: a.Address},
	}, unix.RTM_NEWLINK, netlink.Request|netlink.Acknowledge)
	if err != nil {
		return err
	}
	n.pinned[a.Name] = now
	return nil
}

// link is the index of the interface that addr is a direct neighbour on.
func (n *neighbours) link(addr netip.Addr) (uint32, error) {
	// One route, not a dump: no NLM_F_DUMP, and the address in full length.
	answer, err := n.conn.Execute(&rtnetlink.RouteMessage{
		Family:     uint8(family(addr)),
		DstLength:  uint8(addr.BitLen()),
		Attributes: rtnetlink.RouteAttributes{Dst: addr.AsSlice()},
	}, unix.RTM_GETROUTE, netlink.Request)
	if err != nil {
		return 0, fmt.Errorf("find route: %w", err)
	}
	for _, m := range answer {
		r, ok := m.(*rtnetlink.RouteMessage)
		switch {
		case !ok:
		case r.Attributes.Gateway != nil:
			return 0, fmt.Errorf("address is behind gateway %v, not on a bridge of this host", r.Attributes.Gateway)
		case r.Attributes.OutIface != 0:
			return r.Attributes.OutIface, nil
		}
	}
	return 0, errors.New("find route: none")
}

func family(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
