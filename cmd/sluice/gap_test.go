package main

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
)

func inodeOf(st fs.FileInfo) uint64 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Ino
	}
	return 0
}

// ask opens a connection and asks for what the service calls itself.
func (h *host) ask(t *testing.T) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "tcp", address+":80")
	if err != nil {
		t.Fatalf("refused: %v", err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := fmt.Fprint(conn, "GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	return conn
}

// replied reads the answer to ask; the container must have seen the client.
func replied(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(conn)
	if err != nil {
		t.Errorf("the answer to %s: %v", conn.LocalAddr(), err)
		return
	}
	if !strings.HasPrefix(string(b), "HTTP/1.1 200") || !strings.Contains(string(b), conn.LocalAddr().String()) {
		t.Errorf("the answer to %s: %q", conn.LocalAddr(), b)
	}
}

func holding(names []string) bool {
	for _, n := range names {
		if strings.HasPrefix(n, "held/") {
			return true
		}
	}
	return false
}

// TestNoGap: under a service manager that keeps descriptors a sleeping service
// answers at every moment of a restart: the connection that the daemon held when
// it was stopped or killed, those that were queued, and those that came while
// there was no daemon.
func TestNoGap(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	m := newManager(t, h)
	config := h.configure(t, web(`idle = "5m"`, `LISTEN_DELAY = "1s"`, "[service.web.drain]\ntimeout = \"1s\"\n"))
	d := m.start(t, h, config)
	listening := "tcp/" + address + "/80"
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		conns := []net.Conn{h.ask(t)}
		m.untilNames(t, "the held connection", holding)
		conns = append(conns, h.ask(t)) // queued
		from := m.mark()
		d.signal(t, sig)
		d.end(t)
		if sig == syscall.SIGTERM {
			m.wait(t, from, says("STOPPING=1"))
		}
		conns = append(conns, h.ask(t)) // nobody there
		d = m.start(t, h, config)
		for _, c := range conns {
			replied(t, c)
		}
		st := d.until(t, "handover", func(st control.ServiceStatus) bool { return st.HandedOver+st.Relayed >= 3 })
		if st.HandedOver != 3 || st.Relayed != 0 {
			t.Errorf("after %s not all was handed over: %+v", sig, st)
		}
		m.untilNames(t, "the listener alone", func(names []string) bool { return len(names) == 1 && names[0] == listening })
		h.must(t, "drain", "web")
		d.until(t, "sleep", asleep)
	}
	m.wait(t, 0, func(text string) bool { return strings.Contains(text, "STATUS=1 service: 1 asleep") })
}
