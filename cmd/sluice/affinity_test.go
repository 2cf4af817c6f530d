package main

import (
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestAffinity: a client keeps its replica. When that drains, the client gets
// another, which it keeps from then on, and what it has open goes on; clients of
// other replicas stay where they are.
func TestAffinity(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web("min = 2\nmax = 4", "", "[service.web.drain]\ntimeout = \"5m\""),
		"[service.web.container]", "affinity = \"10m\"\n[service.web.container]", 1)
	d := h.start(t, h.configure(t, text))
	d.untilReady(t, "web", 2)
	clients := append(h.addresses(t, 8), h.ClientAddr4)
	who := func(from netip.Addr) string {
		t.Helper()
		var name string
		for i := range 6 {
			resp, err := h.Client.HTTPClient(testenv.HTTPOptions{Timeout: patient, Local: from}).Get("http://" + address + "/who")
			if err != nil {
				t.Fatal(err)
			}
			var got testenv.Answer
			err = json.NewDecoder(resp.Body).Decode(&got)
			_ = resp.Body.Close()
			if err != nil {
				t.Fatal(err)
			}
			if i > 0 && got.Name != name {
				t.Fatalf("%s was answered by %s, then by %s", from, name, got.Name)
			}
			name = got.Name
		}
		return name
	}
	was := map[netip.Addr]string{}
	used := map[string]bool{}
	for _, c := range clients {
		was[c] = who(c)
		used[was[c]] = true
	}
	if len(used) != 2 {
		t.Fatalf("new clients all go to the same: %v", was)
	}
	conn := h.hold(t)
	busy := d.until(t, "the connection counted", func(st control.ServiceStatus) bool { return st.Flows == 1 }).Backends
	victim := busy[slices.IndexFunc(busy, func(b control.BackendStatus) bool { return b.Flows == 1 })].Name
	from := d.mark()
	h.must(t, "drain", "web", victim)
	d.waitFrom(t, from, func(l line) bool { return l.field("message") == "flows counted" && l.field("backend") == victim }) // no new ones any more
	for _, c := range clients {
		switch now := who(c); {
		case was[c] == was[h.ClientAddr4] && now == was[c]:
			t.Errorf("%s is still sent to the replica that drains", c)
		case was[c] != was[h.ClientAddr4] && now != was[c]:
			t.Errorf("%s has lost its replica to the drain of another", c)
		}
	}
	if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
		t.Errorf("the open connection: %v", err)
	}
	_ = conn.Close()
	d.waitFrom(t, from, func(l line) bool { return event("drained")(l) && l.field("backend") == victim })
}
