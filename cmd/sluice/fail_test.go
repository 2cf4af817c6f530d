package main

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// knock connects and waits for what the service does to the connection.
func (h *host) knock(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "tcp", address+":80")
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

// TestNeverReady: held connections are reset when start.timeout has passed,
// the log says what the check saw, and the pauses between attempts grow.
func TestNeverReady(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "1s"`, `NEVER_LISTEN = "1"`, "[service.web.start]\ntimeout = \"2s\"")))
	began := time.Now()
	if err := h.knock(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Fatalf("the held connection ended with %v, want a reset", err)
	}
	if took := time.Since(began); took < 2*time.Second {
		t.Errorf("reset after %s, before start.timeout", took)
	}
	first := d.wait(t, event("failed"))
	if e := first.field("error"); !strings.Contains(e, "not ready after 2s") || !strings.Contains(e, "connection refused") {
		t.Errorf("the log does not say what the check saw: %s", first.text)
	}
	// While it waits for the next attempt nobody is held in vain.
	if err := h.knock(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("during the pause a connection ended with %v, want a reset", err)
	}
	from := d.mark()
	d.until(t, "the pause's end", func(st control.ServiceStatus) bool { return st.Phase == "cold" })
	if err := h.knock(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the second held connection ended with %v, want a reset", err)
	}
	second := d.waitFrom(t, from, event("failed"))
	if !strings.Contains(first.field("message"), "after 1s") || !strings.Contains(second.field("message"), "after 2s") {
		t.Errorf("the pauses do not grow: %s; %s", first.text, second.text)
	}
	if st := d.status(t); !strings.Contains(st.LastError, "connection refused") {
		t.Errorf("status does not say why: %+v", st)
	}
	d.until(t, "no container", func(control.ServiceStatus) bool { return len(h.containers(t)) == 0 })
}

// TestNoImage: an image that cannot be had ends the wake at once, and the log
// names it with Podman's words.
func TestNoImage(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web("", "", ""), testenv.Image, "localhost/nobody/has:this", 1)
	d := h.start(t, h.configure(t, text))
	if err := h.knock(t); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the held connection ended with %v, want a reset", err)
	}
	l := d.wait(t, event("failed"))
	if e := l.field("error"); !strings.Contains(e, "localhost/nobody/has:this") {
		t.Errorf("the log does not name the image: %s", l.text)
	} else {
		t.Log(e)
	}
}

// TestDeath: a replica that dies is noticed by its process's end, leaves the
// map, and is replaced; so is one that someone removes.
func TestDeath(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("min = 2\nmax = 2", "", "")))
	d.until(t, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	for _, how := range [][]string{{"kill", "--signal", "KILL"}, {"rm", "--force", "--time", "0"}} {
		victim := d.status(t).Backends[0]
		from := d.mark()
		h.pod.CLI(t, append(how, victim.Name)...)
		l := d.waitFrom(t, from, event("died"))
		if l.field("backend") != victim.Name {
			t.Errorf("died: %s, want %s", l.text, victim.Name)
		}
		t.Logf("podman %s: noticed: %s", how[0], l.field("error"))
		d.waitFrom(t, from, func(l line) bool { return event("ready")(l) })
		d.until(t, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
		for range 4 {
			testenv.WhoAnswered(t, h.Client, address+":80")
		}
	}
}

// TestPodmanAway: without Podman flows go on, a held connection waits, and
// the service wakes when Podman is back.
func TestPodmanAway(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "[service.web.start]\ntimeout = \"45s\"")))
	h.pod.KillService(t)
	answered := make(chan error, 1)
	go func() {
		_, err := h.tryGet("/who")
		answered <- err
	}()
	d.wait(t, event("start-failed"))
	h.pod.StartService(t)
	if err := <-answered; err != nil {
		t.Errorf("the held connection was not served: %v", err)
	}
	d.wait(t, event("warm"))
	h.pod.KillService(t)
	h.get(t, "/who") // kernel-direct
	// A daemon that starts now waits for Podman, and cuts nobody meanwhile.
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	d = h.launch(t, filepath.Join(h.dir, "sluice.toml"))
	d.wait(t, func(l line) bool { return strings.Contains(l.field("message"), "waiting for podman") })
	h.get(t, "/who")
	h.pod.StartService(t)
	d.wait(t, func(l line) bool { return l.field("message") == "ready" })
	if st := d.status(t); st.Phase != "warm" {
		t.Errorf("after the wait for Podman: %+v", st)
	}
}

// TestFlush: someone else's flush of all rules is noticed and put right.
func TestFlush(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.awake(t)
	before := h.Host.Run(t, "nft", "list", "table", "inet", "sluice")
	h.Host.Run(t, "nft", "flush", "ruleset")
	d.wait(t, func(l line) bool { return strings.Contains(l.field("message"), "put right") })
	if after := h.Host.Run(t, "nft", "list", "table", "inet", "sluice"); after != before {
		t.Errorf("the table is not what it was:\n%s\nbefore:\n%s", after, before)
	}
	n := d.status(t).Relayed
	h.get(t, "/who")
	if d.status(t).Relayed != n {
		t.Error("after the repair the daemon relays")
	}
}
