package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestUnitFilters: the daemon does all its work under the systemd unit's filters
// of system calls, address families, namespaces and memory, written as a seccomp
// profile: systemd itself puts them in force only where it is the first process.
func TestUnitFilters(t *testing.T) {
	t.Parallel()
	testenv.RequirePrograms(t, "systemd-analyze") // which alone knows what is in systemd's groups of system calls
	u := unit(t, "sluice.service")
	value := func(key string) []string {
		t.Helper()
		text, ok := u.LookupLast("Service", key)
		if !ok || strings.Contains(text, "~") {
			t.Fatalf("%s=%s: not what this test knows", key, text)
		}
		return strings.Fields(text)
	}
	for _, key := range []string{"RestrictNamespaces", "MemoryDenyWriteExecute", "LockPersonality"} {
		if v := value(key); !slices.Equal(v, []string{"yes"}) {
			t.Fatalf("%s=%v: not what this test knows", key, v)
		}
	}
	type arg struct {
		Index    uint   `json:"index"`
		Value    uint64 `json:"value"`
		ValueTwo uint64 `json:"valueTwo"`
		Op       string `json:"op"`
	}
	type rule struct {
		Names  []string `json:"names"`
		Action string   `json:"action"`
		Args   []arg    `json:"args,omitempty"`
	}
	const allow = "SCMP_ACT_ALLOW"
	var rules []rule
	// only allows a call if these bits of an argument have one of these values.
	only := func(name string, index uint, bits uint64, values ...uint64) {
		for _, v := range values {
			rules = append(rules, rule{[]string{name}, allow, []arg{{index, bits, v, "SCMP_CMP_MASKED_EQ"}}})
		}
	}
	families := map[string]uint64{"AF_UNIX": unix.AF_UNIX, "AF_INET": unix.AF_INET, "AF_INET6": unix.AF_INET6, "AF_NETLINK": unix.AF_NETLINK, "AF_PACKET": unix.AF_PACKET}
	for _, name := range value("RestrictAddressFamilies") {
		af, ok := families[name]
		if !ok {
			t.Fatalf("address family %s: not what this test knows", name)
		}
		only("socket", 0, 0xffffffff, af)
	}
	const wx = unix.PROT_WRITE | unix.PROT_EXEC
	only("mmap", 2, wx, 0, unix.PROT_WRITE, unix.PROT_EXEC)
	only("mprotect", 2, unix.PROT_EXEC, 0)
	only("pkey_mprotect", 2, unix.PROT_EXEC, 0)
	only("clone", 0, unix.CLONE_NEWCGROUP|unix.CLONE_NEWIPC|unix.CLONE_NEWNET|unix.CLONE_NEWNS|unix.CLONE_NEWPID|unix.CLONE_NEWUSER|unix.CLONE_NEWUTS, 0)

	refused := []string{"socket", "mmap", "mprotect", "pkey_mprotect", "clone", "clone3", "setns", "unshare", "personality"}
	names := slices.DeleteFunc(callsOf(t, value("SystemCallFilter")...), func(name string) bool { return slices.Contains(refused, name) })
	if !slices.Contains(names, "io_uring_enter") {
		t.Errorf("io_uring is not among %v", names)
	}
	text, err := json.Marshal(map[string]any{
		"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": unix.ENOSYS,
		"architectures": []string{"SCMP_ARCH_X86_64", "SCMP_ARCH_AARCH64"},
		"syscalls":      append(rules, rule{Names: names, Action: allow}),
	})
	if err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(shortDir(t), "unit.json")
	if err := os.WriteFile(profile, text, 0o600); err != nil {
		t.Fatal(err)
	}
	contained(t, profile)
}

// callsOf are the system calls that a SystemCallFilter of systemd's names.
func callsOf(t *testing.T, filter ...string) (names []string) {
	t.Helper()
	for _, word := range filter {
		if !strings.HasPrefix(word, "@") {
			names = append(names, word)
			continue
		}
		out, err := exec.Command("systemd-analyze", "syscall-filter", word).Output() //nolint:gosec // words of the unit
		if err != nil {
			t.Fatalf("%s: %v", word, err)
		}
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(line); line != "" && line != word && !strings.HasPrefix(line, "#") {
				names = append(names, callsOf(t, line)...)
			}
		}
	}
	return names
}
