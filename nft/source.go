package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A Source gives a flow from the host itself to a backend the address and port
// of the client on whose behalf it is: the backend then sees the client, and
// its replies, which it sends to the client by way of this host, reach the
// host's socket.
type Source struct {
	// Proto is unix.IPPROTO_TCP or unix.IPPROTO_UDP.
	Proto uint8
	// Local is the port to which the host's socket is bound.
	Local uint16
	// Backend and Client are of one family.
	Backend, Client netip.AddrPort
}

func (s Source) check() error {
	b := Endpoint{Addr: s.Backend.Addr(), Proto: s.Proto, Port: s.Backend.Port()}
	c := Endpoint{Addr: s.Client.Addr(), Proto: s.Proto, Port: s.Client.Port()}
	if err := errors.Join(b.checkBackend(), c.checkBackend()); err != nil {
		return err
	}
	if s.Local == 0 || s.Backend.Addr().Is4() != s.Client.Addr().Is4() {
		return fmt.Errorf("local port %d, backend %s, client %s: %w", s.Local, s.Backend, s.Client, ErrInvalid)
	}
	return nil
}

// sourceTimeout is how long a source waits for its flow's first packet, the
// only one that is looked up.
const sourceTimeout = 30 * time.Second

// sources encodes them for the sets of both families, each key once; a later
// source of the same key wins.
func sources(list []Source) (by [2][]nftables.SetElement, err error) {
	var at [2]map[string]int
	for i := range at {
		at[i] = make(map[string]int)
	}
	for _, s := range list {
		if err := s.check(); err != nil {
			return by, err
		}
		f := familyOf(s.Backend.Addr())
		key := appendPort([]byte{s.Proto, 0, 0, 0}, s.Local)
		key = append(key, addrPort(s.Backend)...)
		e := nftables.SetElement{Key: key, Val: addrPort(s.Client), Timeout: sourceTimeout}
		if i, ok := at[f][string(key)]; ok {
			by[f][i] = e
			continue
		}
		at[f][string(key)] = len(by[f])
		by[f] = append(by[f], e)
	}
	return by, nil
}

// AddSources makes the next flow of each source go out with the client's
// address, in one transaction. It must be called before the socket connects,
// and the socket be bound before, since it is known by its port. What is added
// is forgotten after 30 s, or with RemoveSources; a flow that has begun keeps
// its address. A source that is there already for another client is replaced.
//
// The backend must send what it has for the client through this host: not so a
// backend on the network of the client, nor one whose replies take another way.
// If a flow from that client and port to that backend exists already (the
// client's own, begun through the table), the first packet is lost.
func (t *Table) AddSources(list []Source) error {
	by, err := sources(list)
	if err != nil {
		return fmt.Errorf("add sources: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for range tries {
		for i, f := range families() {
			if len(by[i]) == 0 {
				continue
			}
			if err := t.nl.SetAddElements(sourceSet(f), by[i]); err != nil {
				return errors.Join(fmt.Errorf("add sources: %w", err), t.abandon())
			}
		}
		// One that is there with another client is no update but an error.
		if err = t.nl.Flush(); !errors.Is(err, unix.EEXIST) {
			break
		}
		if err = t.removeSources(by); err != nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("add sources: %w", err)
	}
	return nil
}

// RemoveSources makes the table forget sources whose flow has begun, or never
// will. One that is not there (any more) is no error.
func (t *Table) RemoveSources(list []Source) error {
	by, err := sources(list)
	if err != nil {
		return fmt.Errorf("remove sources: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.removeSources(by); err != nil {
		return fmt.Errorf("remove sources: %w", err)
	}
	return nil
}

func (t *Table) removeSources(by [2][]nftables.SetElement) error {
	keys := make(map[string][][]byte)
	for i, f := range families() {
		for _, e := range by[i] {
			keys[setSources+f.name] = append(keys[setSources+f.name], e.Key)
		}
	}
	return t.deleteKeys(keys)
}

func sourceSet(f family) *nftables.Set {
	return &nftables.Set{Table: table(), Name: setSources + f.name, HasTimeout: true, IsMap: true}
}
