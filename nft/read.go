package nft

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// tries bounds how often something is repeated because the ruleset changed
// meanwhile.
const tries = 20

// reload reads what the kernel has. It tells whether the fixed part is as it
// should be. If the table is missing there is nothing in it, which is no error;
// in a table of another layout only that is read which has its old form.
func (t *Table) reload() (same bool, err error) {
	for i := range tries {
		before, err := t.nl.GetGen()
		if err != nil {
			return false, fmt.Errorf("read generation: %w", err)
		}
		if same, err = t.read(); err != nil {
			return false, err
		}
		after, err := t.nl.GetGen()
		if err != nil {
			return false, fmt.Errorf("read generation: %w", err)
		}
		// A listing that was disturbed may have skipped something. If others
		// write without a pause, it is most likely in their own tables: right
		// digests do not come about by chance, and a wrong element is found
		// out by the next commit.
		if before.ID == after.ID || same && i >= 2 {
			return same, nil
		}
	}
	return same, nil
}

func (t *Table) read() (same bool, err error) {
	have, ends, now := newState(), make(map[Endpoint]time.Time), time.Now()
	got, err := t.fixed()
	if err != nil {
		return false, err
	}
	if same, err = got.whole(); err != nil {
		return false, err
	}
	sets, err := t.nl.GetSets(table())
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("read sets: %w", err)
	}
	byname := make(map[string]*nftables.Set, len(sets))
	for _, s := range sets {
		byname[s.Name] = s
	}
	want := make(map[string]*nftables.Set)
	for _, s := range describe().sets {
		want[s.Name] = s
	}
	var c change
	for _, home := range homes() {
		for _, f := range families() {
			name := home.name(f)
			s, ok := byname[name]
			if !ok || s.KeyType.Name != want[name].KeyType.Name || s.DataType.Name != want[name].DataType.Name {
				continue
			}
			list, err := t.nl.GetSetElements(s)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return false, fmt.Errorf("read set %s: %w", name, err)
			}
			for _, se := range list {
				e, err := decode(home, f, se)
				if err != nil {
					// Whoever wrote this, it was not this program: the
					// table is to be built anew.
					same = false
					continue
				}
				c.adds = append(c.adds, e)
				if e.lingers {
					ends[e.at] = now.Add(se.Expires)
				}
			}
		}
	}
	have.apply(c)
	t.have, t.ends = have, ends
	return same, nil
}

// A listing is what can be told of a table's fixed part.
type listing struct {
	mark   string // name of the mark chain, "" if there is none
	digest string // over all chains, sets and rules but the mark
}

// fixed lists the fixed part as raw attributes: the library drops expressions
// that it does not know.
func (t *Table) fixed() (listing, error) {
	var l listing
	h := sha256.New()
	tab, err := t.nl.ListTableOfFamily(Name, nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return l, nil
	} else if err != nil {
		return l, fmt.Errorf("read table: %w", err)
	}
	fmt.Fprintln(h, "flags", tab.Flags)
	// Attributes that change with use (handles, counts) stay out.
	for _, list := range []struct {
		get, put int
		attrs    []uint16
	}{
		{unix.NFT_MSG_GETSET, unix.NFT_MSG_NEWSET, []uint16{unix.NFTA_SET_NAME, unix.NFTA_SET_FLAGS, unix.NFTA_SET_KEY_TYPE,
			unix.NFTA_SET_KEY_LEN, unix.NFTA_SET_DATA_TYPE, unix.NFTA_SET_DATA_LEN}},
		{unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_NEWCHAIN, []uint16{unix.NFTA_CHAIN_NAME, unix.NFTA_CHAIN_TYPE, unix.NFTA_CHAIN_POLICY, unix.NFTA_CHAIN_HOOK}},
		{unix.NFT_MSG_GETRULE, unix.NFT_MSG_NEWRULE, []uint16{unix.NFTA_RULE_CHAIN, unix.NFTA_RULE_EXPRESSIONS}},
	} {
		if err := t.list(h, list.get, list.put, list.attrs, &l.mark); err != nil {
			return l, err
		}
	}
	l.digest = hex.EncodeToString(h.Sum(nil)[:8])
	return l, nil
}

func (t *Table) list(h hash.Hash, get, put int, attrs []uint16, mark *string) error {
	req, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(Name + "\x00")}})
	if err != nil {
		return fmt.Errorf("list table: %w", err)
	}
	msgs, err := t.sock.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | get), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, req...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return fmt.Errorf("list table: %w", err)
	}
	for _, m := range msgs {
		if m.Header.Type != netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8|put) || len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return fmt.Errorf("list table: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		of := make(map[uint16][]byte)
		var tab string
		for ad.Next() {
			if ad.Type() == unix.NFTA_RULE_TABLE {
				tab = ad.String()
			}
			of[ad.Type()] = ad.Bytes()
		}
		if err := ad.Err(); err != nil {
			return fmt.Errorf("list table: %w", err)
		}
		// A kernel lists the chains of all tables.
		if tab != Name {
			continue
		}
		if name := string(of[unix.NFTA_CHAIN_NAME]); put == unix.NFT_MSG_NEWCHAIN && isMark(name) {
			*mark = name[:max(0, len(name)-1)]
			continue
		}
		for _, a := range attrs {
			fmt.Fprintf(h, "%d %d %d ", put, a, len(of[a]))
			h.Write(of[a])
		}
	}
	return nil
}
