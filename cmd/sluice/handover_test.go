package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

var (
	converseFor  = flag.Duration("converse.for", 30*time.Second, "how long to hold random conversations")
	converseSeed = flag.Uint64("converse.seed", 0, "seed of the random conversations; 0 picks one")
)

// onPort is a service's configuration with another port of the container.
func onPort(port int, config string) string {
	return strings.Replace(config, "\nport = 8080\n", fmt.Sprintf("\nport = %d\n", port), 1)
}

// metrics reads what the daemon exports, by name with labels.
func (h *host) metrics(t *testing.T) map[string]float64 {
	t.Helper()
	resp, err := h.Host.HTTPClient(testenv.HTTPOptions{Timeout: patient}).Get("http://127.0.0.1:9464/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	m := make(map[string]float64)
	sc := bufio.NewScanner(resp.Body)
	for sc.Scan() {
		if i := strings.LastIndexByte(sc.Text(), ' '); i > 0 && sc.Text()[0] != '#' {
			v, err := strconv.ParseFloat(sc.Text()[i+1:], 64)
			if err != nil {
				t.Fatalf("metric %q: %v", sc.Text(), err)
			}
			m[sc.Text()[:i]] = v
		}
	}
	if err := sc.Err(); err != nil {
		t.Fatal(err)
	}
	return m
}

// handovers tells how held connections were given to backends.
func (h *host) handovers(t *testing.T) map[string]int {
	t.Helper()
	results := make(map[string]int)
	for name, v := range h.metrics(t) {
		if result, ok := strings.CutPrefix(name, `sluice_handovers_total{result="`); ok {
			results[strings.TrimSuffix(result, `"}`)] = int(v)
		}
	}
	return results
}

// dial connects to the service from the client.
func (h *host) dial(t *testing.T) (*net.TCPConn, netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c, err := h.Client.Dial(ctx, "tcp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c.(*net.TCPConn), c.LocalAddr().(*net.TCPAddr).AddrPort()
}

// socketless fails if the daemon owns a socket of any connection from the client.
func (d *proc) socketless(t *testing.T) {
	t.Helper()
	for _, s := range testenv.Sockets(t, d.Host, d.cmd.Process.Pid) {
		if s.Remote.Addr() == d.ClientAddr4 {
			t.Errorf("the daemon owns a socket of a client: %s", s)
		}
	}
}

// kill ends the daemon as the kernel would for want of memory.
func (d *proc) kill(t *testing.T) {
	t.Helper()
	d.signal(t, syscall.SIGKILL)
	d.end(t)
}

// TestHandoverCrowd: a thousand connections that wait for one cold start all
// become flows.
func TestHandoverCrowd(t *testing.T) {
	// Not beside other tests: what is not given away in ten seconds is relayed.
	const n = 1000
	h := newHost(t)
	h.Host.Sysctl(t, "net.core.somaxconn", "1024")
	h.Host.Sysctl(t, "net.ipv4.tcp_max_syn_backlog", "4096")
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "[service.web.start]\nbacklog = 1024\ntimeout = \"5m\"")))

	// Nothing starts before everyone is there.
	h.pod.KillService(t)
	conns := make([]*net.TCPConn, n)
	for i := range conns {
		conns[i], _ = h.dial(t)
	}
	// Half of them have said what they want by then.
	ask := func(c *net.TCPConn) error {
		_, err := fmt.Fprint(c, "GET /who HTTP/1.1\r\nHost: x\r\n\r\n")
		return err
	}
	for _, c := range conns[:n/2] {
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
	}
	h.pod.StartService(t)
	st := d.until(t, "an end of every handover", func(st control.ServiceStatus) bool {
		return st.Held == 0 && st.HandedOver+st.Relayed >= n
	})
	got := h.handovers(t)
	m := h.metrics(t)
	const step = `{step="handover"}`
	count, sum := m["sluice_cold_start_seconds_count"+step], m["sluice_cold_start_seconds_sum"+step]
	t.Logf("%d connections: %v; from taken to handed over on average %.1f ms", n, got, sum/count*1000)
	first, last := time.Time{}, time.Time{}
	for _, l := range d.log.Since(0) {
		if l.field("message") == "held connection handed over" {
			if first.IsZero() {
				first = l.at
			}
			last = l.at
		}
	}
	t.Logf("from the first to the last %s, %s per connection", last.Sub(first), last.Sub(first)/n)
	if st.HandedOver != n || st.Relayed != 0 || got["handover"] != n || len(got) != 1 {
		t.Errorf("%d handed over, %d relayed, %v", st.HandedOver, st.Relayed, got)
	}
	if int(count) != got["handover"] {
		t.Errorf("the histogram has %v handovers", count)
	}
	d.socketless(t)
	d.kill(t)

	for _, c := range conns[n/2:] {
		if err := ask(c); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		for i, c := range conns {
			if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
				t.Fatal(err)
			}
			if err := answered(c, c.LocalAddr().String()); err != nil {
				t.Errorf("round %d, connection %d: %v", round, i, err)
			}
			if round == 0 {
				if err := ask(c); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		}
	}
}

// TestHandoverLeavers: clients that leave at any moment of a cold start, and in
// any manner, harm neither the service nor each other, and leave nothing behind.
func TestHandoverLeavers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.start(t, h.configure(t, onPort(7007, web(`idle = "100ms"`, `RAW_ECHO_PORT = "7007"`, ""))))
	d.forgetful(t)
	const steps = 10
	cycle := time.Second // a cold start, as long as the last one has taken
	files := 0           // of the daemon
	for step := range steps + 3 {
		var wg sync.WaitGroup
		began, from := time.Now(), d.mark()
		after := cycle * time.Duration(step) / steps
		for _, leave := range []string{"close", "reset", "half-close"} {
			for _, text := range []string{"", "are you there?"} {
				conn, _ := h.dial(t)
				wg.Go(func() {
					if err := departs(conn, leave, text, after); err != nil {
						t.Errorf("step %d, %s after %q: %v", step, leave, text, err)
					}
				})
			}
		}
		cycle = d.waitFrom(t, from, event("warm")).at.Sub(began)
		wg.Wait()
		if err := h.echo(t, "next"); err != nil {
			t.Fatalf("step %d: the next connection: %v", step, err)
		}
		d.rest(t)
		d.socketless(t)
		if step == 0 {
			files = d.files(t) // what the first start has opened stays open
		}
	}
	// Also connections to Podman come and go, but a socket that was reset and
	// not closed would be in no other list.
	testenv.Eventually(t, patient, func() (bool, string) {
		n := d.files(t)
		return n <= files+steps, fmt.Sprintf("the daemon has %d files open, after the first start it had %d", n, files)
	})
	got, m := h.handovers(t), h.metrics(t)
	t.Logf("%v", got)
	if got["relay_half_closed"] == 0 || got["handover"] == 0 || got["gone"] == 0 || got["failed"] != 0 || got["relay_error"] != 0 {
		t.Errorf("results: %v", got)
	}
	for _, name := range []string{`sluice_held{service="web"}`, `sluice_relays_active{service="web"}`, `sluice_flows{service="web"}`} {
		if v, ok := m[name]; !ok || v != 0 {
			t.Errorf("%s = %v at rest", name, v)
		}
	}
}

// files counts the daemon's open files.
func (d *proc) files(t *testing.T) (n int) {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		// Package net keeps the pipes of its splices for later, until the
		// garbage collector takes them.
		if to, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && !strings.HasPrefix(to, "pipe:") {
			n++
		}
	}
	return n
}

// departs says text, to an echo, and leaves.
func departs(conn *net.TCPConn, leave, text string, after time.Duration) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, text); err != nil {
		return err
	}
	pause(context.Background(), after)
	switch leave {
	case "reset":
		return conn.SetLinger(0)
	case "half-close":
		if err := conn.CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(conn)
		if err != nil {
			return fmt.Errorf("answered %q: %w", got, err)
		}
		if string(got) != text {
			return fmt.Errorf("answered %q, want %q", got, text)
		}
	}
	return nil
}

// echo asks the service for an echo.
func (h *host) echo(t *testing.T, text string) error {
	t.Helper()
	conn, _ := h.dial(t)
	return departs(conn, "half-close", text, 0)
}

// TestHandoverRandom: both ends of random conversations see through a sleeping
// service what they see when they speak to a container directly.
func TestHandoverRandom(t *testing.T) {
	t.Parallel()
	seed := *converseSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-converse.seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	h := newHost(t)
	d := h.start(t, h.configure(t, onPort(7000, web("max = 1\nidle = \"100ms\"", `SCRIPT_PORT = "7000"`, ""))))
	d.forgetful(t)
	straight := strings.TrimSpace(h.pod.CLI(t, "run", "--detach", "--name", "straight", "--pull", "never",
		"--env", "SCRIPT_PORT=7000", testenv.Image))
	straight = strings.TrimSpace(h.pod.CLI(t, "inspect", "--format", "{{.NetworkSettings.IPAddress}}", straight)) + ":7000"
	testenv.Eventually(t, patient, func() (bool, string) {
		c, err := h.Client.Dial(t.Context(), "tcp", straight)
		if err == nil {
			_ = c.Close()
		}
		return err == nil, fmt.Sprint(err)
	})

	end := time.Now().Add(*converseFor)
	n, rounds, cold, talked := 0, 0, 0, time.Duration(0)
	for ; time.Now().Before(end) && !t.Failed(); rounds++ {
		if asleep(d.status(t)) {
			cold++
		}
		plays := make([]*play, 100+r.IntN(400))
		for i := range plays {
			plays[i] = newPlay(r, n+i)
		}
		began := time.Now()
		h.converse(t, fmt.Sprintf("round %d", rounds), straight, plays)
		talked += time.Since(began)
		n += len(plays)
		if r.IntN(4) > 0 {
			d.rest(t)
		} else {
			pause(context.Background(), upTo(r, []time.Duration{300 * time.Millisecond}))
		}
	}
	d.rest(t)
	got := h.handovers(t)
	t.Logf("%d conversations in %d rounds (%s each), %d of them from zero: %v", n, rounds, talked/time.Duration(rounds), cold, got)
	if got["failed"] != 0 || got["relay_error"] != 0 {
		t.Error("handovers failed")
	}
	if !t.Failed() && got["handover"] < n/5 {
		t.Errorf("only %d of %d conversations were handed over", got["handover"], n)
	}
	d.socketless(t)
}

// forgetful makes the kernel let go soon of connections that were reset with
// data under way. Of such a reset it does not know whether the other side takes
// it; it keeps the connection as established for this long, 10 s by default.
func (d *proc) forgetful(t *testing.T) {
	t.Helper()
	d.Host.Sysctl(t, "net.netfilter.nf_conntrack_tcp_timeout_close", "1")
}

// rest waits until the service sleeps. To list what the kernel tracks makes it
// notice which entries have timed out, for which it may else take a minute.
func (d *proc) rest(t *testing.T) {
	t.Helper()
	var st control.ServiceStatus
	testenv.Eventually(t, patient, func() (bool, string) {
		flows := testenv.Conntrack(t, d.Host)
		st = d.status(t)
		return asleep(st) && st.Held == 0 && st.Relaying == 0, fmt.Sprintf("%+v\n%v", st, flows)
	})
}

// converse holds conversations with the service and straight with a container,
// and compares what both ends have seen.
func (h *host) converse(t *testing.T, round, straight string, plays []*play) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	addrs := [2]string{address + ":80", straight}
	// The observers are first, and stay to the end: the service stays awake.
	var see [2]*observer
	for i, addr := range addrs {
		var err error
		if see[i], err = observe(ctx, h.Client, addr, round); err != nil {
			t.Fatal(err)
		}
		defer see[i].conn.Close()
	}
	reports := make([][2]report, len(plays)) // the clients'
	var wg sync.WaitGroup
	for i, p := range plays {
		for j, addr := range addrs {
			wg.Go(func() {
				var err error
				if reports[i][j], err = p.perform(ctx, h.Client, addr, round); err != nil {
					t.Errorf("%s, %s: %v\n%+v", round, addr, err, *p)
				}
			})
		}
	}
	wg.Wait()
	for i, p := range plays {
		asked, answered := said(p.client), said(p.server)
		failed := func(who string, err error) { t.Errorf("%s, %s: %v\n%+v", round, who, err, *p) }
		for j, addr := range addrs {
			if p.early == "" {
				if err := p.check(reports[i][j], answered); err != nil {
					failed("client of "+addr, err)
				}
			}
			if p.unheard {
				continue
			}
			served, err := see[j].report(p.id)
			if err != nil {
				failed("server at "+addr, err)
				return
			}
			if err := p.check(served, asked); err != nil {
				failed("server at "+addr, err)
			}
		}
		if p.hasty {
			continue
		}
		if a, b := reports[i][0], reports[i][1]; a != b {
			failed("client", fmt.Errorf("has seen %+v, straight %+v", a, b))
		}
		if a, b := see[0].got[p.id], see[1].got[p.id]; !p.unheard && a != b {
			failed("server", fmt.Errorf("has seen %+v, straight %+v", a, b))
		}
	}
}

// answered reads one answer of /who.
func answered(r io.Reader, remote string) error {
	b := make([]byte, 4096)
	var text string
	for !strings.HasSuffix(text, "}\n") {
		n, err := r.Read(b)
		text += string(b[:n])
		if err != nil {
			return fmt.Errorf("%w after %q", err, text)
		}
	}
	if !strings.HasPrefix(text, "HTTP/1.1 200 ") || !strings.Contains(text, `"remote":"`+remote+`"`) {
		return fmt.Errorf("answer %q", text)
	}
	return nil
}
