package nft

import (
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestBatch: a kernel that answers less than it should is an error and not
// waited for.
func TestBatch(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "batch")
	var conn *netlink.Conn
	if err := ns.Do(func() (err error) { conn, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); return err }); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	message := func(table string, flags netlink.HeaderFlags) netlink.Message {
		attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_TABLE_NAME, Data: []byte(table + "\x00")}})
		if err != nil {
			t.Fatal(err)
		}
		return netlink.Message{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Create | flags},
			Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
		}
	}
	const ack = netlink.Acknowledge
	if err := batch(conn, []netlink.Message{message("a", ack), message("b", ack)}); err != nil {
		t.Error(err)
	}
	if err := batch(conn, []netlink.Message{message("c", ack), message("d", 0)}); err == nil {
		t.Error("one answer to two messages is none missing")
	}
	for range 2 { // all answers of the first are gone by the second
		err := batch(conn, []netlink.Message{message("e", ack), message("a", ack|netlink.Excl), message("b", ack|netlink.Excl)})
		if !errors.Is(err, unix.EEXIST) {
			t.Error(err)
		}
	}
}
