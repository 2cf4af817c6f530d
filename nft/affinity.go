package nft

import (
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables/expr"
)

// affinities are the times for which a client's backend can be remembered. Each
// has chains of its own, since a rule's timeout is fixed.
func affinities() []time.Duration {
	return []time.Duration{
		time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second,
		time.Minute, 2 * time.Minute, 3 * time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 20 * time.Minute, 30 * time.Minute,
		time.Hour, 2 * time.Hour, 3 * time.Hour, 4 * time.Hour, 6 * time.Hour, 8 * time.Hour, 12 * time.Hour, 24 * time.Hour,
		2 * 24 * time.Hour, 7 * 24 * time.Hour,
	}
}

// Affinities returns the times that Service.Affinity is rounded up to, in
// ascending order.
func Affinities() []time.Duration { return affinities() }

// affinityClass returns the smallest of affinities that is at least d.
func affinityClass(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	all := affinities()
	i, _ := slices.BinarySearch(all, d)
	return all[min(i, len(all)-1)]
}

func checkAffinity(d time.Duration) error {
	if all := affinities(); d < 0 || d > all[len(all)-1] {
		return fmt.Errorf("affinity %v: %w", d, ErrInvalid)
	}
	return nil
}

// keepChain is the chain that remembers backends for a time, of services at one
// address or at every.
func keepChain(d time.Duration, wild bool) string {
	if wild {
		return fmt.Sprintf("keep-any-%d", int(d.Seconds()))
	}
	return fmt.Sprintf("keep-%d", int(d.Seconds()))
}

func parseKeep(chain string, wild bool) (time.Duration, bool) {
	for _, d := range affinities() {
		if chain == keepChain(d, wild) {
			return d, true
		}
	}
	return 0, false
}

// remembered is how many clients' backends the kernel keeps in each family.
// Addresses can be forged, so there is an end to it: some 160 MB.
const remembered = 1 << 20

// The hash by which the kernel notes a client's backend. It cannot store the
// backend itself and check on the way back whether it is one still: nft before
// 1.1 cannot list a rule that looks up what it has just looked up. A number can
// be put into the conntrack mark in between.
const (
	memberSeed    = 0x51a1ce02
	memberModulus = 1<<32 - 1
	memberOffset  = 1 // so that none is 0
)

// memberID is what the kernel's jhash makes of a backend. Two backends of one
// service that have the same, which happens once in a billion services, would
// be one to their clients.
func memberID(b netip.AddrPort) uint32 {
	h := jhash(addrPort(b), memberSeed)
	return uint32(uint64(h)*memberModulus>>32) + memberOffset
}

// jhash is the kernel's function of this name (include/linux/jhash.h), for keys
// of whole words. It is Jenkins' lookup3.
func jhash(key []byte, seed uint32) uint32 {
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(key[4*i:]) }
	a := uint32(0xdeadbeef) + uint32(len(key)) + seed
	b, c := a, a
	for len(key) > 12 {
		a, b, c = a+word(0), b+word(1), c+word(2)
		a = (a - c) ^ bits.RotateLeft32(c, 4)
		c += b
		b = (b - a) ^ bits.RotateLeft32(a, 6)
		a += c
		c = (c - b) ^ bits.RotateLeft32(b, 8)
		b += a
		a = (a - c) ^ bits.RotateLeft32(c, 16)
		c += b
		b = (b - a) ^ bits.RotateLeft32(a, 19)
		a += c
		c = (c - b) ^ bits.RotateLeft32(b, 4)
		b += a
		key = key[12:]
	}
	// The rest is read byte by byte, the lowest first.
	for i, add := range []*uint32{&a, &b, &c} {
		if len(key) >= 4*i+4 {
			*add += binary.LittleEndian.Uint32(key[4*i:])
		}
	}
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}

// recall sends a flow to the backend that its client had, if it is one still.
// For want of another place (see memberSeed) the backend's number is in the
// conntrack mark on the way from one map to the next. A mark that others have
// set waits in a map meanwhile.
func (c *chain) recall(f family, service []field) {
	words := f.size / 4
	client := append(slices.Clip(service), saddr(f))
	member := append(slices.Clip(service), mark())
	flow := []field{l4proto(), saddr(f), sport(), daddr(f), dport()}

	c.add(isFamily(f), noMark(expr.CmpOpNeq), concat(flow...), forget(setMarks+f.name), update(setMarks+f.name, marksTimeout, mark()), setMark(0, 0))
	c.add(isFamily(f), noMark(expr.CmpOpNeq), giveUp()) // there is no room: a stranger's mark comes first
	c.add(isFamily(f), concat(client...), value(setAffinity+f.name), markFrom(0))
	c.add(isFamily(f), concat(member...), value(setMembers+f.name),
		concatAt(words+1, flow...), valueAt(words+1, setMarks+f.name), markFrom(words+1), deliver(f))
	c.add(isFamily(f), concat(member...), value(setMembers+f.name), setMark(words+1, CTMark), send(f))
	// A new choice could not overwrite the old.
	c.add(isFamily(f), concat(client...), forget(setAffinity+f.name))
	c.add(isFamily(f), setMark(0, 0))
	c.add(isFamily(f), concat(flow...), value(setMarks+f.name), markFrom(0))
}

// marksTimeout is far longer than a packet spends in a chain.
const marksTimeout = time.Second

// keepRules remember which backend the client of a new flow has got. They run
// after the translation, whichever way it was chosen.
func keepRules(d time.Duration, any bool) chain {
	c := chain{name: keepChain(d, any)}
	for _, f := range families() {
		addr := ctDaddr(f)
		if any {
			addr = wild(f, addr)
		}
		c.add(isFamily(f), concat(addr, l4proto(), ctDport(), saddr(f)), update(setAffinity+f.name, d, member(f)))
	}
	return c
}
