package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

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
func (s *stage) footing(t *testing.T) (f footing) {
	t.Helper()
	resp, err := s.Host.HTTPClient(testenv.HTTPOptions{Timeout: patient}).Get("http://127.0.0.1:9464/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status, err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch name {
		case "go_goroutines":
			f.goroutines = int(v)
		case "go_memstats_heap_inuse_bytes":
			f.heap = int(v)
		}
	}
	if f.goroutines == 0 || f.heap == 0 {
		t.Fatal("the metrics do not tell of goroutines and heap")
	}
	dir := fmt.Sprintf("/proc/%d/fd", s.d.cmd.Process.Pid)
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
		for _, of := range []string{"set frozen4", "set frozen6", "set replay4", "set replay6", "map sources4", "map sources6"} {
			kind, name, _ := strings.Cut(of, " ")
			if text := s.Host.Run(t, "nft", "list", kind, "inet", "sluice", name); strings.Contains(text, "elements") {
				return false, "elements are left: " + text
			}
		}
		for _, f := range testenv.Conntrack(t, s.Host) {
			// A SYN that was sent where nobody is goes on for two minutes.
			if f.DNAT() && f.State != "TIME_WAIT" && f.State != "CLOSE" && f.Reply.Src.Addr().String() != nobody {
				return false, fmt.Sprintf("flow is left: %v", f)
			}
		}
		if f := s.footing(t); f.pidfds != 3 {
			return false, f.String()
		}
		return true, ""
	})
}
