package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// A home is one set or map in both families: that of a kind or, for slots, of
// a class.
type home struct {
	kind kind
	mod  uint16 // of slots
}

func (e element) home() home {
	if e.kind == slots {
		return home{slots, e.lane.mod}
	}
	return home{kind: e.kind}
}

// homes returns all, in the order in which they are written.
func homes() []home {
	var all []home
	for k := known; k <= patient; k++ {
		if k != slots {
			all = append(all, home{kind: k})
			continue
		}
		for _, mod := range classes()[1:] {
			all = append(all, home{k, uint16(mod)})
		}
	}
	return all
}

// name returns the set's name in the family.
func (h home) name(f family) string {
	if h.kind == slots {
		return fmt.Sprintf("%s%s-%d", setSlots, f.name, h.mod)
	}
	return h.kind.setName() + f.name
}

func (k kind) setName() string {
	switch k {
	case known:
		return setKnown
	case cold:
		return setCold
	case limited:
		return setLimited
	case refused:
		return setRefused
	case rates:
		return setRates
	case clientRates:
		return setClientRates
	case flows:
		return setFlows
	case clientFlows:
		return setClientFlows
	case masked:
		return setMasked
	case sticky:
		return setSticky
	case keep:
		return setKeep
	case members:
		return setMembers
	case first:
		return setFirst
	case spread:
		return setSpread
	case spreadAny:
		return setSpreadAny
	case rest:
		return setRest
	case spreadRuled:
		return setSpreadRuled
	case spreadRuledAny:
		return setSpreadRuledAny
	case backends:
		return setBackends
	case asleep:
		return setAsleep
	case screened:
		return setScreened
	case allowed:
		return setAllowed
	case patient:
		return setPatient
	}
	panic(fmt.Sprintf("nft: kind %d has no set", k))
}

func (e entry) encode() nftables.SetElement {
	s := nftables.SetElement{Key: endpointKey(e.at)}
	switch e.kind {
	case known:
		s.Comment = e.is.String()
	case refused:
		s.Counter = new(expr.Counter)
	case rates, flows:
		s.Comment = strconv.FormatUint(uint64(e.n), 10)
	case clientRates, clientFlows:
		s.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: clientChain(e.kind, e.n)}
	case first, rest:
		s.Val = addrPort(e.to)
	case slots:
		s.Key = appendSlot(s.Key, e.slot)
		s.Val = addrPort(e.to)
	case spread, spreadAny, spreadRuled, spreadRuledAny:
		// Jump, not goto: a flow that finds no slot comes back and goes by rest.
		s.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: e.lane.String()}
	case keep:
		s.VerdictData = &expr.Verdict{Kind: expr.VerdictJump, Chain: keepChain(e.time, e.at.Addr.IsUnspecified())}
	case allowed:
		s.Key, s.KeyEnd = appendClients(s.Key, e.from)
	case members:
		s.Key = append(s.Key, native(e.id)...)
		s.Val = addrPort(e.to)
	case backends:
		if e.lingers {
			s.Timeout = linger
		}
	}
	return s
}

func decode(h home, f family, s nftables.SetElement) (e entry, err error) {
	e.kind, e.lane.mod = h.kind, h.mod
	if e.at, e.slot, err = parseKey(s.Key, f); err != nil {
		return e, err
	}
	switch h.kind {
	case known:
		if e.is, err = parseTraits(s.Comment); err != nil {
			return e, err
		}
	case rates, flows:
		n, err := strconv.ParseUint(s.Comment, 10, 32)
		if err != nil {
			return e, fmt.Errorf("decode limit %q: %w", s.Comment, ErrInvalid)
		}
		e.n = uint32(n)
	case clientRates, clientFlows:
		_, name, err := parseVerdict(s.Val)
		if err != nil {
			return e, err
		}
		n, ok := parseClientChain(h.kind, name)
		if !ok {
			return e, fmt.Errorf("decode chain %q: %w", name, ErrInvalid)
		}
		e.n = n
	case allowed:
		if e.from, err = parseClients(s.Key, s.KeyEnd, f); err != nil {
			return e, err
		}
		e.slot = 0
	case members:
		if e.to, err = parseAddrPort(s.Val, f); err != nil {
			return e, err
		}
		e.slot, e.id = 0, binary.NativeEndian.Uint32(append(slices.Clip(s.Key), 0, 0, 0, 0)[f.size+8:])
	case keep:
		_, name, err := parseVerdict(s.Val)
		if err != nil {
			return e, err
		}
		d, ok := parseKeep(name, e.at.Addr.IsUnspecified())
		if !ok {
			return e, fmt.Errorf("decode chain %q: %w", name, ErrInvalid)
		}
		e.time = d
	case first, rest, slots:
		if e.to, err = parseAddrPort(s.Val, f); err != nil {
			return e, err
		}
	case spread, spreadAny, spreadRuled, spreadRuledAny:
		_, name, err := parseVerdict(s.Val)
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
	// What would not be written like this could not be deleted either.
	if again := e.encode(); !bytes.Equal(again.Key, s.Key) || !bytes.Equal(again.KeyEnd, s.KeyEnd) || again.Comment != s.Comment || again.VerdictData == nil && !bytes.Equal(again.Val, s.Val) {
		return e, fmt.Errorf("decode element of %s: %w", h.name(f), ErrInvalid)
	}
	return e, nil
}

// parseVerdict reads a verdict, which the library leaves undecoded, and the chain
// that it leads to, if it does.
func parseVerdict(b []byte) (kind expr.VerdictKind, chain string, err error) {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return 0, "", fmt.Errorf("decode verdict: %w", err)
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			kind = expr.VerdictKind(int32(ad.Uint32())) //nolint:gosec // as the kernel has it
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	}
	if err := ad.Err(); err != nil {
		return 0, "", fmt.Errorf("decode verdict: %w", err)
	}
	return kind, chain, nil
}
