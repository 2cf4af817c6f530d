package nft

import (
	"errors"
	"fmt"
	"os"

	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The one statement that google/nftables cannot say is written by hand here:
// "reset tcp option timestamp" (Linux 5.18), which overwrites the option with
// no-ops. An exthdr expression means this when it has neither a source nor a
// destination register, and the library always writes one.
func stripTimestamp() ([]byte, error) {
	const tcpOptTimestamp = 8
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXTHDR_TYPE, Data: []byte{tcpOptTimestamp}},
		{Type: unix.NFTA_EXTHDR_OP, Data: []byte{0, 0, 0, unix.NFT_EXTHDR_OP_TCPOPT}},
	})
	if err != nil {
		return nil, fmt.Errorf("encode timestamp rule: %w", err)
	}
	return netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_EXPR_NAME, Data: []byte("exthdr\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data},
	})
}

// stripRules match a SYN to a cold service, which loses its timestamp option.
// Timestamps differ from one connection to the next, and a connection that is
// to be handed over must fit another. They are rules of a chain that only SYNs
// come to.
func stripRules(f family) [][]expr.Any {
	return [][]expr.Any{
		rule(concat(daddr(f), l4proto(), dport()), in(setCold+f.name)),
		rule(concat(wild(f, daddr(f)), l4proto(), dport()), in(setCold+f.name),
			concat(daddr(f), l4proto(), dport()), notIn(setKnown+f.name), isLocal()),
	}
}

// stripExprs is the whole rule's list of expressions.
func stripExprs(match []expr.Any) ([]byte, error) {
	var list []netlink.Attribute
	for _, e := range match {
		b, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return nil, fmt.Errorf("encode timestamp rule: %w", err)
		}
		list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	b, err := stripTimestamp()
	if err != nil {
		return nil, err
	}
	list = append(list, netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	return netlink.MarshalAttributes(list)
}

// addStrip puts the rules into their chains in a transaction of their own.
func addStrip(conn *netlink.Conn) error {
	var msgs []netlink.Message
	for _, f := range families() {
		for _, match := range stripRules(f) {
			m, err := stripMessage(chainSYN+f.name, match)
			if err != nil {
				return err
			}
			msgs = append(msgs, m)
		}
	}
	if err := batch(conn, msgs); err != nil {
		return fmt.Errorf("add timestamp rule: %w", err)
	}
	return nil
}

func stripMessage(chain string, match []expr.Any) (m netlink.Message, err error) {
	exprs, err := stripExprs(match)
	if err != nil {
		return m, err
	}
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_RULE_TABLE, Data: []byte(Name + "\x00")},
		{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")},
		{Type: unix.NLA_F_NESTED | unix.NFTA_RULE_EXPRESSIONS, Data: exprs},
	})
	if err != nil {
		return m, fmt.Errorf("encode timestamp rule: %w", err)
	}
	return netlink.Message{
		Header: netlink.Header{
			Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE,
			Flags: netlink.Request | netlink.Create | netlink.Append | netlink.Acknowledge,
		},
		Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
	}, nil
}

// batch sends messages, each of which asks for an acknowledgement, as one
// transaction.
func batch(conn *netlink.Conn, msgs []netlink.Message) error {
	bound := func(t netlink.HeaderType) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: t, Flags: netlink.Request},
			Data:   []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	all := append([]netlink.Message{bound(unix.NFNL_MSG_BATCH_BEGIN)}, msgs...)
	all = append(all, bound(unix.NFNL_MSG_BATCH_END))
	if _, err := conn.SendMessages(all); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	// One answer comes for each message, whether the batch holds or not, but a
	// single one if it is refused at its door, and fewer if the kernel has no
	// memory for them. All that come are there by now: nothing is waited for.
	var errs []error
	for n := 0; ; n++ {
		switch more, err := readable(conn); {
		case err != nil:
			return errors.Join(append(errs, err)...)
		case !more && n < len(msgs) && len(errs) == 0:
			return fmt.Errorf("%d answers to %d messages", n, len(msgs))
		case !more:
			return errors.Join(errs...)
		}
		if _, err := conn.Receive(); err != nil {
			errs = append(errs, err)
		}
	}
}

// readable tells whether there is something to receive.
func readable(conn *netlink.Conn) (ready bool, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false, err
	}
	cerr := raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // a descriptor
		var n int
		n, e := unix.Poll(p, 0)
		for errors.Is(e, unix.EINTR) {
			n, e = unix.Poll(p, 0)
		}
		ready, err = n > 0, e
	})
	return ready, errors.Join(cerr, os.NewSyscallError("poll", err))
}
