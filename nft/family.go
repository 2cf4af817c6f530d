package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// A family is what differs between IPv4 and IPv6.
type family struct {
	name  string // suffix of set names
	proto byte   // NFPROTO
	size  uint32 // bytes of an address
	saddr uint32 // offset in the network header
	daddr uint32
	addr  nftables.SetDatatype
}

func families() [2]family {
	return [2]family{
		{"4", unix.NFPROTO_IPV4, 4, 12, 16, nftables.TypeIPAddr},
		{"6", unix.NFPROTO_IPV6, 16, 8, 24, nftables.TypeIP6Addr},
	}
}

// familyOf returns the family's place in families.
func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Each field of a concatenation fills whole 4-byte registers, zero-padded at
// its end, in keys as in data.

func appendAddr(b []byte, a netip.Addr) []byte { return append(b, a.AsSlice()...) }

func appendPort(b []byte, p uint16) []byte { return append(b, byte(p>>8), byte(p), 0, 0) }

// appendSlot encodes what numgen leaves in a register: a native-endian number.
func appendSlot(b []byte, n uint16) []byte {
	return binary.NativeEndian.AppendUint32(b, uint32(n))
}

func endpointKey(e Endpoint) []byte {
	b := appendAddr(make([]byte, 0, 28), e.Addr)
	return appendPort(append(b, e.Proto, 0, 0, 0), e.Port)
}

func addrPort(a netip.AddrPort) []byte {
	return appendPort(appendAddr(make([]byte, 0, 20), a.Addr()), a.Port())
}

// errShort tells of a key or value that is not of the layout's size.
func errShort(what string, b []byte) error {
	return fmt.Errorf("decode %s: %d bytes: %w", what, len(b), ErrInvalid)
}

func parseAddrPort(b []byte, f family) (netip.AddrPort, error) {
	if len(b) < int(f.size)+2 {
		return netip.AddrPort{}, errShort("address", b)
	}
	a, _ := netip.AddrFromSlice(b[:f.size])
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[f.size:])), nil
}

// parseKey reads the key of an endpoint and, where the key has one, the slot.
func parseKey(b []byte, f family) (e Endpoint, slot uint16, err error) {
	if len(b) < int(f.size)+8 {
		return e, 0, errShort("key", b)
	}
	a, _ := netip.AddrFromSlice(b[:f.size])
	e = Endpoint{Addr: a, Proto: b[f.size], Port: binary.BigEndian.Uint16(b[f.size+4:])}
	if rest := b[f.size+8:]; len(rest) >= 4 {
		slot = uint16(binary.NativeEndian.Uint32(rest))
	}
	return e, slot, nil
}
