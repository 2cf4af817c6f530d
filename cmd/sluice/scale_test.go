package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// hold opens a connection that the server keeps trickling to, and returns it
// with the name of the container that answers.
func (h *host) hold(t *testing.T) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprint(conn, "GET /hold?for=300s HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return conn
}

const quick = "idle = \"1s\"\nstable_window = \"2s\"\npanic_window = \"1s\"\nutilization = 1.0\n"

// TestScale: load above target starts replicas that new flows spread over;
// less load drains the least busy, and cuts nothing.
func TestScale(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(quick+"max = 3\nflows_per_replica = 4", "", "[service.web.drain]\ntimeout = \"5m\"")))

	var held []net.Conn
	for range 12 {
		held = append(held, h.hold(t))
	}
	st := d.until(t, "three replicas", func(st control.ServiceStatus) bool { return st.Ready == 3 })
	if st.Flows != 12 {
		t.Errorf("%d flows, 12 are open: %+v", st.Flows, st)
	}
	names := map[string]int{}
	for range 30 {
		names[testenv.WhoAnswered(t, h.Client, address+":80").Name]++
	}
	if len(names) != 3 {
		t.Errorf("new flows reach %v, want all three replicas", names)
	}
	for name, n := range names {
		if n != 10 {
			t.Errorf("%s got %d of 30 new flows, want 10", name, n)
		}
	}

	// A slow transfer on every replica, so that also the victims carry one
	// through their whole drain.
	type transfer struct {
		sum [32]byte
		n   int64
		err error
	}
	const size, rate = 600_000, 10_000 // one minute
	done := make(chan transfer, 3)
	for range 3 {
		body := h.open(t, fmt.Sprintf("/bytes?n=%d&rate=%d&seed=7", size, rate))
		go func() {
			defer body.Close()
			sum := sha256.New()
			n, err := io.Copy(sum, body)
			done <- transfer{[32]byte(sum.Sum(nil)), n, err}
		}()
	}
	for _, c := range held {
		_ = c.Close()
	}
	d.until(t, "a draining backend", func(st control.ServiceStatus) bool {
		return slices.ContainsFunc(st.Backends, func(b control.BackendStatus) bool { return b.State == "draining" && b.Flows > 0 })
	})
	want := sha256.New()
	if _, err := io.Copy(want, testenv.Bytes(size, 7)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		tr := <-done
		if tr.err != nil || tr.n != size || tr.sum != [32]byte(want.Sum(nil)) {
			t.Errorf("a transfer was harmed: %d of %d bytes, %v", tr.n, size, tr.err)
		}
	}
	d.until(t, "sleep", asleep)
	for _, l := range d.log.Since(0) {
		if event("drained")(l) && l.field("level") == "warn" {
			t.Errorf("flows were cut: %s", l.text)
		}
	}
}

// open starts a download and returns its body.
func (h *host) open(t *testing.T, path string) io.ReadCloser {
	t.Helper()
	resp, err := h.Client.HTTPClient(testenv.HTTPOptions{}).Get("http://" + address + path)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	return resp.Body
}

// TestDrainDeadline: what is left at the deadline is cut, not earlier, and
// said.
func TestDrainDeadline(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(quick, "", "[service.web.drain]\ntimeout = \"3s\"")))
	h.get(t, "/who")
	d.wait(t, event("warm"))
	conn := h.hold(t)
	h.must(t, "drain", "web")
	began := d.wait(t, event("drain"))
	_, _ = io.Copy(io.Discard, conn) // until it is cut
	end := d.wait(t, event("drained"))
	if took := end.stamp(t).Sub(began.stamp(t)); end.field("level") != "warn" || took < 2500*time.Millisecond { // the first line may have been written late
		t.Errorf("cut after %s: %s", took, end.text)
	}
	d.until(t, "sleep", asleep)
}

// TestDrainCancel: a connection that needs the last draining backend takes
// it back.
func TestDrainCancel(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.awake(t)
	conn := h.hold(t)
	name := d.status(t).Backends[0].Name
	h.must(t, "drain", "web")
	d.until(t, "draining", func(st control.ServiceStatus) bool { return st.Phase == "draining" })
	if got := testenv.WhoAnswered(t, h.Client, address+":80").Name; got == "" {
		t.Error("nobody answered")
	}
	d.wait(t, event("drain-cancel"))
	st := d.until(t, "warm", func(st control.ServiceStatus) bool { return st.Phase == "warm" })
	if len(st.Backends) != 1 || st.Backends[0].Name != name {
		t.Errorf("the drain was not cancelled: %+v", st)
	}
	if err := conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		t.Errorf("the flow on the draining backend was harmed: %v", err)
	}
}

// TestOrders: scale, wake and drain by hand.
func TestOrders(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web("idle = \"1s\"\nmax = 3\nstable_window = \"1h\"\npanic_window = \"6s\"", "", "")))
	h.must(t, "scale", "web", "2")
	st := d.until(t, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	h.must(t, "drain", "web", st.Backends[0].Name)
	d.wait(t, func(l line) bool { return event("drained")(l) && l.field("backend") == st.Backends[0].Name })
	d.until(t, "its replacement", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	h.must(t, "scale", "web", "0")
	d.until(t, "sleep", asleep)
	h.must(t, "wake", "web")
	d.until(t, "a replica", func(st control.ServiceStatus) bool { return st.Phase == "warm" })
	for _, wrong := range [][]string{{"scale", "web", "9"}, {"wake", "nobody"}, {"drain", "web", "sluice-web-9"}} {
		_, errOut, code := h.sluice(t, wrong...)
		if code != 1 || errOut == "" {
			t.Errorf("sluice %v: exit %d: %q", wrong, code, errOut)
		}
	}
}
