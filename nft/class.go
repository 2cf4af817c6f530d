package nft

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// classes are the allowed slot counts. Each class above 1 has chains of its
// own in the table, since the modulus of a number generator is fixed when its
// rule is made.
func classes() []int {
	return []int{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
		24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048}
}

// Classes returns the allowed slot counts in ascending order.
func Classes() []int { return classes() }

// Class returns the smallest class that is at least n: how many slots a
// service with n backends (or n parts of weight) needs. It returns 0 for n < 1
// and the largest class for an n above it.
func Class(n int) int {
	if n < 1 {
		return 0
	}
	all := classes()
	i, _ := slices.BinarySearch(all, n)
	return all[min(i, len(all)-1)]
}

// lanes is the number of round-robin lanes of a class. It is a compromise: for
// each element added to a map the kernel checks every rule that uses the map,
// and all of the chains are in the operator's listing.
func lanes(mod int) int {
	switch {
	case mod < 2:
		return 0
	case mod <= 4:
		return 16
	case mod <= 8:
		return 8
	default:
		return 4
	}
}

// A lane is a chain that picks one of mod slots. A round-robin lane counts, and
// its counter serves one service only, so that the service gets its slots
// strictly in turn whatever others do: two services in lock-step on one
// counter would see every second slot each. A service that finds all lanes of
// its class taken goes to the class's random chain. The chains of the other ways
// to choose may be shared by any number. The zero lane is none.
type lane struct {
	mod   uint16
	index uint16 // of a round-robin lane
	by    Balance
}

// String returns the name of the lane's chain.
func (l lane) String() string {
	switch l.by {
	case Random:
		return fmt.Sprintf("random-%d", l.mod)
	case SourceHash:
		return fmt.Sprintf("source-%d", l.mod)
	case FlowHash:
		return fmt.Sprintf("flow-%d", l.mod)
	}
	return fmt.Sprintf("rr-%d-%d", l.mod, l.index)
}

func parseLane(name string) (lane, bool) {
	part := strings.Split(name, "-")
	num := make([]uint16, 0, 2)
	for _, s := range part[1:] {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			return lane{}, false
		}
		num = append(num, uint16(n))
	}
	l := lane{}
	switch {
	case part[0] == "random" && len(num) == 1:
		l = lane{mod: num[0], by: Random}
	case part[0] == "source" && len(num) == 1:
		l = lane{mod: num[0], by: SourceHash}
	case part[0] == "flow" && len(num) == 1:
		l = lane{mod: num[0], by: FlowHash}
	case part[0] == "rr" && len(num) == 2:
		l = lane{mod: num[0], index: num[1]}
	default:
		return lane{}, false
	}
	return l, Class(int(l.mod)) == int(l.mod) && l.mod > 1 && l.String() == name
}
