package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"

	"sluice/cmd/internal/doctor"
)

// TestDoctor: a fit host is told to be fit, and whatever keeps a service from
// working there is found, with something to do about it.
func TestDoctor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.Sysctl(t, "net.ipv4.ip_forward", "1")
	config := func(text string) func() { return func() { h.configure(t, text) } }
	plain := web("", "", "")
	h.configure(t, plain)
	list, code := h.examine(t)
	if code != 0 || slices.ContainsFunc(list, func(f doctor.Finding) bool { return f.Level != doctor.OK }) {
		t.Errorf("a fit host: exit %d, %+v", code, list)
	}

	run := func(program string, args ...string) func() { return func() { h.Host.Run(t, program, args...) } }
	sysctl := func(key, value string) func() { return func() { h.Host.Sysctl(t, key, value) } }
	for _, harm := range []struct {
		check, level string
		do, undo     func()
	}{
		{"forward", doctor.Warn, run("iptables", "-P", "FORWARD", "DROP"), run("iptables", "-P", "FORWARD", "ACCEPT")},
		{"input", doctor.Warn, run("nft", "add table inet wall; add chain inet wall in { type filter hook input priority 0; policy drop; }"), run("nft", "delete table inet wall")},
		{"input", doctor.Warn, run("nft", "add table inet wall; add chain inet wall rest; add chain inet wall in { type filter hook input priority 10; policy accept; }; add rule inet wall rest reject; add rule inet wall in jump rest"), run("nft", "delete table inet wall")},
		{"forward", doctor.Warn, run("iptables", "-A", "FORWARD", "-j", "REJECT"), run("iptables", "-F", "FORWARD")},
		{"prerouting", doctor.Warn, run("nft", "add table inet wall; add chain inet wall pre { type filter hook prerouting priority 0; policy drop; }"), run("nft", "delete table inet wall")},
		{"nat", doctor.Warn, run("nft", "add table ip early; add chain ip early in { type nat hook prerouting priority -150; }"), run("nft", "delete table ip early")},
		{"forwarding", doctor.Warn, sysctl("net.ipv4.ip_forward", "0"), sysctl("net.ipv4.ip_forward", "1")},
		{"syncookies", doctor.Warn, sysctl("net.ipv4.tcp_syncookies", "0"), sysctl("net.ipv4.tcp_syncookies", "1")},
		{"backlog", doctor.Warn, sysctl("net.core.somaxconn", "16"), sysctl("net.core.somaxconn", "4096")},
		{"address", doctor.Warn, run("ip", "address", "del", address+"/32", "dev", "lo"), run("ip", "address", "add", address+"/32", "dev", "lo")},
		{"network", doctor.Fail, config(plain + "[service.other]\nlisten = [\"" + address + ":81/tcp\"]\n[service.other.container]\nimage = \"localhost/sluice-test:latest\"\nport = 1\nnetwork = \"nowhere\"\n"), config(plain)},
		{"image", doctor.Warn, config(plain + "[service.other]\nlisten = [\"" + address + ":81/tcp\"]\n[service.other.container]\nimage = \"localhost/nothing:1\"\nport = 1\n"), config(plain)},
		{"podman", doctor.Fail, func() { h.pod.StopService(t) }, func() { h.pod.StartService(t) }},
	} {
		harm.do()
		list, code := h.examine(t)
		i := slices.IndexFunc(list, func(f doctor.Finding) bool { return f.Check == harm.check && f.Level != doctor.OK })
		if i < 0 {
			t.Errorf("%s was not found: %+v", harm.check, list)
		} else if f := list[i]; f.Level != harm.level || f.Remedy == "" || (code == 0) != (f.Level == doctor.Warn) {
			t.Errorf("%s: exit %d, %+v", harm.check, code, f)
		} else {
			t.Logf("%s: %s: %s -> %s", f.Level, f.Check, f.Text, f.Remedy)
		}
		harm.undo()
	}

	taken, err := h.Host.Listen("tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	if list, code := h.examine(t); code != 1 || !slices.ContainsFunc(list, func(f doctor.Finding) bool { return f.Check == "port" && f.Level == doctor.Fail }) {
		t.Errorf("the port is taken: exit %d, %+v", code, list)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	// Its own listening sockets and table are no fault.
	h.start(t, h.configure(t, plain))
	if list, code := h.examine(t); code != 0 || doctor.Worst(list) != doctor.OK {
		t.Errorf("with the daemon running: exit %d, %+v", code, list)
	}
}

func (h *host) examine(t *testing.T) ([]doctor.Finding, int) {
	t.Helper()
	out, errOut, code := h.sluice(t, "doctor", "-o", "json")
	var report struct{ Findings []doctor.Finding }
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Findings) == 0 {
		t.Fatal(fmt.Errorf("doctor says %q, %q: %w", out, errOut, err))
	}
	return report.Findings, code
}
