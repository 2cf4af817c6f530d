package nft

import "fmt"

// A Balance says how a new flow chooses among the slots of its service.
type Balance uint8

const (
	// RoundRobin takes the slots strictly in turn.
	RoundRobin Balance = iota
	// Random takes any slot.
	Random
	// SourceHash gives a client's address the same slot as long as the number
	// of slots is the same.
	SourceHash
	// FlowHash chooses by the client's address and port. Every host that has
	// the same slots makes the same choice.
	FlowHash
)

// The seeds of the hashes are fixed, so that choices are the same after the
// table has been built anew, and on other hosts (of the same byte order).
const (
	sourceSeed = 0x51a1ce00
	flowSeed   = 0x51a1ce01
)

func balances() []Balance { return []Balance{RoundRobin, Random, SourceHash, FlowHash} }

// String returns the name used in configuration files, as far as there is one.
func (b Balance) String() string {
	switch b {
	case RoundRobin:
		return "round-robin"
	case Random:
		return "random"
	case SourceHash:
		return "source-hash"
	case FlowHash:
		return "flow-hash"
	}
	return fmt.Sprintf("balance %d", uint8(b))
}

func (b Balance) check() error {
	if b > FlowHash {
		return fmt.Errorf("%s: %w", b, ErrInvalid)
	}
	return nil
}
