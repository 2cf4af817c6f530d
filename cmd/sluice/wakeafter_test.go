package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// waitsForData is a configuration with wake_after = "data".
func waitsForData(text string) string {
	return strings.Replace(text, "[service.web.container]", "wake_after = \"data\"\n[service.web.container]", 1)
}

// ends waits until a connection is ended by the other side and returns how.
func ends(t *testing.T, c net.Conn) error {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Read(make([]byte, 1))
	return err
}

// talk asks over an open connection who is there, and closes it.
func talk(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprint(c, "GET /who HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(c); err != nil {
		t.Fatal(err)
	}
	_ = c.Close()
}

// TestWakeAfterData: bare connections wake nothing and end by their deadline;
// one byte wakes, and all that are there then become flows of the kernel.
func TestWakeAfterData(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, waitsForData(web(`idle = "1s"`, "", "[service.web.start]\ntimeout = \"8s\""))))
	silent := func(n int) func() (bool, string) {
		return func() (bool, string) {
			st := d.status(t)
			return st.Silent == n, fmt.Sprintf("%d silent connections, want %d", st.Silent, n)
		}
	}
	unwoken := func() {
		t.Helper()
		if st := d.status(t); st.Phase != "cold" || st.Held != 0 || len(h.containers(t)) != 0 {
			t.Errorf("bare connections have woken it: %+v", st)
		}
	}

	// One waits for its deadline, one leaves, one resets.
	waits, _ := h.dial(t)
	leaves, _ := h.dial(t)
	resets, _ := h.dial(t)
	testenv.Eventually(t, patient, silent(3))
	_ = leaves.Close()
	if err := resets.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	_ = resets.Close()
	testenv.Eventually(t, patient, silent(1))
	unwoken()
	if err := ends(t, waits); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a silent connection ends with %v, want a reset", err)
	}
	testenv.Eventually(t, patient, silent(0))
	unwoken()

	// Others speak; the silent come along.
	for range 2 {
		before := d.status(t).HandedOver
		bare, _ := h.dial(t)
		testenv.Eventually(t, patient, silent(1))
		spoken, _ := h.dial(t)
		talk(t, spoken)
		d.until(t, "handover of both", func(st control.ServiceStatus) bool {
			return st.HandedOver == before+2 && st.Silent == 0 && st.Relayed == 0
		})
		d.socketless(t)
		talk(t, bare)
		d.until(t, "sleep", asleep)
	}

	// The kernel's queue is not full of the silent: the oldest make room.
	var crowd []*net.TCPConn
	for range 300 {
		c, _ := h.dial(t)
		crowd = append(crowd, c)
	}
	for _, c := range crowd[:20] {
		if err := ends(t, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the oldest of a crowd ends with %v, want a reset", err)
		}
	}
	unwoken()
	spoken, _ := h.dial(t)
	from := d.mark()
	talk(t, spoken)
	// The silent were not counted: one replica, though flows_per_replica is 100.
	d.waitFrom(t, from, func(l line) bool {
		if l.fields["event"] == "scale" {
			t.Errorf("the silent count: %s", l.text)
		}
		return event("warm")(l)
	})
	talk(t, crowd[len(crowd)-1])

	// With a reload it wakes by a connection again, those that are there too.
	for _, c := range crowd {
		_ = c.Close()
	}
	d.until(t, "sleep", asleep)
	bare, _ := h.dial(t)
	testenv.Eventually(t, patient, silent(1))
	h.configure(t, web(`idle = "1s"`, "", ""))
	h.must(t, "reload")
	d.until(t, "wake", func(st control.ServiceStatus) bool { return st.Phase == "warm" })
	talk(t, bare)
}

// TestSilentOutlives: a connection on which nothing has been said yet is still
// there after the daemon was killed, if somebody keeps it.
func TestSilentOutlives(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	m := newManager(t, h)
	config := h.configure(t, waitsForData(web(`idle = "5m"`, "", "")))
	d := m.start(t, h, config)
	bare, _ := h.dial(t)
	m.untilNames(t, "the silent connection", holding)
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	d = m.start(t, h, config)
	if st := d.until(t, "the silent connection", func(st control.ServiceStatus) bool { return st.Silent == 1 }); st.Phase != "cold" {
		t.Errorf("it has woken the service: %+v", st)
	}
	talk(t, bare)
	m.untilNames(t, "the listener alone", func(names []string) bool { return len(names) == 1 })
}

// TestWakeAfterDataPaused: to a paused service a connection is no alarm; its
// first byte is.
func TestWakeAfterDataPaused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, waitsForData(web("idle = \"1s\"\nsleep = \"pause\"\nidle_counts = \"bytes\"", "", ""))))
	begin := d.mark()
	h.get(t, "/who")
	for range 2 {
		// The pause ends with a dump of all flows, even bare ones, since some
		// may have come before the alarm was set. From then on data count.
		paused := false
		d.waitFrom(t, begin, func(l line) bool {
			paused = paused || event("paused")(l)
			return paused && l.field("message") == "flows counted"
		})
		st := d.until(t, "pause", pausedOne)
		from := d.mark()
		bare, _ := h.dial(t)
		d.until(t, "flow", func(st control.ServiceStatus) bool { return st.Flows >= 1 })
		if got := h.pod.CLI(t, "inspect", "--format", "{{.State.Status}}", st.Backends[0].Name); strings.TrimSpace(got) != "paused" {
			t.Errorf("podman says %s after a bare connection", got)
		}
		for _, l := range d.log.Since(from) {
			if l.fields["event"] == "waking" {
				t.Errorf("a bare connection has woken it: %s", l.text)
			}
		}
		begin = d.mark()
		talk(t, bare)
	}
}
