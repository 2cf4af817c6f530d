package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestPortReuse: a client that calls again from the same port, within the time
// that conntrack and the container remember the connection, is answered: warm,
// and across sleep and wake.
func TestPortReuse(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, web(`idle = "1s"`, "", "")))
	local := netip.AddrPortFrom(h.ClientAddr4, 41000)
	// The client itself must not keep the port: it resets.
	ask := func(what string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		defer cancel()
		conn, err := h.Client.DialFrom(ctx, local, "tcp", address+":80")
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := fmt.Fprint(conn, "GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := io.ReadAll(resp.Body); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := conn.(interface{ SetLinger(int) error }).SetLinger(0); err != nil {
			t.Fatal(err)
		}
		_ = conn.Close()
	}
	for round := range 3 {
		for i := range 5 {
			ask(fmt.Sprintf("round %d, connection %d", round, i))
		}
		d.until(t, "sleep", func(st control.ServiceStatus) bool { return asleep(st) })
	}
	testenv.WhoAnswered(t, h.Client, address+":80")
}
