package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/policy"
	"sluice/testenv"
)

// TestWeights: fixed backends get new connections in proportion to their
// weights, also to weights that a reload brings, and none with a weight of 0.
func TestWeights(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	n := testenv.NewBackendNet(t, h.Host, 3)
	for _, b := range n.Backends {
		testenv.StartServer(t, b.NS)
	}
	config := func(weights ...int) string {
		text := fmt.Sprintf("[service.web]\nlisten = [\"%s:80/tcp\"]\n", address)
		for i, b := range n.Backends {
			text += fmt.Sprintf("[[service.web.backend]]\naddress = %q\nweight = %d\n", netip.AddrPortFrom(b.Addr4, 8080), weights[i])
		}
		return h.configure(t, text)
	}
	d := h.start(t, config(1, 3, 0))
	if _, errOut, code := h.sluice(t, "scale", "web", "2"); code != 1 || !strings.Contains(errOut, "no container") {
		t.Errorf("scale of fixed backends: exit %d: %s", code, errOut)
	}
	for _, round := range []struct{ weights, want [3]int }{
		{[3]int{1, 3, 0}, [3]int{20, 60, 0}},
		{[3]int{2, 1, 1}, [3]int{40, 20, 20}},
	} {
		if round.weights != [3]int{1, 3, 0} {
			config(round.weights[:]...)
			h.must(t, "reload")
		}
		d.until(t, fmt.Sprint(round.weights), func(st control.ServiceStatus) bool {
			for i, b := range n.Backends {
				for _, have := range st.Backends {
					if have.Address == netip.AddrPortFrom(b.Addr4, 8080).String() && (have.Weight > 0) != (round.weights[i] > 0) {
						return false
					}
				}
			}
			return len(st.Backends) == 3
		})
		var got [3]int
		// Round-robin: whole rounds are exact wherever they begin, once the
		// kernel has the new slots.
		testenv.Eventually(t, patient, func() (bool, string) {
			got = [3]int{}
			for range 80 {
				who := testenv.WhoAnswered(t, h.Client, address+":80").Name
				for i, b := range n.Backends {
					if b.Name == who {
						got[i]++
					}
				}
			}
			return got == round.want, fmt.Sprintf("weights %v: %v of 80 connections, want %v", round.weights, got, round.want)
		})
	}
}

// TestSlowStart: a replica that joins another begins with a part of its share,
// which grows until it is whole.
func TestSlowStart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("min = 1\nslow_start = \"8s\"", "", "")))
	d.until(t, "the first", func(st control.ServiceStatus) bool { return st.Ready == 1 && st.Backends[0].Weight > 0 })
	h.must(t, "scale", "web", "2")
	var seen []int
	d.until(t, "whole shares", func(st control.ServiceStatus) bool {
		if len(st.Backends) < 2 || st.Backends[1].Weight == 0 {
			return false
		}
		if w := st.Backends[1].Weight; len(seen) == 0 || w != seen[len(seen)-1] {
			seen = append(seen, w)
		}
		return st.Backends[0].Weight == policy.ReplicaWeight && st.Backends[1].Weight == policy.ReplicaWeight
	})
	t.Log(seen)
	if len(seen) < 3 || !slices.IsSorted(seen) {
		t.Errorf("the share of a new replica does not grow: %v", seen)
	}
}
