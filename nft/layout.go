package nft

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// Name is the table's name; its family is inet.
	Name = "sluice"

	// CTMark under CTMask is what a flow through the table carries as its
	// conntrack mark. The other bits are left as they are.
	CTMark = 0x51000000
	CTMask = 0xff000000

	// PacketMark under PacketMask is the packet mark (SO_MARK) of the daemon's
	// own raw packets: of TCP they are not tracked and no freeze holds them up;
	// others begin flows that are masqueraded. The first packet of a flow that
	// goes out where it came in has it on its way from the forward hook to the
	// postrouting hook.
	PacketMark = 0x51
	PacketMask = 0xff
)

// The names of the sets, less the family's digit. They are fixed: elements
// written under one layout are read by the next.
const (
	setKnown  = "known"
	setCold   = "cold"
	setMasked = "masquerade"

	setLimited     = "limited"
	setRefused     = "refused"
	setRates       = "rates"
	setClientRates = "client-rates"
	setRateOf      = "rate-of"
	setFlows       = "flows"
	setClientFlows = "client-flows"
	setFlowsOf     = "flows-of"

	setFirst  = "first"
	setSpread = "spread"
	// These few have a map of their own, as the kernel goes through the whole
	// map for each rule that jumps by it when one element is added.
	setSpreadAny      = "spread-any"
	setRest           = "rest"
	setSpreadRuled    = "spread-ruled"
	setSpreadRuledAny = "spread-ruled-any"
	setSticky         = "sticky"
	setKeep           = "keep"
	setMembers        = "members"
	setAffinity       = "affinity"
	setMarks          = "marks"
	setSlots          = "slots"
	setBackends       = "backends"
	setAsleep         = "asleep"
	setAlarms         = "alarms"
	setFrozen         = "frozen"
	setReplay         = "replay"
	setSources        = "sources"

	setScreened = "screened"
	setAllowed  = "allowed"
	setPatient  = "patient"
)

const (
	chainRawIn   = "raw-prerouting"
	chainRawOut  = "raw-output"
	chainGuard   = "filter-prerouting"
	chainNATIn   = "nat-prerouting"
	chainNATOut  = "nat-output"
	chainForward = "filter-forward"
	chainNATPost = "nat-postrouting"
	chainRaw     = "raw" // of a family, as the next four
	chainSYN     = "syn"
	chainNAT     = "nat"
	chainRuled   = "ruled"
	chainLocal   = "local"
	chainBegin   = "begin"
	chainNote    = "note"
	chainPost    = "post"
	chainOut     = "filter-output"
	chainRecall  = "recall"
	chainAny     = "recall-any"

	chainLimits    = "limits"
	chainLimitsAny = "limits-any"
	chainRefuse    = "refuse"

	chainInput     = "filter-input"
	chainArrive    = "arrive"
	chainTurn      = "turn"
	chainTurnAny   = "turn-any"
	chainDetour    = "detour"
	chainDetourAny = "detour-any"
	chainAlarm     = "alarm"
	chainAlarmData = "alarm-data"
)

// A layout is the fixed part of the table, in the order in which it is made.
type layout struct {
	sets   []*nftables.Set
	chains []chain
}

// A chain has its rules with it. A chain without a hook is jumped to.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority int32
	rules    [][]expr.Any
}

func describe() layout {
	var l layout
	t := &nftables.Table{Name: Name, Family: nftables.TableFamilyINet}
	for _, f := range families() {
		endpoint := concatType(f.addr, nftables.TypeInetProto, nftables.TypeInetService)
		// The slot is typed as a mark, which lists as a plain host-order number.
		slot := concatType(f.addr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
		backend := concatType(f.addr, nftables.TypeInetService)
		source := concatType(nftables.TypeInetProto, nftables.TypeInetService, f.addr, nftables.TypeInetService)
		client := concatType(f.addr, nftables.TypeInetProto, nftables.TypeInetService, f.addr)
		flow := concatType(nftables.TypeInetProto, f.addr, nftables.TypeInetService, f.addr, nftables.TypeInetService)
		tuple := concatType(f.addr, nftables.TypeInetService, f.addr, nftables.TypeInetService)
		l.sets = append(l.sets,
			&nftables.Set{Table: t, Name: setKnown + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setCold + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setMasked + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setBackends + f.name, KeyType: endpoint, HasTimeout: true},
			&nftables.Set{Table: t, Name: setAsleep + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setAlarms + f.name, KeyType: endpoint, HasTimeout: true, Dynamic: true, Size: 1 << 16},
			&nftables.Set{Table: t, Name: setFirst + f.name, KeyType: endpoint, DataType: backend, IsMap: true},
			&nftables.Set{Table: t, Name: setSpread + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setSpreadAny + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setRest + f.name, KeyType: endpoint, DataType: backend, IsMap: true},
			&nftables.Set{Table: t, Name: setSpreadRuled + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setSpreadRuledAny + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setLimited + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setRefused + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setRates + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setClientRates + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setRateOf + f.name, KeyType: client, HasTimeout: true, Dynamic: true, Size: 1 << 18},
			&nftables.Set{Table: t, Name: setFlows + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setClientFlows + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setFlowsOf + f.name, KeyType: client, Dynamic: true, Size: 1 << 18},
			&nftables.Set{Table: t, Name: setSticky + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setKeep + f.name, KeyType: endpoint, DataType: nftables.TypeVerdict, IsMap: true},
			&nftables.Set{Table: t, Name: setMembers + f.name, KeyType: slot, DataType: backend, IsMap: true},
			&nftables.Set{Table: t, Name: setAffinity + f.name, KeyType: client, DataType: nftables.TypeMark, IsMap: true, HasTimeout: true, Dynamic: true, Size: remembered},
			&nftables.Set{Table: t, Name: setMarks + f.name, KeyType: flow, DataType: nftables.TypeMark, IsMap: true, HasTimeout: true, Dynamic: true, Size: 1 << 16},
			&nftables.Set{Table: t, Name: setScreened + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setAllowed + f.name, KeyType: client, Interval: true},
			&nftables.Set{Table: t, Name: setPatient + f.name, KeyType: endpoint},
			&nftables.Set{Table: t, Name: setFrozen + f.name, KeyType: tuple, HasTimeout: true},
			&nftables.Set{Table: t, Name: setReplay + f.name, KeyType: tuple, HasTimeout: true},
			&nftables.Set{Table: t, Name: setSources + f.name, KeyType: source, DataType: backend, IsMap: true, HasTimeout: true},
		)
		for _, mod := range classes()[1:] {
			name := home{slots, uint16(mod)}.name(f)
			l.sets = append(l.sets, &nftables.Set{Table: t, Name: name, KeyType: slot, DataType: backend, IsMap: true})
		}
		for _, s := range l.sets {
			s.Concatenation = true
		}
	}

	rawIn := chain{name: chainRawIn, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -300}
	rawOut := chain{name: chainRawOut, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: -300}
	guard := chain{name: chainGuard, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting, priority: -150}
	natIn := chain{name: chainNATIn, kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting, priority: -105}
	natOut := chain{name: chainNATOut, kind: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput, priority: -105}
	forward := chain{name: chainForward, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookForward, priority: 90}
	out := chain{name: chainOut, kind: nftables.ChainTypeFilter, hook: nftables.ChainHookOutput, priority: 90}
	begin, note := chain{name: chainBegin}, chain{name: chainNote}
	recall := chain{name: chainRecall}
	recallAny := chain{name: chainAny}
	natPost := chain{name: chainNATPost, kind: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting, priority: 95}
	post := chain{name: chainPost}
	var parts []chain // of one family each

	// What most packets need least is asked first: each expression costs, and
	// each packet of each flow through the host comes by.
	rawOut.add(packetMark(), isTCP(), notrack(), accept()) // datagrams with the mark are to be translated
	guard.add(noCTState(expr.CtStateBitINVALID), accept())
	for _, c := range []*chain{&forward, &out} {
		c.add(noCTMark(), accept())
		c.add(isReply(), accept())
	}
	forward.add(ctState(expr.CtStateBitNEW), goTo(begin.name))
	out.add(ctState(expr.CtStateBitNEW), goTo(note.name))
	begin.add(isDNAT(), returnsByInput(), setPacketMark())
	begin.add(goTo(note.name))
	// Outgoing packets have their mark from the forward hook only for this one.
	natPost.add(packetMark(), ctMark(), isDNAT(), masquerade())
	natPost.add(ctMark(), isDNAT(), goTo(chainPost))

	for _, f := range families() {
		service := []field{daddr(f), l4proto(), dport()}
		anywhere := []field{wild(f, daddr(f)), l4proto(), dport()}
		dialled := []field{ctDaddr(f), l4proto(), ctDport()}
		dialledAnywhere := []field{wild(f, ctDaddr(f)), l4proto(), ctDport()}
		backend := []field{saddr(f), l4proto(), sport()}
		there := concat(saddr(f), sport(), daddr(f), dport())
		back := concat(daddr(f), dport(), saddr(f), sport())

		raw, syn := chain{name: chainRaw + f.name}, chain{name: chainSYN + f.name} // see stripRules
		rawIn.add(isFamily(f), goTo(raw.name))
		raw.add(notTCP(), accept())
		raw.add(there, in(setFrozen+f.name), drop())
		raw.add(tcpFlags(tcpSYN|tcpRST, expr.CmpOpEq, 0), accept())
		raw.add(tcpFlags(tcpSYN|tcpACK, expr.CmpOpEq, tcpSYN), goTo(syn.name))
		// The backend's answer to a replayed SYN is for the daemon's eyes only.
		raw.add(back, in(setReplay+f.name), drop())
		rawOut.add(isFamily(f), isTCP(), there, in(setFrozen+f.name), drop())

		// A packet that conntrack cannot place gets no translation: it would
		// reach a socket that does not know it, and the reset that follows
		// would kill a healthy flow. Likewise on the way back.
		guard.add(isFamily(f), isTCP(), concat(service...), in(setKnown+f.name), drop())
		guard.add(isFamily(f), isTCP(), concat(anywhere...), in(setKnown+f.name), isLocal(), drop())
		guard.add(isFamily(f), isTCP(), concat(backend...), in(setBackends+f.name), drop())

		nat, ruled, local := chain{name: chainNAT + f.name}, chain{name: chainRuled + f.name}, chain{name: chainLocal + f.name}
		natIn.add(isFamily(f), goTo(nat.name))
		natOut.add(isFamily(f), goTo(nat.name))
		nat.add(concat(service...), value(setFirst+f.name), deliver(f))
		nat.add(concat(service...), verdict(setSpread+f.name))
		// A service at one address has this for itself, though it be cold.
		nat.add(concat(service...), in(setKnown+f.name), goTo(ruled.name))
		nat.add(concat(anywhere...), in(setKnown+f.name), isLocal(), goTo(local.name))

		ruled.add(concat(service...), in(setLimited+f.name), jump(chainLimits))
		ruled.add(concat(service...), in(setSticky+f.name), jump(chainRecall))
		ruled.add(concat(service...), verdict(setSpreadRuled+f.name))
		ruled.add(concat(service...), value(setRest+f.name), deliver(f))
		// It may have become a plain one since the first look.
		ruled.add(concat(service...), value(setFirst+f.name), deliver(f))

		if f.proto == unix.NFPROTO_IPV6 {
			// The kernel cannot translate it.
			local.add(toLoopback(f), accept())
		}
		local.add(concat(anywhere...), value(setFirst+f.name), deliver(f))
		local.add(concat(anywhere...), verdict(setSpreadAny+f.name))
		local.add(concat(anywhere...), in(setLimited+f.name), jump(chainLimitsAny))
		local.add(concat(anywhere...), in(setSticky+f.name), jump(chainAny))
		local.add(concat(anywhere...), verdict(setSpreadRuledAny+f.name))
		local.add(concat(anywhere...), value(setRest+f.name), deliver(f))
		local.add(concat(anywhere...), value(setFirst+f.name), deliver(f))

		recall.recall(f, service)
		recallAny.recall(f, anywhere)

		alarm := rule(isFamily(f), concat(daddr(f), l4proto(), dport()), in(setAsleep+f.name), jump(chainAlarm))
		forward.add(alarm)
		out.add(alarm)
		note.add(alarm)
		note.add(isFamily(f), isDNAT(), concat(dialled...), verdict(setKeep+f.name))
		note.add(isFamily(f), isDNAT(), concat(dialled...), notIn(setKnown+f.name), concat(dialledAnywhere...), verdict(setKeep+f.name))

		if f.proto == unix.NFPROTO_IPV4 {
			post.add(isFamily(f), fromLoopback(f), masquerade())
		}
		post.add(isFamily(f), concat(dialled...), in(setMasked+f.name), masquerade())
		post.add(isFamily(f), concat(dialled...), in(setKnown+f.name), accept())
		post.add(isFamily(f), concat(dialledAnywhere...), in(setMasked+f.name), masquerade())
		natPost.add(isFamily(f), concat(l4proto(), sport(), daddr(f), dport()), value(setSources+f.name), fromLocal(), pose(f))
		parts = append(parts, raw, syn, nat, ruled, local)
	}
	l.chains = append([]chain{rawIn, rawOut, guard, natIn, natOut, recall, recallAny, forward, out, begin, note, natPost, post}, parts...)
	l.chains = append(l.chains, limitChains()...)
	l.chains = append(l.chains, screenChains()...)
	l.chains = append(l.chains, alarmChains()...)
	for _, d := range affinities() {
		l.chains = append(l.chains, keepRules(d, false), keepRules(d, true))
	}

	for _, mod := range classes()[1:] {
		for i := range lanes(mod) {
			l.chains = append(l.chains, laneChain(lane{mod: uint16(mod), index: uint16(i)}))
		}
		for _, by := range []Balance{Random, SourceHash, FlowHash} {
			l.chains = append(l.chains, laneChain(lane{mod: uint16(mod), by: by}))
		}
	}
	return l
}

func (c *chain) add(parts ...[]expr.Any) { c.rules = append(c.rules, rule(parts...)) }

func laneChain(l lane) chain {
	c := chain{name: l.String()}
	for _, f := range families() {
		load, slot := choice(l, f)
		for _, addr := range []field{daddr(f), wild(f, daddr(f))} {
			c.add(isFamily(f), load, concat(addr, l4proto(), dport(), slot), value(home{slots, l.mod}.name(f)), deliver(f))
		}
	}
	return c
}

// concatType cannot fail: the kernel's limit is five fields.
func concatType(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

// digest names the layout as this program means it.
func (l layout) digest() (string, error) {
	h := sha256.New()
	for _, s := range l.sets {
		fmt.Fprintln(h, "set", s.Name, s.KeyType.Name, s.DataType.Name, s.IsMap, s.HasTimeout, s.Dynamic, s.Size)
	}
	for _, c := range l.chains {
		hook := -1
		if c.hook != nil {
			hook = int(*c.hook)
		}
		fmt.Fprintln(h, "chain", c.name, c.kind, hook, c.priority)
		for _, r := range c.rules {
			for _, e := range r {
				b, err := expr.Marshal(unix.NFPROTO_INET, e)
				if err != nil {
					return "", fmt.Errorf("encode rule of %s: %w", c.name, err)
				}
				h.Write(b)
			}
			fmt.Fprintln(h, "rule")
		}
	}
	for _, f := range families() {
		for _, r := range stripRules(f) {
			b, err := stripExprs(r)
			if err != nil {
				return "", err
			}
			h.Write(b)
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:8]), nil
}
