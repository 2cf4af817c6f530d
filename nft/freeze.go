package nft

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A Tuple is one TCP connection from a client to a service, and the backend to
// which it is being replayed. All addresses are of one family.
type Tuple struct {
	Client, Service netip.AddrPort
	// Backend may be zero, for a connection that is not replayed (yet).
	Backend netip.AddrPort
}

func (tu Tuple) String() string {
	s := tu.Client.String() + " > " + tu.Service.String()
	if tu.Backend.IsValid() {
		s += " > " + tu.Backend.String()
	}
	return s
}

func (tu Tuple) check() error {
	for _, a := range []netip.AddrPort{tu.Client, tu.Service, tu.Backend} {
		if a == (netip.AddrPort{}) && a == tu.Backend {
			continue
		}
		// A zone is no part of a packet's address.
		if !a.IsValid() || a.Addr().Is4In6() || a.Addr().Zone() != "" || a.Port() == 0 ||
			a.Addr().Is4() != tu.Client.Addr().Is4() {
			return fmt.Errorf("tuple %s: %w", tu, ErrInvalid)
		}
	}
	return nil
}

// pair encodes the key of a frozen or replayed connection.
func pair(a, b netip.AddrPort) []byte { return append(addrPort(a), addrPort(b)...) }

// tupleKeys are the keys that tuples have in each set, by its name.
func tupleKeys(tuples []Tuple) (map[string][][]byte, error) {
	keys := make(map[string][][]byte)
	seen := make(map[string]bool)
	add := func(set string, key []byte) {
		if id := set + hex.EncodeToString(key); !seen[id] {
			seen[id] = true
			keys[set] = append(keys[set], key)
		}
	}
	for _, tu := range tuples {
		if err := tu.check(); err != nil {
			return nil, err
		}
		f := families()[familyOf(tu.Client.Addr())]
		add(setFrozen+f.name, pair(tu.Client, tu.Service))
		if tu.Backend.IsValid() {
			add(setReplay+f.name, pair(tu.Client, tu.Backend))
		}
	}
	return keys, nil
}

// Freeze makes the host deaf for the tuples, in one transaction: packets from
// client to service are dropped before conntrack and before any socket sees
// them, wherever they come from, and so are the backend's packets to the client
// that carry SYN or RST. The client's TCP sends again what is lost. Packets
// with PacketMark are exempt.
//
// The kernel itself ends the freeze after the timeout (at least 1 ms), so that
// nothing stays frozen if the process dies. Freezing a tuple again, with its
// Backend for instance, adds what is new and is no error; it does not shorten a
// timeout, and lengthens one only on Linux 6.12 and later.
func (t *Table) Freeze(tuples []Tuple, timeout time.Duration) error {
	if timeout < time.Millisecond {
		return fmt.Errorf("freeze: timeout %v: %w", timeout, ErrInvalid)
	}
	keys, err := tupleKeys(tuples)
	if err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for name, list := range keys {
		if err := t.nl.SetAddElements(timedSet(name), timedElements(list, timeout)); err != nil {
			return errors.Join(fmt.Errorf("freeze: %w", err), t.abandon())
		}
	}
	if err := t.nl.Flush(); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	return nil
}

// Unfreeze ends the freeze of the tuples in one transaction. A tuple that is
// not frozen (any more) is no error.
func (t *Table) Unfreeze(tuples []Tuple) error {
	keys, err := tupleKeys(tuples)
	if err != nil {
		return fmt.Errorf("unfreeze: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.deleteKeys(keys); err != nil {
		return fmt.Errorf("unfreeze: %w", err)
	}
	return nil
}

// deleteKeys takes keys out of sets whose elements time out, in one transaction.
// Those that are not there are no error.
func (t *Table) deleteKeys(keys map[string][][]byte) (err error) {
	for range tries {
		for name, list := range keys {
			if err := t.nl.SetDeleteElements(timedSet(name), timedElements(list, 0)); err != nil {
				return errors.Join(err, t.abandon())
			}
		}
		if err = t.nl.Flush(); !errors.Is(err, unix.ENOENT) {
			return err
		}
		// One that has timed out fails them all: leave out those that have,
		// and be prepared for more to do so meanwhile.
		if keys, err = t.present(keys); err != nil {
			return err
		}
	}
	return err
}

// present returns those of the keys that are in their sets.
func (t *Table) present(keys map[string][][]byte) (map[string][][]byte, error) {
	still := make(map[string][][]byte)
	for name, list := range keys {
		have, err := t.nl.GetSetElements(timedSet(name))
		if errors.Is(err, unix.ENOENT) {
			continue // the set itself is gone, with the whole table
		} else if err != nil {
			return nil, err
		}
		in := make(map[string]bool, len(have))
		for _, e := range have {
			in[string(e.Key)] = true
		}
		for _, k := range list {
			if in[string(k)] {
				still[name] = append(still[name], k)
			}
		}
	}
	return still, nil
}

func timedSet(name string) *nftables.Set {
	return &nftables.Set{Table: table(), Name: name, HasTimeout: true}
}

func timedElements(keys [][]byte, timeout time.Duration) []nftables.SetElement {
	list := make([]nftables.SetElement, len(keys))
	for i, k := range keys {
		list[i] = nftables.SetElement{Key: k, Timeout: timeout}
	}
	return list
}
