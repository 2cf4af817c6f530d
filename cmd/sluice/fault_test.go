package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// A fault is something that goes wrong under a running daemon.
type fault struct {
	name string
	// waking says how far waking has come: with its container up, or as soon as
	// it has begun to.
	early bool
	// first: it expects each service in its phase.
	first bool
	// exposes: new connections to services that are awake meet the daemon for a
	// moment, which holds or relays them. If it restarts then, they are lost.
	exposes, restarts bool
	// prepare makes ready for it, before there are clients at the services that
	// sleep. With it the fault is too slow for the soak.
	prepare func(t *testing.T, s *stage)
	// after clears away what is left when the clients have gone; nil for nothing.
	after func(s *stage)
	// strike makes it go wrong. It may undo it after a while; what it leaves is
	// for the daemon to put right.
	strike func(t *testing.T, s *stage, b *blow)
	// promise says which connections may fail; nil for none. See the README.
	promise func(contact, *blow) bool
}

// A blow is one time that a fault happens.
type blow struct {
	from, to time.Time       // what happens between may be lost, if the promise says so
	died     time.Time       // the daemon, if it did
	hit      map[string]bool // containers that were hit, by id, or services
	log      int             // where the log was before
}

// onVictim: connections to the container that was hit, and those that came to
// it before it was out of the map.
func onVictim(c contact, b *blow) bool {
	return b.hit[c.server] || c.server == "" && inGap(c, b)
}

// inGap: connections that were under way in the time of the fault.
func inGap(c contact, b *blow) bool {
	return c.began.Before(b.to) && c.ended.After(b.from)
}

// A cell is a fault in a phase, with what became of the connections.
type cell struct {
	fault, phase          string
	made, failed, allowed int
	result                string
}

// cells collects those of stages that run in parallel.
type cells struct {
	mu   sync.Mutex
	list []cell
}

func (c *cells) add(x cell) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.list = append(c.list, x)
}

func (c *cells) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%-34s %-9s %11s %7s %9s  %s\n", "fault", "phase", "connections", "failed", "promised", "result")
	for _, x := range c.list {
		fmt.Fprintf(&b, "%-34s %-9s %11d %7d %9d  %s\n", x.fault, x.phase, x.made, x.failed, x.allowed, x.result)
	}
	return b.String()
}

// endure lets a fault happen once and holds the clients of each phase against
// what they were promised.
func (s *stage) endure(t *testing.T, f fault, table *cells) {
	t.Helper()
	began := time.Now()
	s.clients.forget(began)
	b := &blow{log: s.d.mark(), hit: map[string]bool{}}
	if f.prepare != nil {
		f.prepare(t, s)
	}

	waking := s.clients.visit(inWaking, 2, 1, 50*time.Millisecond)
	s.until(t, inWaking, "its wake", func(st control.ServiceStatus) bool {
		return st.Phase == "waking" && (f.early || len(st.Backends) == 1 && st.Backends[0].State == "probing")
	})
	b.from = time.Now()
	cold := s.clients.visit(inCold, 2, 1, 50*time.Millisecond)
	f.strike(t, s, b)
	if b.to.IsZero() {
		b.to = time.Now()
	}

	// It is over when every service is as it should be, and has served clients
	// that came later.
	s.until(t, inCold, "cold awake", func(st control.ServiceStatus) bool { return st.Phase == "warm" })
	s.until(t, inWaking, "waking awake", func(st control.ServiceStatus) bool { return st.Phase == "warm" })
	s.until(t, inWarm, "both replicas of warm", func(st control.ServiceStatus) bool { return st.Ready >= 2 && st.Phase == "warm" })
	s.until(t, inDraining, "draining awake", func(st control.ServiceStatus) bool { return st.Ready > 0 && st.Phase == "warm" })
	later := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	for _, name := range stagePhases() {
		if err := s.clients.await(ctx, 2, func(c contact) bool {
			return c.service == name && c.kind == "short" && c.began.After(later) && !c.ended.IsZero() && c.err == nil
		}); err != nil {
			t.Errorf("%s: %s does not serve afterwards: %v", f.name, name, err)
		}
	}
	s.clients.settle(t, later, func(c contact) bool {
		c.ended = later
		return f.promise != nil && f.promise(c, b)
	})
	cold.end()
	waking.end()
	s.judge(t, f, b, began, table)
	s.quiet(t, f, b)

	if f.after != nil {
		f.after(s)
	}
	s.asleepAgain(t, inCold)
	s.asleepAgain(t, inWaking)
	if !s.isDraining(s.status(t, inDraining)) {
		s.drainOne(t)
	}
	t.Logf("%s: %s", f.name, time.Since(began).Round(time.Millisecond))
}

// judge fills a row of cells.
func (s *stage) judge(t *testing.T, f fault, b *blow, began time.Time, table *cells) {
	t.Helper()
	calls := s.clients.since(began)
	for _, phase := range stagePhases() {
		x := cell{fault: f.name, phase: phase, result: "ok"}
		for _, c := range calls {
			if c.service != phase {
				continue
			}
			x.made++
			if c.err == nil {
				continue
			}
			x.failed++
			if c.lost() && (c.excused || f.promise != nil && f.promise(c, b)) {
				x.allowed++
				continue
			}
			x.result = "BROKEN"
			t.Errorf("%s: %v", f.name, c)
		}
		if x.made == 0 {
			x.result = "BROKEN"
			t.Errorf("%s: no connections to %s", f.name, phase)
		}
		table.add(x)
	}
}

// quiet checks that the daemon has not said the same again and again: of one
// kind, for one backend, once for what goes wrong and once for what comes of it.
func (s *stage) quiet(t *testing.T, f fault, b *blow) {
	t.Helper()
	most := 2 * (1 + strings.Count(f.name, " + ")) // see choose
	said := map[string]int{}
	for _, l := range s.d.log.Since(b.log) {
		if lv := l.field("level"); lv != "warn" && lv != "error" {
			continue
		}
		kind := l.fields["event"]
		if kind == nil {
			kind = fmt.Sprint(l.fields["message"], l.fields["error"])
		}
		key := fmt.Sprint(l.fields["service"], " ", l.fields["backend"], " ", kind)
		if said[key]++; said[key] == most+1 {
			t.Errorf("%s: said more than %d times: %s", f.name, most, l.text)
		}
	}
}

// TestFaults: each fault, while one service sleeps, one wakes, one is warm and
// one drains, with clients at all of them. Not one connection fails that was
// not promised to.
func TestFaults(t *testing.T) {
	t.Parallel()
	table := &cells{}
	t.Cleanup(func() { t.Log(table) })
	for _, group := range faultGroups() {
		t.Run(group.name, func(t *testing.T) {
			t.Parallel()
			s := newStage(t, group)
			for _, f := range group.faults {
				s.endure(t, f, table)
			}
			s.leave(t)
		})
	}
}

// leave ends the clients and puts everything to sleep: what is left then, and
// what a fresh daemon does without, is a leak.
func (s *stage) leave(t *testing.T) {
	t.Helper()
	s.goHome()
	if s.torn {
		s.forgetFlows(stagePhases()...)
	}
	for _, name := range stagePhases() {
		s.order(t, name, "drain")
	}
	s.until(t, inCold, "sleep", asleep)
	s.until(t, inWaking, "sleep", asleep)
	for name, want := range map[string]int{inWarm: 2, inDraining: 1} {
		s.until(t, name, "its least", func(st control.ServiceStatus) bool { return st.Ready == want && len(st.Backends) == want })
	}
	testenv.Eventually(t, patient, func() (bool, string) {
		n := s.containers(t)
		return len(n) == 3, fmt.Sprintf("containers are left: %v", n)
	})
	s.empty(t)
	s.afresh(t)
}
