package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

const (
	flagSYN = 0x02
	flagRST = 0x04
	flagACK = 0x10
)

// TestSYNFlood: SYNs and ACKs from addresses that are not the sender's wake
// nothing, and cost neither descriptors nor memory. Another service wakes
// meanwhile. A client gets through, by a SYN cookie: its connection, which has
// lost window scale and SACK by that, is handed over all the same.
func TestSYNFlood(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.IP(t, "route add "+spoofed+" via "+h.ClientAddr4.String())
	h.Host.Sysctl(t, "net.ipv4.tcp_syncookies", "1")
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "[service.web.start]\nbacklog = 64\n")+h.calm(t)))
	fds, memory := d.usage(t)
	acks := h.flood(t, unix.IPPROTO_TCP, flagACK)
	acks.reaches(t, 2000)
	acks.stop()
	syns := h.flood(t, unix.IPPROTO_TCP, flagSYN)
	syns.reaches(t, 5000)
	if st := d.status(t); st.Phase != "cold" || st.Held != 0 || len(h.containers(t)) != 0 {
		t.Errorf("the flood has woken it: %+v", st)
	}
	if h.counter(t, "SyncookiesSent") == 0 {
		t.Fatal("the flood has not filled the queue")
	}
	if err := call(h.Client, h.ClientAddr4.String(), "tcp", calmAddress+":80"); err != nil {
		t.Errorf("the other service: %v", err)
	}
	d.cheap(t, fds, memory)
	before := h.counter(t, "SyncookiesRecv")

	conn, _ := h.dial(t)
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	const size = 3 << 20 // more than a window without scale, many times
	for range 2 {
		if _, err := fmt.Fprintf(conn, "GET /bytes?n=%d&seed=7 HTTP/1.1\r\nHost: x\r\n\r\n", size); err != nil {
			t.Fatal(err)
		}
		for line := ""; line != "\r\n"; {
			var err error
			if line, err = r.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
		}
		if err := same(io.LimitReader(r, size), testenv.Bytes(size, 7)); err != nil {
			t.Errorf("through a connection by cookie: %v", err)
		}
	}
	if h.counter(t, "SyncookiesRecv") == before {
		t.Error("the connection was not made by a cookie")
	}
	st := d.until(t, "handover", func(st control.ServiceStatus) bool { return st.HandedOver+st.Relayed > 0 })
	// Awake, half-open flows are load as others are, up to scale.max.
	t.Logf("%d SYNs; handed over %d, relayed %d, %d replicas", syns.sent.Load(), st.HandedOver, st.Relayed, len(st.Backends))
	if st.HandedOver != 1 || st.Relayed != 0 || len(st.Backends) > 4 {
		t.Errorf("after one client: %+v", st)
	}
	syns.stop()
}

// TestSYNFloodPaused: no segment whose sender does not see the answers wakes a
// paused service: not the first of a connection, nor others by which it would
// look older. A client wakes it meanwhile.
func TestSYNFloodPaused(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.IP(t, "route add "+spoofed+" via "+h.ClientAddr4.String())
	d := h.start(t, h.configure(t, web("idle = \"1s\"\nsleep = \"pause\"", "", "")))
	h.get(t, "/who")
	d.until(t, "pause", pausedOne)
	from := d.mark()
	for _, flags := range [][]byte{{flagACK, flagACK}, {flagSYN, flagRST}, {flagSYN, flagSYN}} {
		f := h.flood(t, unix.IPPROTO_TCP, flags...)
		f.reaches(t, 4000)
		f.stop()
	}
	if !strings.Contains(h.Host.Run(t, "conntrack", "-L", "-p", "tcp", "--state", "SYN_RECV"), "src=203.0.113.") {
		t.Fatal("the flood has not reached the container")
	}
	// The daemon has heard of all that when it does what it is asked after it.
	h.must(t, "reload")
	if st := d.status(t); !pausedOne(st) {
		t.Errorf("the flood has woken it: %+v", st)
	}
	for _, l := range d.log.Since(from) {
		if event("waking")(l) {
			t.Errorf("woken: %s", l.text)
		}
	}
	syns := h.flood(t, unix.IPPROTO_TCP, flagSYN)
	h.get(t, "/who")
	syns.stop()
	if st := d.status(t); st.HandedOver+st.Relayed != 1 {
		t.Errorf("connections to a paused replica met the daemon: %+v", st)
	}
}

// same compares two streams to their ends.
func same(a, b io.Reader) error {
	x, y := bufio.NewReader(a), bufio.NewReader(b)
	for i := 0; ; i++ {
		p, err := x.ReadByte()
		q, err2 := y.ReadByte()
		switch {
		case errors.Is(err, io.EOF) && errors.Is(err2, io.EOF):
			return nil
		case err != nil || err2 != nil:
			return fmt.Errorf("at byte %d: %w, %w", i, err, err2)
		case p != q:
			return fmt.Errorf("byte %d differs", i)
		}
	}
}

// TestConnectionFlood: a flood of completed connections to one sleeping service
// starts no more than its max, takes no descriptors while it waits, and keeps
// no other service from waking; whoever got in is served.
func TestConnectionFlood(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const backlog, crowd, most = 256, 600, 2
	flooded := web(fmt.Sprintf("idle = \"5m\"\nmax = %d\nflows_per_replica = 10", most), `LISTEN_DELAY = "4s"`, fmt.Sprintf("[service.web.start]\nbacklog = %d\n", backlog))
	d := h.start(t, h.configure(t, flooded+h.calm(t)))
	fds, memory := d.usage(t)

	in := h.crowd(t, crowd)
	// The queue takes one more than its backlog, and so does each processor that
	// completes a handshake in the same moment.
	if len(in) < backlog || len(in) > backlog+2+runtime.NumCPU() {
		t.Errorf("%d connections got in, want those of the backlog of %d and the one that is held", len(in), backlog)
	}
	d.wait(t, func(l line) bool { return l.field("service") == "web" && event("waking")(l) })
	// The other is woken and answers before the flooded one is ready.
	if err := call(h.Client, h.ClientAddr4.String(), "tcp", calmAddress+":80"); err != nil {
		t.Errorf("the other service: %v", err)
	}
	for _, l := range d.log.Since(0) {
		if l.field("service") == "web" && event("warm")(l) {
			t.Error("the flooded service was ready before the other had answered: nothing is told by this test")
		}
	}
	d.cheap(t, fds, memory)
	// Whoever is in is served.
	for _, c := range in {
		if err := c.SetDeadline(time.Now().Add(patient)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprint(c, "GET /who HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
	}
	for i, c := range in {
		if b, err := io.ReadAll(c); err != nil || !strings.Contains(string(b), "200 OK") {
			t.Fatalf("connection %d that was in the queue: %q, %v", i, b, err)
		}
		_ = c.Close()
	}
	n := 0
	for _, name := range h.containers(t) {
		if strings.HasPrefix(name, "sluice-web-") {
			n++
		}
	}
	if n == 0 || n > most {
		t.Errorf("%d replicas of the flooded service, want at most %d", n, most)
	}
}

// calmAddress is where nobody attacks.
const calmAddress = "192.0.2.11"

// calm is a service beside the one that is attacked.
func (h *host) calm(t *testing.T) string {
	t.Helper()
	h.Host.AddAddr(t, calmAddress+"/32", "lo")
	return strings.NewReplacer("service.web", "service.calm", address, calmAddress).Replace(web(`idle = "5m"`, "", ""))
}

// cheap checks that an attack costs few descriptors and little memory.
func (d *proc) cheap(t *testing.T, fds int, memory int64) {
	t.Helper()
	f, m := d.usage(t)
	t.Logf("the attack costs %d descriptors and %d KiB", f-fds, (m-memory)>>10)
	if f-fds > 40 || m-memory > 64<<20 {
		t.Errorf("the attack costs %d descriptors and %d bytes", f-fds, m-memory)
	}
}

// crowd begins so many connections to the service at once and returns those
// whose handshake is complete when nothing more happens; the others are given up.
func (h *host) crowd(t *testing.T, n int) (in []net.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 1500*time.Millisecond) // the SYN is sent again once
	defer cancel()
	all := make(chan net.Conn, n)
	for range n {
		go func() {
			c, err := h.Client.Dial(ctx, "tcp", address+":80")
			if err != nil {
				c = nil
			}
			all <- c
		}()
	}
	for range n {
		if c := <-all; c != nil {
			t.Cleanup(func() { _ = c.Close() })
			in = append(in, c)
		}
	}
	return in
}

// TestSlowLoris: clients that say nothing, or a byte now and then, are reset by
// the deadline when the service does not come up, and keep nobody from it when
// it does.
func TestSlowLoris(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"accept", "data"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			text := func(env, timeout string) string {
				return strings.Replace(web(`idle = "5m"`, env, "[service.web.start]\ntimeout = \""+timeout+"\""),
					"[service.web.container]", "wake_after = \""+mode+"\"\n[service.web.container]", 1)
			}
			d := h.start(t, h.configure(t, text(`NEVER_LISTEN = "1"`, "3s")))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var lorises []net.Conn
			wrote := make([]chan error, 30)
			for i := range 30 {
				c, _ := h.dial(t)
				lorises = append(lorises, c)
				if wrote[i] = make(chan error, 1); i%2 == 1 {
					go func() { wrote[i] <- trickle(ctx, c) }()
				}
			}
			for i, c := range lorises {
				err := ends(t, c)
				if errors.Is(err, io.EOF) && i%2 == 1 {
					err = <-wrote[i] // a reset is told once, to whoever is first
				}
				if !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("slow client %d ends with %v, want a reset", i, err)
				}
			}
			d.until(t, "nothing held", func(st control.ServiceStatus) bool { return st.Held == 0 && st.Silent == 0 })
			cancel()

			// The same, with a service that comes up.
			ctx, cancel = context.WithCancel(t.Context())
			defer cancel()
			h.configure(t, text(`LISTEN_DELAY = "1s"`, "30s"))
			h.must(t, "reload")
			d.until(t, "another attempt", func(st control.ServiceStatus) bool { return st.Phase == "cold" })
			for i := range 30 {
				c, _ := h.dial(t)
				if i%2 == 1 {
					go func() { _ = trickle(ctx, c) }()
				}
			}
			h.get(t, "/who")
			h.get(t, "/who")
		})
	}
}

// trickle sends the beginning of a request, slowly, until ctx or c ends.
func trickle(ctx context.Context, c net.Conn) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for _, b := range []byte("GET /who HTTP/1.1\r\nX-Slow: " + strings.Repeat("z", 10_000)) {
		if _, err := c.Write([]byte{b}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// TestDatagramFlood: datagrams from thousands of sources, each of which may be
// spoofed, wake the service, but no more than its max; what is held of them is
// bounded, and a client is answered.
func TestDatagramFlood(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.IP(t, "route add "+spoofed+" via "+h.ClientAddr4.String())
	text := strings.Replace(web("idle = \"5m\"\nmax = 2", `PORT = "0", UDP_PORT = "8080"`, ""), "/tcp", "/udp", 1)
	d := h.start(t, h.configure(t, text))
	fds, memory := d.usage(t)
	f := h.flood(t, unix.IPPROTO_UDP, 0)
	most := 0
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	testenv.Eventually(t, patient, func() (bool, string) {
		st := d.status(t)
		most = max(most, st.Held)
		return st.Phase == "warm", "waiting for the flood to wake it: " + st.Phase
	})
	f.reaches(t, 3000)
	c, err := h.Client.DialFrom(ctx, netip.AddrPort{}, "udp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	testenv.Eventually(t, patient, func() (bool, string) { // one may be lost among so many
		_ = c.SetDeadline(time.Now().Add(time.Second))
		_, err := c.Write([]byte("friend"))
		if err == nil {
			_, err = c.Read(make([]byte, 512))
		}
		return err == nil, fmt.Sprint("a client: ", err)
	})
	nfds, now := d.usage(t)
	t.Logf("%d datagrams: %d clients held at most, %d descriptors more, %d KiB more", f.sent.Load(), most, nfds-fds, (now-memory)>>10)
	f.stop()
	if most > 1024 || nfds-fds > 40 || now-memory > 128<<20 {
		t.Errorf("a flood holds %d clients, %d descriptors, %d bytes", most, nfds-fds, now-memory)
	}
	st, err := admin.Dial(d.admin()).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(st.Services[0].Backends); n > 2 {
		t.Errorf("%d replicas, want at most 2", n)
	}
}
