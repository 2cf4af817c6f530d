package nft_test

import (
	"slices"
	"sluice/nft"
)

func equal(a, b nft.Service) bool { return slices.Equal(a.Slots, b.Slots) }
