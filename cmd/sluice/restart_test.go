package main

import (
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestRestart: neither SIGKILL nor SIGTERM of the daemon cuts one of a hundred
// flows; the next one adopts all and changes nothing that is right.
func TestRestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, web("min = 2\nmax = 2\nidle = \"5m\"", "", ""))
	d := h.start(t, config)
	d.until(t, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	var flows []net.Conn
	for range 100 {
		flows = append(flows, h.hold(t))
	}
	table := func() string { return h.Host.Run(t, "nft", "-a", "list", "table", "inet", "sluice") }
	before, containers := table(), h.pod.CLI(t, "ps", "--all", "--format", "{{.ID}} {{.StartedAt}}")

	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		d.signal(t, sig)
		d.end(t)
		if got := table(); got != before {
			t.Errorf("after %s the table has changed:\n%s\nbefore:\n%s", sig, got, before)
		}
		testenv.WhoAnswered(t, h.Client, address+":80") // without a daemon
		d = h.start(t, config)
		d.until(t, "adoption", func(st control.ServiceStatus) bool { return st.Ready == 2 && st.Flows >= 100 })
		if got := table(); got != before {
			t.Errorf("adopting after %s has changed the table:\n%s\nbefore:\n%s", sig, got, before)
		}
		if got := h.pod.CLI(t, "ps", "--all", "--format", "{{.ID}} {{.StartedAt}}"); got != containers {
			t.Errorf("adopting after %s has changed the containers:\n%s\nbefore:\n%s", sig, got, containers)
		}
	}
	for i, c := range flows {
		if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 16)); err != nil {
			t.Errorf("flow %d was cut: %v", i, err)
		}
	}

	// An adopted replica drains like any other.
	for _, c := range flows {
		_ = c.Close()
	}
	victim := d.status(t).Backends[0]
	h.must(t, "drain", "web", victim.Name)
	d.wait(t, func(l line) bool { return event("drained")(l) && l.field("backend") == victim.Name })
	// Its ended flows go after it. They are left if the daemon ends in between.
	d.until(t, "the drained replica gone", func(st control.ServiceStatus) bool {
		return !slices.ContainsFunc(st.Backends, func(b control.BackendStatus) bool { return b.Address == victim.Address })
	})

	if _, errOut, code := h.sluice(t, "cleanup"); code != 1 || !strings.Contains(errOut, "running") {
		t.Errorf("cleanup under a running daemon: exit %d: %s", code, errOut)
	}
	d.signal(t, syscall.SIGTERM)
	d.end(t)
	h.must(t, "cleanup", "--containers")
	if rules := testenv.Ruleset(t, h.Host); strings.Contains(rules, "table inet sluice") {
		t.Error("cleanup has left the table")
	}
	if n := h.containers(t); len(n) != 0 {
		t.Errorf("cleanup has left containers: %v", n)
	}
	for _, f := range testenv.Conntrack(t, h.Host) {
		if f.DNAT() {
			t.Errorf("cleanup has left a flow: %v", f)
		}
	}
	h.must(t, "cleanup", "--containers") // once more is no error
}

// TestCleanupDatagrams: cleanup takes the flows of UDP with it too. A client that
// goes on would keep its entry, and be sent to a container that is gone, for ever.
// A replica has its own time to stop.
func TestCleanupDatagrams(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web(`idle = "5m"`, `PORT = "0", UDP_PORT = "8080"`, ""), ":80/tcp", ":80/udp", 1)
	d := h.start(t, h.configure(t, text))
	for range 2 { // the second by the table, if the first was held
		if _, err := ask(t, h.Client, "udp", address+":80"); err != nil {
			t.Fatal(err)
		}
	}
	d.signal(t, syscall.SIGTERM)
	d.end(t)
	left := func() (n int) {
		for _, f := range testenv.Conntrack(t, h.Host) {
			if f.DNAT() {
				n++
			}
		}
		return n
	}
	if left() == 0 {
		t.Fatal("no flow to clean up")
	}
	relay := newPodmanRelay(t, h.pod, h.dir)
	h.must(t, "cleanup", "--containers", "--podman", "unix://"+relay.path)
	if n := left(); n > 0 {
		t.Errorf("cleanup has left %d flows", n)
	}
	if want := []string{"timeout=2"}; !slices.Equal(relay.stops, want) {
		t.Errorf("Podman was asked to stop with %v, want %v", relay.stops, want)
	}
}

// TestRemovedService: what is left of a service that is not configured any
// more drains, and goes without harm to its flows.
func TestRemovedService(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.awake(t)
	conn := h.hold(t)
	d.signal(t, syscall.SIGTERM)
	d.end(t)

	d = h.start(t, h.configure(t, ""))
	d.wait(t, event("drain"))
	if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
		t.Errorf("the flow was cut: %v", err)
	}
	_ = conn.Close()
	d.wait(t, func(l line) bool { return l.field("message") == "removed" })
	if n := h.containers(t); len(n) != 0 {
		t.Errorf("containers left: %v", n)
	}
}

// TestChangedSpec: a restart with another container section replaces the
// replica, the new one first.
func TestChangedSpec(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("min = 1", "", "")))
	old := d.until(t, "a replica", func(st control.ServiceStatus) bool { return st.Ready == 1 }).Backends[0].Name
	d.signal(t, syscall.SIGTERM)
	d.end(t)
	d = h.start(t, h.configure(t, web("min = 1", `FOO = "new"`, "")))
	d.wait(t, func(l line) bool { return event("drained")(l) && l.field("backend") == old })
	st := d.until(t, "the new replica", func(st control.ServiceStatus) bool { return st.Ready == 1 && len(st.Backends) == 1 })
	if st.Backends[0].Name == old {
		t.Errorf("the old replica serves on: %+v", st)
	}
	if env := h.get(t, "/env"); !strings.Contains(env, `"FOO":"new"`) {
		t.Errorf("the new replica is not made from the new configuration: %s", env)
	}
}
