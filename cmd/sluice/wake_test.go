package main

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestFromZero: the first request is answered, later ones never meet the
// daemon, and the container sees the client itself.
func TestFromZero(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "")))
	if n := h.containers(t); len(n) != 0 {
		t.Fatalf("containers before the first connection: %v", n)
	}
	if st := d.status(t); st.Phase != "cold" {
		t.Fatalf("phase %s before the first connection", st.Phase)
	}

	first := testenv.WhoAnswered(t, h.Client, address+":80")
	if first.Name == "" {
		t.Fatal("nobody answered the first request")
	}
	d.wait(t, event("warm"))
	st := d.until(t, "the first connection's fate", func(st control.ServiceStatus) bool { return st.HandedOver+st.Relayed > 0 })
	if st.HandedOver != 1 || st.Relayed != 0 {
		t.Errorf("the first connection was not handed over: %+v", st)
	}
	if st.Phase != "warm" || len(st.Backends) != 1 || st.Ready != 1 {
		t.Fatalf("after the first request: %+v", st)
	}

	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := fmt.Fprint(conn, "GET /hold?for=60s HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	me := netip.MustParseAddrPort(conn.LocalAddr().String())
	backend := netip.MustParseAddrPort(st.Backends[0].Address)
	found := false
	for _, f := range testenv.Conntrack(t, h.Host) {
		if f.Orig.Src == me {
			found = true
			if f.Orig.Dst.String() != address+":80" || f.Reply.Src != backend || f.Reply.Dst != me {
				t.Errorf("the flow is not client to container: %v", f)
			}
		}
	}
	if !found {
		t.Error("conntrack does not know the flow")
	}
	for _, s := range testenv.Sockets(t, h.Host, d.cmd.Process.Pid) {
		if s.Remote == me || s.Local == me {
			t.Errorf("the daemon owns a socket of the flow: %+v", s)
		}
	}
	if log := h.pod.ContainerLogs(t, st.Backends[0].Name); !strings.Contains(log, me.String()) {
		t.Errorf("the container has not seen the client %s:\n%s", me, log)
	}
}

// TestBurst: 200 connections at once against a sleeping service are all
// answered; the daemon has accepted exactly one before the backend was ready.
func TestBurst(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "5m"`, `LISTEN_DELAY = "1s"`, "")))
	const n = 200
	var wg sync.WaitGroup
	errs := make(chan error, n)
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	for range n {
		wg.Go(func() {
			if _, err := testenv.Who(ctx, h.Client, address+":80"); err != nil {
				errs <- err
			}
		})
	}
	d.wait(t, func(l line) bool { return l.field("message") == "connection held" })
	if st := d.status(t); st.Phase == "waking" && st.Held != 1 {
		t.Errorf("%d held while waking, want 1", st.Held)
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	handed := d.until(t, "handover", func(st control.ServiceStatus) bool { return st.Held == 0 && st.HandedOver+st.Relayed > 0 })
	held, warm := 0, false
	for _, l := range d.log.Since(0) {
		warm = warm || event("warm")(l)
		if l.field("message") == "connection held" && !warm {
			held++
		}
	}
	t.Logf("%d connections were handed over, %d relayed", handed.HandedOver, handed.Relayed)
	if handed.HandedOver == 0 || handed.Relayed != 0 {
		t.Errorf("%d of %d connections were handed over, %d relayed", handed.HandedOver, n, handed.Relayed)
	}
	if held != 1 {
		t.Errorf("%d connections accepted before the backend was ready, want 1", held)
	}
}

// TestPrepared: asleep with a prepared replica, the next wake starts that one.
func TestPrepared(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("idle = \"1s\"\nsleep = \"prepared\"", "", "")))
	sleeping := func(st control.ServiceStatus) bool {
		return st.Phase == "cold" && len(st.Backends) == 1 && st.Backends[0].State == "sleeping"
	}
	d.until(t, "a prepared replica", sleeping)
	for range 3 {
		name := d.until(t, "sleep", sleeping).Backends[0].Name
		if got := h.pod.CLI(t, "inspect", "--format", "{{.State.Status}}", name); strings.TrimSpace(got) != "initialized" {
			t.Errorf("podman says %s is %s", name, got)
		}
		h.get(t, "/who")
	}
}

// TestCycles: fifty times from zero and back without one failed request.
func TestCycles(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "100ms"`, "", "")))
	for i := range 50 {
		if _, err := h.tryGet("/who"); err != nil {
			t.Fatalf("cycle %d: %v", i, err)
		}
		d.until(t, "sleep", asleep)
	}
	if n := h.containers(t); len(n) != 0 {
		t.Errorf("containers left: %v", n)
	}
}

// TestAnyMoment: connections that arrive while the service drains, stops or
// starts are answered.
func TestAnyMoment(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "200ms"`, "", "")))
	stop := time.After(20 * time.Second)
	for i := 0; ; i++ {
		if _, err := h.tryGet("/who"); err != nil {
			t.Fatalf("request %d: %v", i, err)
		}
		// The pause sweeps over the time that idling, draining and
		// stopping take, so that requests fall into each of them.
		select {
		case <-stop:
			if d.status(t).LastError != "" {
				t.Errorf("last error: %s", d.status(t).LastError)
			}
			return
		case <-time.After(time.Duration(i%40) * 30 * time.Millisecond):
		}
	}
}
