package alarm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"
)

// Of linux/netfilter/nfnetlink_log.h.
const (
	msgPacket = 0 // NFULNL_MSG_PACKET
	msgConfig = 1 // NFULNL_MSG_CONFIG

	cfgCmd    = 1 // NFULA_CFG_CMD
	cfgMode   = 2 // NFULA_CFG_MODE
	cfgBuffer = 3 // NFULA_CFG_NLBUFSIZ
	cfgQueue  = 5 // NFULA_CFG_QTHRESH

	cmdBind    = 1 // NFULNL_CFG_CMD_BIND
	cmdUnbind  = 2 // NFULNL_CFG_CMD_UNBIND
	copyPacket = 2 // NFULNL_COPY_PACKET

	attrPayload = 9 // NFULA_PAYLOAD
)

const (
	// copied is how much of a packet is: the largest IPv4 header and ports, or
	// IPv6 with more extension headers than anyone sends.
	copied = 128

	// messageSize is what the kernel reserves for a message at least. Its
	// default is a page, and would be all of what the read buffer counts.
	messageSize = 512

	readBuffer = 1 << 20 // bytes, about a thousand packets
)

// Alarm reads a group. Its methods but Close are for one goroutine.
type Alarm struct {
	nl    *netlink.Conn
	group uint16
	early []netlink.Message // packets that came before the group's answer
	lost  bool              // and more of them
}

// Open begins to receive what rules of the network namespace it is called in
// log to the group. A group has one reader: the error is EPERM if there is
// another, as it is without CAP_NET_ADMIN.
func Open(group uint16) (*Alarm, error) {
	a, err := open(group, readBuffer)
	if err != nil {
		return nil, fmt.Errorf("open log group %d: %w", group, err)
	}
	return a, nil
}

func open(group uint16, buffer int) (*Alarm, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	a := &Alarm{nl: nl, group: group}
	if err := nl.SetReadBuffer(buffer); err != nil {
		return nil, errors.Join(fmt.Errorf("set read buffer: %w", err), nl.Close())
	}
	if err := a.bind(); err != nil {
		return nil, errors.Join(fmt.Errorf("bind: %w", err), nl.Close())
	}
	return a, nil
}

// bind makes the socket the group's reader. Each packet is to be told at once:
// by default the kernel waits for a hundred of them, or for a second.
func (a *Alarm) bind() error {
	mode := binary.BigEndian.AppendUint32(nil, copied)
	mode = append(mode, copyPacket, 0)
	req, err := a.config(netlink.Acknowledge, []netfilter.Attribute{
		{Type: cfgCmd, Data: []byte{cmdBind}},
		{Type: cfgMode, Data: mode},
		{Type: cfgBuffer, Data: netfilter.Uint32Bytes(messageSize)},
		{Type: cfgQueue, Data: netfilter.Uint32Bytes(1)},
	})
	if err != nil {
		return err
	}
	// Not Execute: packets may come before the acknowledgement, which it does
	// not expect.
	if req, err = a.nl.Send(req); err != nil {
		return err
	}
	if err := a.nl.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	for {
		list, err := a.nl.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			// The acknowledgement may be among what was lost, but there is
			// nothing to lose for a socket that is not bound.
			a.lost = true
			return nil
		case err != nil:
			return err
		}
		for i, m := range list {
			if m.Header.Type == netlink.Error && m.Header.Sequence == req.Header.Sequence {
				a.early = append(a.early, list[i+1:]...)
				return a.nl.SetReadDeadline(time.Time{})
			}
			a.early = append(a.early, m)
		}
	}
}

func (a *Alarm) config(flags netlink.HeaderFlags, attrs []netfilter.Attribute) (netlink.Message, error) {
	return netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysULOG,
		MessageType: msgConfig,
		Flags:       netlink.Request | flags,
		ResourceID:  a.group,
	}, attrs)
}

// Close gives the group up. Run must have returned.
func (a *Alarm) Close() error {
	if err := errors.Join(a.unbind(), a.nl.Close()); err != nil {
		return fmt.Errorf("close log group %d: %w", a.group, err)
	}
	return nil
}

// unbind makes the group free at once. With the socket it would be, too, but a
// process that is just being forked has that for a moment longer.
func (a *Alarm) unbind() error {
	req, err := a.config(0, []netfilter.Attribute{{Type: cfgCmd, Data: []byte{cmdUnbind}}})
	if err != nil {
		return err
	}
	_, err = a.nl.Send(req)
	return err
}

// Run reports each TCP or UDP packet that is logged: where it goes as of where
// the rule stands, and unix.IPPROTO_TCP or unix.IPPROTO_UDP. After packets were
// lost, because Run was not running or report slow, lost is called if it is not
// nil: anyone may have been called. Both are called by the goroutine that called
// Run. It returns context.Cause(ctx) when ctx is done, and may then be called
// again.
func (a *Alarm) Run(ctx context.Context, report func(backend netip.AddrPort, proto uint8), lost func()) error {
	if err := a.nl.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("read log group: %w", err)
	}
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		_ = a.nl.SetReadDeadline(time.Unix(1, 0))
	})
	defer func() {
		if !stop() {
			<-stopped // nothing of this run shall reach into the next
		}
	}()
	tell(a.early, report)
	if a.lost && lost != nil {
		lost()
	}
	a.early, a.lost = nil, false
	for ctx.Err() == nil {
		list, err := a.nl.Receive()
		switch {
		case errors.Is(err, unix.ENOBUFS):
			if lost != nil {
				lost()
			}
			continue
		case errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil:
			continue
		case err != nil:
			return fmt.Errorf("read log group: %w", err)
		}
		tell(list, report)
	}
	return context.Cause(ctx)
}

// tell reports what messages are about.
func tell(list []netlink.Message, report func(netip.AddrPort, uint8)) {
	for _, m := range list {
		if to, proto, ok := logged(m); ok {
			report(to, proto)
		}
	}
}

// logged is where a packet goes that a message tells of.
func logged(m netlink.Message) (to netip.AddrPort, proto uint8, ok bool) {
	const genHeader = 4 // struct nfgenmsg
	if m.Header.Type != netlink.HeaderType(uint16(netfilter.NFSubsysULOG)<<8|msgPacket) || len(m.Data) < genHeader {
		return to, 0, false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[genHeader:])
	if err != nil {
		return to, 0, false
	}
	for ad.Next() {
		if ad.Type() == attrPayload {
			to, proto, ok = destination(ad.Bytes())
		}
	}
	return to, proto, ok && ad.Err() == nil
}
