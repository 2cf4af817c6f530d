package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Watch calls changed whenever another socket has committed a transaction that
// touches the table (a flush of the ruleset among others), when such news may
// have been lost, and once at the start, since nobody watched before. It is for
// Restore to find out what happened. Calls do not overlap; news that come
// meanwhile are held in a socket buffer.
//
// Watch returns nil once ctx ends, and an error if the kernel cannot be heard
// any more. One Watch of a table can run at a time.
func (t *Table) Watch(ctx context.Context, changed func()) (err error) {
	if err := t.subscribe(); err != nil {
		return fmt.Errorf("watch table: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = t.events.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		err = errors.Join(err, t.events.LeaveGroup(unix.NFNLGRP_NFTABLES), t.events.SetReadDeadline(time.Time{}))
	}()
	changed()
	touched := false
	for {
		msgs, err := t.events.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			changed()
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			// Left by the watch before, whose end came at the same time.
			if err := t.events.SetReadDeadline(time.Time{}); err != nil {
				return fmt.Errorf("watch table: %w", err)
			}
			continue
		case err != nil:
			return fmt.Errorf("watch table: %w", err)
		}
		for _, m := range msgs {
			// The end of each transaction is told by its generation.
			if m.Header.Type == unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				if touched {
					touched = false
					changed()
				}
				continue
			}
			touched = touched || about(m)
		}
	}
}

func (t *Table) subscribe() error {
	// Our own transactions must not fill the buffer: the kernel leaves them
	// out. All messages of a datagram are of one transaction.
	filter, err := bpf.Assemble(foreign(t.sock.PID()))
	if err != nil {
		return err
	}
	if err := t.events.SetBPF(filter); err != nil {
		return err
	}
	if err := t.events.SetReadBuffer(4 << 20); err != nil {
		return err
	}
	return t.events.JoinGroup(unix.NFNLGRP_NFTABLES)
}

// foreign accepts netlink messages caused by another socket than that of the
// port identifier.
func foreign(port uint32) []bpf.Instruction {
	const offPID = 12 // of nlmsg_pid in struct nlmsghdr
	// A BPF load reads big-endian, the header is in the host's order.
	own := binary.BigEndian.Uint32(native(port))
	return []bpf.Instruction{
		bpf.LoadAbsolute{Off: offPID, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: own, SkipTrue: 1},
		bpf.RetConstant{Val: 1 << 30},
		bpf.RetConstant{Val: 0},
	}
}

// about tells whether a message is about our table or anything in it.
func about(m netlink.Message) bool {
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < 4 || m.Data[0] != unix.NFPROTO_INET {
		return false
	}
	ad, err := netlink.NewAttributeDecoder(m.Data[4:])
	if err != nil {
		return false
	}
	for ad.Next() {
		// The table's name is attribute 1 of tables, chains, rules, sets and
		// elements alike.
		if ad.Type() == unix.NFTA_TABLE_NAME {
			return ad.String() == Name
		}
	}
	return false
}
