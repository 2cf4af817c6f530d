package main

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
)

func pausedOne(st control.ServiceStatus) bool {
	return st.Phase == "cold" && len(st.Backends) == 1 && st.Backends[0].State == "sleeping"
}

// TestPause: a paused replica keeps its slots; the next connection goes to it
// through the kernel, wakes it, and never meets the daemon.
func TestPause(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("idle = \"1s\"\nsleep = \"pause\"", "", "")))
	h.get(t, "/who")
	for range 3 {
		st := d.until(t, "pause", pausedOne)
		if got := h.pod.CLI(t, "inspect", "--format", "{{.State.Status}}", st.Backends[0].Name); strings.TrimSpace(got) != "paused" {
			t.Errorf("podman says %s", got)
		}
		h.get(t, "/who")
	}
	if st := d.status(t); st.HandedOver+st.Relayed != 1 {
		t.Errorf("connections to a paused replica met the daemon: %+v", st)
	}
	// A restart finds it paused, and it wakes for whoever has come meanwhile.
	d.until(t, "pause", pausedOne)
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	early, _ := h.dial(t)
	if err := early.SetKeepAlive(false); err != nil { // its packets would wake too
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(early, "GET /who HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	d = h.start(t, filepath.Join(h.dir, "sluice.toml"))
	if err := early.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(early); err != nil || !strings.Contains(string(b), "200 OK") {
		t.Errorf("a client that came while there was no daemon: %q, %v", b, err)
	}
	_ = early.Close()
	d.until(t, "pause", pausedOne)
	h.get(t, "/who")
}

// TestPauseOpenFlow: with idle_counts = "bytes" a silent flow does not keep a
// service awake; it lives on across the pause, and its next byte wakes.
func TestPauseOpenFlow(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("idle = \"2s\"\nsleep = \"pause\"\nidle_counts = \"bytes\"", "", "")))
	conn, _ := h.dial(t)
	r := bufio.NewReader(conn)
	ask := func() {
		t.Helper()
		if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(conn, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		for line := ""; !strings.HasPrefix(line, "{"); {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
	}
	ask()
	for range 2 {
		st := d.until(t, "pause", pausedOne)
		if st.Flows != 1 {
			t.Errorf("%d flows while paused, the connection is open", st.Flows)
		}
		ask()
	}
}

// TestLadder: what sleeps for stop_after is stopped.
func TestLadder(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("idle = \"1s\"\nsleep = \"pause\"\nstop_after = \"2s\"", "", "")))
	h.get(t, "/who")
	d.until(t, "pause", pausedOne)
	d.until(t, "stop", asleep)
	h.get(t, "/who")
}
