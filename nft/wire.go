package nft

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// linger is how long packets of a backend are guarded after the last service
// has let go of it: as long as a drain may sensibly take.
const linger = 24 * time.Hour

// setName returns the set that an element of this kind is in.
func (k kind) setName() string {
	switch k {
	case known:
		return setKnown
	case cold:
		return setCold
	case first:
		return setFirst
	case spread:
		return setSpread
	case slots:
		return setSlots
	case backends:
		return setBackends
	}
	panic(fmt.Sprintf("nft: kind %d has no set", k))
}

func (e entry) encode() nftables.SetElement {
	s := nftables.SetElement{Key: endpointKey(e.at)}
	switch e.kind {
	case first:
		s.Val = addrPort(e.to)
	case slots:
		s.Key = appendSlot(s.Key, e.slot)
		s.Val = addrPort(e.to)
	case spread:
		// Jump, not goto: a flow that finds no slot comes back and goes by first.
		s.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.lane.String()}
	case backends:
		if e.lingers {
			s.Timeout = linger
		}
	}
	return s
}

func decode(k kind, f family, s nftables.SetElement) (e entry, err error) {
	e.kind = k
	if e.at, e.slot, err = parseKey(s.Key, f); err != nil {
		return e, err
	}
	switch k {
	case first, slots:
		if e.to, err = parseAddrPort(s.Val, f); err != nil {
			return e, err
		}
	case spread:
		name, err := verdictChain(s.Val)
		if err != nil {
			return e, err
		}
		l, ok := parseLane(name)
		if !ok {
			return e, fmt.Errorf("decode lane %q: %w", name, ErrInvalid)
		}
		e.lane = l
	case backends:
		e.lingers = s.Timeout > 0
	}
	return e, nil
}

// verdictChain reads the chain out of a verdict, which the library leaves
// undecoded.
func verdictChain(b []byte) (string, error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return "", fmt.Errorf("decode verdict: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	var name string
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			name = ad.String()
		}
	}
	if err := ad.Err(); err != nil {
		return "", fmt.Errorf("decode verdict: %w", err)
	}
	return name, nil
}
