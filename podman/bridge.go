package podman

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// WatchBridges calls gone with the name of each bridge that is deleted, and with
// "" when such news were lost. Podman itself deletes one with the last container
// on it. It returns nil once ctx ends. One call at a time.
func (c *Client) WatchBridges(ctx context.Context, gone func(bridge string)) error {
	if err := c.neigh.listen(ctx, gone); err != nil {
		return fmt.Errorf("watch bridges: %w", err)
	}
	return nil
}

// Cut returns those of the replicas that no packet reaches any more: what leads
// to them is no port of a bridge, as after somebody has deleted it. Podman does
// not know, and does not connect them again. Where its process numbers are not
// ours it is none.
func (c *Client) Cut(replicas []Replica) (cut []Replica, err error) {
	if !c.local || len(replicas) == 0 {
		return nil, nil
	}
	ports, err := c.neigh.ports(0)
	if err != nil {
		return nil, fmt.Errorf("list network interfaces: %w", err)
	}
	leads, joined := map[int32]bool{}, map[int32]bool{}
	for _, p := range ports {
		leads[p.ns] = true
		joined[p.ns] = joined[p.ns] || p.master != 0
	}
	for _, r := range replicas {
		if r.PID <= 0 {
			continue
		}
		ns, err := c.neigh.nsid(r.PID)
		switch {
		case err != nil: // it has ended, or its namespace has no link here
		case leads[ns] && !joined[ns]:
			cut = append(cut, r)
		}
	}
	return cut, nil
}

// listen calls gone for each bridge that is deleted.
func (n *neighbours) listen(ctx context.Context, gone func(bridge string)) (err error) {
	if err := n.news.JoinGroup(unix.RTNLGRP_LINK); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = n.news.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		err = errors.Join(err, n.news.LeaveGroup(unix.RTNLGRP_LINK))
	}()
	for {
		msgs, err := n.news.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			gone("")
		case errors.Is(err, os.ErrDeadlineExceeded): // of an earlier call
			if err := n.news.SetReadDeadline(time.Time{}); err != nil {
				return err
			}
		case err != nil:
			return err
		}
		for _, m := range msgs {
			if name := deleted(m); name != "" {
				gone(name)
			}
		}
	}
}

// deleted is the name of the bridge that a message says is deleted, if any.
func deleted(m netlink.Message) (name string) {
	// In the family AF_BRIDGE a port has left its bridge.
	if m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg || m.Data[0] != unix.AF_UNSPEC {
		return ""
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return ""
	}
	bridge := false
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			name = ad.String()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					bridge = bridge || ad.Type() == unix.IFLA_INFO_KIND && ad.String() == "bridge"
				}
				return nil
			})
		}
	}
	if ad.Err() != nil || !bridge {
		return ""
	}
	return name
}
