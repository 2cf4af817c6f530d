package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// soakEnv is how long TestSoak goes on, soakSeed what it chooses by.
const (
	soakEnv  = "SOAK"
	soakSeed = "SEED"
)

// TestSoak: faults and orders at random with clients all the time. No connection
// fails that none of them was promised to, and nothing is left in the end. It
// goes on for a minute, or for SOAK, and then with up to three at a time, none
// waiting for what the one before has done to be put right.
func TestSoak(t *testing.T) {
	t.Parallel()
	last, most := time.Minute, 1
	if text := os.Getenv(soakEnv); text != "" {
		d, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("%s: %v", soakEnv, err)
		}
		last, most = d, 3
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv(soakSeed); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("%s: %v", soakSeed, err)
		}
		seed = n
	}
	t.Logf("%s=%d repeats the choice", soakSeed, seed)
	r := rand.New(rand.NewPCG(seed, 0))

	list := orders()
	for _, g := range faultGroups() {
		list = append(list, slices.DeleteFunc(g.faults, func(f fault) bool { return g.watched || g.managed || f.prepare != nil })...)
	}
	table := &cells{}
	t.Cleanup(func() { t.Log(table) })
	s := newStage(t, faultGroup{relayed: true})
	var pid int
	var life []footing // of one daemon
	for end := time.Now().Add(last); time.Now().Before(end) && !t.Failed(); {
		s.endure(t, choose(r, list, most), table)
		if s.d.cmd.Process.Pid != pid {
			grown(t, life)
			pid, life = s.d.cmd.Process.Pid, nil
		}
		life = append(life, s.d.footing(t))
	}
	grown(t, life)
	s.leave(t)
}

// choose makes one fault of up to so many.
func choose(r *rand.Rand, list []fault, most int) fault {
	var some []fault
	for range 1 + r.IntN(most) {
		f := list[r.IntN(len(list))]
		if f.first { // at most one, before the others
			some = slices.DeleteFunc(some, func(g fault) bool { return g.first })
			some = append([]fault{f}, some...)
			continue
		}
		some = append(some, f)
	}
	var names []string
	early, exposes, restarts := false, false, false
	for _, f := range some {
		names = append(names, f.name)
		early, exposes, restarts = early || f.early, exposes || f.exposes, restarts || f.restarts
	}
	blows := make([]*blow, 0, len(some))
	return fault{
		name: strings.Join(names, " + "), early: early && !some[0].first,
		strike: func(t *testing.T, s *stage, b *blow) {
			d := s.d
			for _, f := range some {
				x := &blow{from: time.Now(), log: s.d.mark(), hit: map[string]bool{}}
				blows = append(blows, x)
				f.strike(t, s, x)
				if x.to.IsZero() {
					x.to = time.Now()
				}
			}
			if s.d != d {
				b.log = 0
			}
		},
		after: func(s *stage) {
			for _, f := range some {
				if f.after != nil {
					f.after(s)
				}
			}
		},
		promise: func(c contact, _ *blow) bool {
			for i, x := range blows {
				if p := some[i].promise; p != nil && p(c, x) {
					return true
				}
			}
			return exposes && restarts && c.began.After(blows[0].from) && c.began.Before(blows[len(blows)-1].to)
		},
	}
}

// grown compares the end of a daemon's life with its beginning.
func grown(t *testing.T, life []footing) {
	t.Helper()
	third := len(life) / 3
	if third < 2 {
		return
	}
	median := func(part []footing, of func(footing) int) int {
		var list []int
		for _, f := range part {
			list = append(list, of(f))
		}
		slices.Sort(list)
		return list[len(list)/2]
	}
	for _, x := range []struct {
		name string
		of   func(footing) int
		more int
	}{
		{"goroutines", func(f footing) int { return f.goroutines }, 40},
		{"descriptors", func(f footing) int { return f.descriptors }, 20},
		{"heap", func(f footing) int { return f.heap }, 16 << 20},
	} {
		first, last := median(life[:third], x.of), median(life[len(life)-third:], x.of)
		if last > first+x.more {
			t.Errorf("%s have grown from %d to %d in %d rounds: %s", x.name, first, last, len(life), fmt.Sprint(life))
		}
	}
}
