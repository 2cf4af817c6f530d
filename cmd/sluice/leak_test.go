package main

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"sluice/cmd/internal/admin"
	"sluice/nft"
	"sluice/testenv"
)

// A footing is what a daemon holds at a moment.
type footing struct {
	goroutines, heap, descriptors, pidfds int
}

func (f footing) String() string {
	return fmt.Sprintf("%d goroutines, %.1f MiB of heap, %d descriptors, %d of them of processes",
		f.goroutines, float64(f.heap)/(1<<20), f.descriptors, f.pidfds)
}

// footing asks the daemon and the kernel what the daemon holds.
func (d *proc) footing(t *testing.T) (f footing) {
	t.Helper()
	m := d.metrics(t)
	f.goroutines, f.heap = int(m["go_goroutines"]), int(m["go_memstats_heap_inuse_bytes"])
	if f.goroutines == 0 || f.heap == 0 {
		t.Fatal("the metrics do not tell of goroutines and heap")
	}
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	f.descriptors = len(fds)
	for _, e := range fds {
		if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && link == "anon_inode:[pidfd]" {
			f.pidfds++
		}
	}
	return f
}

// empty waits until nothing is left of connections that have ended: no socket
// of the daemon's, no element in the table that belongs to one connection, no
// live entry in conntrack, and no process watched that is not a replica's.
func (s *stage) empty(t *testing.T) {
	t.Helper()
	pid := s.d.cmd.Process.Pid
	testenv.Eventually(t, patient, func() (bool, string) {
		for _, k := range testenv.Sockets(t, s.Host, pid) {
			if k.State != "LISTEN" && k.Local.Port() != 9464 {
				return false, fmt.Sprintf("socket is left: %v", k)
			}
		}
		if text := s.leftInTable(t); text != "" {
			return false, text
		}
		for _, f := range testenv.Conntrack(t, s.Host) {
			if f.Mark&nft.CTMask != nft.CTMark && !f.DNAT() {
				continue
			}
			// What has ended goes by itself.
			if ended := f.State == "TIME_WAIT" || f.State == "CLOSE"; ended && f.Timeout > 0 && f.Timeout <= 120 {
				continue
			}
			// A SYN that was sent where nobody is goes on for two minutes.
			if f.Reply.Src.Addr().String() != nobody {
				return false, fmt.Sprintf("flow is left: %v", f)
			}
		}
		if f := s.d.footing(t); f.pidfds != 3 {
			return false, f.String()
		}
		return true, ""
	})
}

var ipv4 = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)

// leftInTable finds an element that no service, replica or connection of now
// accounts for, whatever map it is in.
func (s *stage) leftInTable(t *testing.T) string {
	t.Helper()
	st, err := admin.Dial(s.admin()).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	known, sleeps := map[string]bool{}, map[string]bool{}
	for _, service := range st.Services {
		addr := stageAddr(service.Name)
		known[addr], sleeps[addr] = true, asleep(service)
		for _, b := range service.Backends {
			known[netip.MustParseAddrPort(b.Address).Addr().String()] = true
		}
	}
	for _, e := range testenv.Elements(t, s.Host, nft.Name) {
		set := strings.TrimRight(e.Set, "46")
		if set == "backends" && e.Timeout {
			continue // those that are gone are guarded for a day
		}
		// One connection, or one client.
		if slices.Contains([]string{"frozen", "replay", "sources", "marks", "alarms", "affinity", "rate-of", "flows-of"}, set) {
			return "element of a connection is left: " + e.String()
		}
		for _, addr := range ipv4.FindAllString(e.String(), -1) {
			switch {
			case !known[addr]:
				return fmt.Sprintf("element is left of %s, which is gone: %v", addr, e)
			case sleeps[addr] && set != "known" && set != "cold":
				return fmt.Sprintf("element is left of a service that sleeps: %v", e)
			}
		}
	}
	return ""
}

// afresh restarts the daemon and compares what it holds, and what there is in
// its table, with what a daemon that has seen nothing holds.
func (s *stage) afresh(t *testing.T) {
	t.Helper()
	used, table := s.d.footing(t), testenv.Elements(t, s.Host, nft.Name)
	s.restart(t, &blow{}, syscall.SIGTERM)
	s.empty(t)
	fresh := s.d.footing(t)
	t.Logf("in the end: %v; afresh: %v; %d elements", used, fresh, len(table))
	// Connections to Podman are kept for a while, each with two goroutines.
	const idle = 16
	if used.goroutines > fresh.goroutines+2*idle || used.descriptors > fresh.descriptors+idle || used.heap > fresh.heap+32<<20 {
		t.Errorf("something is left: %v; afresh: %v", used, fresh)
	}
	if now := testenv.Elements(t, s.Host, nft.Name); !slices.Equal(now, table) {
		t.Errorf("elements in the end:\n%v\nafresh:\n%v", table, now)
	}
}
