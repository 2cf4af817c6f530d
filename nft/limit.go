package nft

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Limits bound the new flows of a service; 0 is no bound. What is beyond is
// dropped, before anything else happens to it: a TCP client sends its SYN again
// after 1, 3, 7 … seconds, and gets in if there is room by then; to a program it
// is a slow connect. Flows that have begun are never touched.
//
// When MaxFlows is changed, counting begins anew. A limit per client that is
// changed holds for a client once that has had no flow for some seconds. At a
// service at every local address, a client is counted at each of them.
type Limits struct {
	// MaxFlows is how many flows may live at a time. Flows older than the limit
	// do not count. With many flows, counting costs: 10,000 are gone through up
	// to once in each of the kernel's ticks.
	MaxFlows uint32
	// MaxFlowsPerClient is the same for each client's address, rounded up to
	// one of ClientLimits.
	MaxFlowsPerClient uint32
	// NewPerSecond is how many flows may begin per second, and at once after a
	// second's rest. At most MaxNewPerSecond.
	NewPerSecond uint32
	// NewPerSecondPerClient is the same for each client's address, rounded up
	// to one of ClientLimits.
	NewPerSecondPerClient uint32
}

// MaxNewPerSecond is the highest limit: the kernel divides a second, in
// nanoseconds, by it.
const MaxNewPerSecond = 1_000_000

// clientLimits are the limits per client. Each has chains of its own, since
// what a rule keeps for each client is fixed in the rule.
func clientLimits() []uint32 {
	return []uint32{1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500, 1000, 2000, 5000, 10_000}
}

// ClientLimits returns the limits per client that there are, in ascending order.
func ClientLimits() []uint32 { return clientLimits() }

func clientLimit(n uint32) uint32 {
	if n == 0 {
		return 0
	}
	all := clientLimits()
	i, _ := slices.BinarySearch(all, n)
	return all[min(i, len(all)-1)]
}

// round returns the limits as they are kept.
func (l Limits) round() Limits {
	l.MaxFlowsPerClient = clientLimit(l.MaxFlowsPerClient)
	l.NewPerSecondPerClient = clientLimit(l.NewPerSecondPerClient)
	return l
}

func (l Limits) check() error {
	all := clientLimits()
	if n := max(l.MaxFlowsPerClient, l.NewPerSecondPerClient); n > all[len(all)-1] {
		return fmt.Errorf("%d per client: %w", n, ErrInvalid)
	}
	if l.NewPerSecond > MaxNewPerSecond {
		return fmt.Errorf("%d per second: %w", l.NewPerSecond, ErrInvalid)
	}
	return nil
}

// fields are the limits by the names that they have in comments.
func (l *Limits) fields() []struct {
	name string
	n    *uint32
} {
	return []struct {
		name string
		n    *uint32
	}{
		{"flows=", &l.MaxFlows}, {"client-flows=", &l.MaxFlowsPerClient},
		{"rate=", &l.NewPerSecond}, {"client-rate=", &l.NewPerSecondPerClient},
	}
}

func (l Limits) words() (words []string) {
	for _, f := range l.fields() {
		if *f.n > 0 {
			words = append(words, f.name+strconv.FormatUint(uint64(*f.n), 10))
		}
	}
	return words
}

func (l *Limits) parse(word string) {
	for _, f := range l.fields() {
		if s, ok := strings.CutPrefix(word, f.name); ok {
			n, _ := strconv.ParseUint(s, 10, 32)
			*f.n = uint32(n)
		}
	}
}

// elements are those that a limited service has besides.
func (l Limits) elements() []element {
	if l == (Limits{}) {
		return nil
	}
	es := []element{{kind: limited}, {kind: refused}}
	for _, e := range []element{
		{kind: rates, n: l.NewPerSecond}, {kind: clientRates, n: l.NewPerSecondPerClient},
		{kind: flows, n: l.MaxFlows}, {kind: clientFlows, n: l.MaxFlowsPerClient},
	} {
		if e.n > 0 {
			es = append(es, e)
		}
	}
	return es
}

// clientChain is the chain with a limit per client, of kind clientRates or
// clientFlows.
func clientChain(k kind, n uint32) string {
	if k == clientRates {
		return fmt.Sprintf("client-rate-%d", n)
	}
	return fmt.Sprintf("client-flows-%d", n)
}

func parseClientChain(k kind, name string) (uint32, bool) {
	for _, n := range clientLimits() {
		if name == clientChain(k, n) {
			return n, true
		}
	}
	return 0, false
}

// overRate is "limit rate over n/second burst n packets".
func overRate(n uint32) expr.Any {
	return &expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(n), Unit: expr.LimitTimeSecond, Burst: n, Over: true}
}

// overFlows is "ct count over n".
func overFlows(n uint32) expr.Any {
	const inverted = 1 // NFT_CONNLIMIT_F_INV
	return &expr.Connlimit{Count: n, Flags: inverted}
}

func (c *chain) limit(f family, service []expr.Any) {
	c.add(isFamily(f), service, verdict(setClientRates+f.name))
	c.add(isFamily(f), service, in(setRates+f.name), jump(chainRefuse))
	c.add(isFamily(f), service, verdict(setClientFlows+f.name))
	c.add(isFamily(f), service, in(setFlows+f.name), jump(chainRefuse))
}

// rateTimeout is how long a client's rate is kept after its last flow: longer
// than its tokens need to be complete.
const rateTimeout = 5 * time.Second

// limitChains decide for a service that has limits; they come back if there is
// nothing against the flow. What only counts comes before what holds on to a
// flow.
func limitChains() []chain {
	one, any, refuse := chain{name: chainLimits}, chain{name: chainLimitsAny}, chain{name: chainRefuse}
	for _, f := range families() {
		one.screen(f, concat(daddr(f), l4proto(), dport()), chainDetour)
		any.screen(f, concat(wild(f, daddr(f)), l4proto(), dport()), chainDetourAny)
		one.limit(f, concat(daddr(f), l4proto(), dport()))
		any.limit(f, concat(wild(f, daddr(f)), l4proto(), dport()))
		// The element found counts.
		refuse.add(isFamily(f), concat(daddr(f), l4proto(), dport()), in(setRefused+f.name), drop())
		refuse.add(isFamily(f), concat(wild(f, daddr(f)), l4proto(), dport()), in(setRefused+f.name), drop())
	}
	all := []chain{one, any, refuse}
	for _, n := range clientLimits() {
		rate, live := chain{name: clientChain(clientRates, n)}, chain{name: clientChain(clientFlows, n)}
		for _, f := range families() {
			client := concat(daddr(f), l4proto(), dport(), saddr(f))
			rate.add(isFamily(f), client, each(setRateOf+f.name, rateTimeout, overRate(n)), jump(chainRefuse))
			live.add(isFamily(f), client, each(setFlowsOf+f.name, 0, overFlows(n)), jump(chainRefuse))
		}
		all = append(all, rate, live)
	}
	return all
}

// Limited returns how many packets that would have begun a flow were dropped
// for the service's limits since it has had any. It begins anew when the limits
// are taken away, and when the table is built anew.
func (t *Table) Limited(at Endpoint) (dropped uint64, err error) {
	all, err := t.AllLimited()
	return all[at], err
}

// AllLimited is Limited for every service that has limits, in one reading.
func (t *Table) AllLimited() (map[Endpoint]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := make(map[Endpoint]uint64)
	for _, f := range families() {
		list, err := t.nl.GetSetElements(timedSet(setRefused + f.name))
		if errors.Is(err, unix.ENOENT) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("read dropped packets: %w", err)
		}
		for _, s := range list {
			if at, _, err := parseKey(s.Key, f); err == nil && s.Counter != nil {
				all[at] = s.Counter.Packets
			}
		}
	}
	return all, nil
}

// special tells of elements with an expression of their own, which the library
// cannot say.
func (k kind) special() bool { return k == rates || k == flows }

// addSpecial adds those of the entries that are special, in a transaction of
// their own.
func (t *Table) addSpecial(es []entry) error {
	const perMessage = 256
	lists := make(map[string][]netlink.Attribute)
	for _, e := range es {
		if !e.kind.special() {
			continue
		}
		b, err := e.encodeSpecial()
		if err != nil {
			return fmt.Errorf("encode limit: %w", err)
		}
		name := e.home().name(families()[familyOf(e.at.Addr)])
		lists[name] = append(lists[name], netlink.Attribute{Type: unix.NLA_F_NESTED | unix.NFTA_LIST_ELEM, Data: b})
	}
	var msgs []netlink.Message
	for name, list := range lists {
		for part := range slices.Chunk(list, perMessage) {
			elems, err := netlink.MarshalAttributes(part)
			if err != nil {
				return fmt.Errorf("encode limits: %w", err)
			}
			attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
				{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(Name + "\x00")},
				{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")},
				{Type: unix.NLA_F_NESTED | unix.NFTA_SET_ELEM_LIST_ELEMENTS, Data: elems},
			})
			if err != nil {
				return fmt.Errorf("encode limits: %w", err)
			}
			msgs = append(msgs, netlink.Message{
				Header: netlink.Header{
					Type:  unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWSETELEM,
					Flags: netlink.Request | netlink.Create | netlink.Acknowledge,
				},
				Data: append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...),
			})
		}
	}
	if len(msgs) == 0 {
		return nil
	}
	if err := batch(t.sock, msgs); err != nil {
		return fmt.Errorf("add limits: %w", err)
	}
	return nil
}

func (e entry) encodeSpecial() ([]byte, error) {
	s := e.encode()
	x := overRate(e.n)
	if e.kind == flows {
		x = overFlows(e.n)
	}
	what, err := expr.Marshal(unix.NFPROTO_INET, x)
	if err != nil {
		return nil, err
	}
	key, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_DATA_VALUE, Data: s.Key}})
	if err != nil {
		return nil, err
	}
	return netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NLA_F_NESTED | unix.NFTA_SET_ELEM_KEY, Data: key},
		{Type: unix.NFTA_SET_ELEM_USERDATA, Data: userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, s.Comment)},
		{Type: unix.NLA_F_NESTED | unix.NFTA_SET_ELEM_EXPR, Data: what},
	})
}
