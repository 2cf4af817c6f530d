package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestFull: a table without room is said, before the last entry is taken.
func TestFull(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	s := newSettings(zerolog.New(&text), nil)
	s.root = t.TempDir()
	dir := filepath.Join(s.root, "net/netfilter")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, value string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_"+name), []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("max", "1000")
	for count, said := range map[string]bool{"989": false, "990": true, "1000": true} {
		write("count", count)
		text.Reset()
		clear(s.told)
		if err := s.full(time.Now()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(text.String(), "raise net.netfilter.nf_conntrack_max"); got != said {
			t.Errorf("%s of 1000: said %v: %s", count, got, text.String())
		}
	}
}

// TestForward: forwarding that was never on is the owner's choice; once it was,
// it is turned on again, and that is said once in a while.
func TestForward(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	s := newSettings(zerolog.New(&text), nil)
	s.root = t.TempDir()
	path := filepath.Join(s.root, "net/ipv4/ip_forward")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	step := func(value, want string, lines int) {
		t.Helper()
		if err := os.WriteFile(path, []byte(value+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := s.forward(now, "net.ipv4.ip_forward"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path) //nolint:gosec // of the test
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(got)) != want {
			t.Errorf("%s became %q, want %s", value, got, want)
		}
		if n := strings.Count(text.String(), putRight); n != lines {
			t.Errorf("said %d times, want %d:\n%s", n, lines, text.String())
		}
	}
	step("0", "0", 0)
	step("1", "1", 0)
	step("0", "1", 1)
	step("0", "1", 1)
	now = now.Add(againEvery)
	step("0", "1", 2)
	if err := s.forward(now, "net.ipv6.conf.all.forwarding"); err != nil {
		t.Errorf("a host without IPv6: %v", err)
	}
}
