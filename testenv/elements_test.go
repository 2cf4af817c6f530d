package testenv

import (
	"slices"
	"testing"
)

// TestElements reads what nft(8) prints of each kind of set.
func TestElements(t *testing.T) {
	t.Parallel()
	lab := NewLab(t)
	lab.Host.RunInput(t, `table inet x {
	set empty { type ipv4_addr; }
	set plain { type ipv4_addr . inet_service; elements = { 192.0.2.2 . 80, 192.0.2.1 . 80 }; }
	set times { type ipv6_addr; flags timeout; elements = { 2001:db8::1 timeout 1h }; }
	map jumps { type ipv4_addr : verdict; elements = { 192.0.2.1 : goto other }; }
	map slots { type ipv6_addr : ipv4_addr . inet_service; flags timeout; elements = { 2001:db8::1 timeout 1h : 192.0.2.1 . 80 }; }
	chain other { }
}`, "nft", "-f", "-")
	want := []Element{
		{"jumps", "192.0.2.1", "goto other", false},
		{"plain", "192.0.2.1 . 80", "", false},
		{"plain", "192.0.2.2 . 80", "", false},
		{"slots", "2001:db8::1", "192.0.2.1 . 80", true},
		{"times", "2001:db8::1", "", true},
	}
	if got := Elements(t, lab.Host, "x"); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
