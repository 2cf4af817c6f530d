package nft

import (
	"fmt"
	"strings"
	"time"
)

// traits are what a service is besides its slots. They are kept in the kernel
// as the comment of the service's element in the set known, for the operator to
// read and for a later process to adopt.
type traits struct {
	balance    Balance
	masquerade bool
	affinity   time.Duration
	limits     Limits
}

func (s Service) traits() traits {
	return traits{balance: s.Balance, masquerade: s.Masquerade, affinity: affinityClass(s.Affinity), limits: s.Limits.round()}
}

// String returns the comment: words, and nothing for what is usual.
func (t traits) String() string {
	var words []string
	if t.balance != RoundRobin {
		words = append(words, t.balance.String())
	}
	if t.masquerade {
		words = append(words, "masquerade")
	}
	if t.affinity > 0 {
		words = append(words, "affinity="+t.affinity.String())
	}
	return strings.Join(append(words, t.limits.words()...), " ")
}

func parseTraits(comment string) (traits, error) {
	var t traits
	for _, w := range strings.Fields(comment) {
		if w == "masquerade" {
			t.masquerade = true
			continue
		}
		if d, ok := strings.CutPrefix(w, "affinity="); ok {
			t.affinity, _ = time.ParseDuration(d)
			t.affinity = affinityClass(t.affinity)
			continue
		}
		t.limits.parse(w)
		for _, b := range balances() {
			if w == b.String() {
				t.balance = b
			}
		}
	}
	if t.String() != comment {
		return t, fmt.Errorf("decode comment %q: %w", comment, ErrInvalid)
	}
	return t, nil
}
