package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// visitors are clients that call a service one after the other, without pause.
type visitors struct {
	stop context.CancelFunc
	wg   sync.WaitGroup

	mu     sync.Mutex
	calls  int
	failed []error
}

// visit begins with n clients that rest between two calls. Every connection is to be
// accepted and answered.
func (h *host) visit(t *testing.T, n int, addr string, rest time.Duration) *visitors {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := &visitors{stop: cancel}
	for range n {
		c.wg.Go(func() {
			for ctx.Err() == nil {
				limit, end := context.WithTimeout(context.Background(), patient)
				_, err := testenv.Who(limit, h.Client, addr)
				end()
				c.mu.Lock()
				c.calls++
				if err != nil {
					c.failed = append(c.failed, err)
				}
				c.mu.Unlock()
				pause(ctx, rest)
			}
		})
	}
	t.Cleanup(cancel)
	return c
}

func (c *visitors) made() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

// end waits for the last answers and returns how many calls there were.
func (c *visitors) end(t *testing.T) int {
	t.Helper()
	c.stop()
	c.wg.Wait()
	for i, err := range c.failed {
		if i == 5 {
			t.Errorf("and %d more", len(c.failed)-5)
			break
		}
		t.Errorf("a call failed: %v", err)
	}
	return c.calls
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
	m.watchdog = 2 * time.Second
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
	from := m.mark()
	h.must(t, "reload")
	m.wait(t, from, func(text string) bool { return strings.HasPrefix(text, "RELOADING=1\nMONOTONIC_USEC=") })
	m.wait(t, from, says("READY=1"))
	m.wait(t, from, says("WATCHDOG=1"))
}

// succeedBy runs a daemon that takes over from d and waits until it has.
func (h *host) succeedBy(t *testing.T, d *proc, config string) *proc {
	t.Helper()
	next := h.launchCommand(t, h.command(t, "--config", config, "run", "--replace"))
	next.wait(t, func(l line) bool { return l.field("message") == "ready" })
	d.end(t) // by itself
	return next
}

// TestReplace: a daemon takes over from another without a gap: again and again
// under load, with a service that is asleep every now and then, and with a
// connection that is held.
func TestReplace(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := web(`idle = "5m"`, `LISTEN_DELAY = "1s"`, "[service.web.drain]\ntimeout = \"1s\"\n") + named("nap", 81, `idle = "100ms"`)
	config := h.configure(t, text)
	d := h.start(t, config)

	held := h.ask(t)
	d.wait(t, func(l line) bool { return l.field("message") == "connection held" })
	queued := h.ask(t)
	d = h.succeedBy(t, d, config)
	replied(t, held)
	replied(t, queued)

	flow := h.hold(t)
	busy, naps := h.visit(t, 2, address+":80", 5*time.Millisecond), h.visit(t, 1, address+":81", 250*time.Millisecond)
	var descriptors []int
	for i := range 20 {
		d = h.succeedBy(t, d, config)
		calls, naptimes := busy.made(), naps.made()
		testenv.Eventually(t, patient, func() (bool, string) {
			return busy.made() > calls+10 && (naps.made() > naptimes || i%4 != 0), "no calls between two takeovers"
		})
		descriptors = append(descriptors, h.descriptors(t, d))
	}
	t.Logf("%d calls to a service that is awake, %d to one that sleeps between them; descriptors: %v", busy.end(t), naps.end(t), descriptors)
	if first, last := slices.Max(descriptors[:5]), slices.Min(descriptors[15:]); last > first+2 {
		t.Errorf("descriptors of the daemons: %v", descriptors)
	}
	if err := flow.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(flow, make([]byte, 16)); err != nil {
		t.Errorf("an open flow was cut: %v", err)
	}
	if _, _, code := h.sluice(t, "status"); code != 0 {
		t.Errorf("status after all that: exit %d", code)
	}
}

// descriptors counts those of a daemon.
func (h *host) descriptors(t *testing.T, d *proc) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// TestReplaceFails: a daemon that cannot come up leaves the running one as it was,
// sleeping services and held connections included.
func TestReplaceFails(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, web(`idle = "5m"`, `LISTEN_DELAY = "1s"`, "[service.web.drain]\ntimeout = \"1s\"\n"))
	d := h.start(t, config)
	good, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	// The daemon is not to reload what is written here.
	other := filepath.Join(shortDir(t), "sluice.toml")
	fails := func(what, text string, want int, words string) {
		t.Helper()
		if err := os.WriteFile(other, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := h.command(t, "--config", other, "run", "--replace")
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != want || !strings.Contains(string(out), words) {
			t.Errorf("%s: exit %d, want %d and %q:\n%s", what, code, want, words, out)
		}
	}
	if _, errOut, code := h.sluice(t, "run"); code != 1 || !strings.Contains(errOut, "another sluice answers") || !strings.Contains(errOut, "--replace") {
		t.Errorf("run beside a running daemon: exit %d: %s", code, errOut)
	}
	var taken net.Listener
	if err := h.Host.Do(func() (err error) {
		taken, err = net.Listen("tcp4", address+":82")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer taken.Close()

	held := h.ask(t)
	d.wait(t, func(l line) bool { return l.field("message") == "connection held" })
	fails("a bad file", "[service.web]\nlisten = 1\n", 2, "listen")
	for range 3 {
		from := d.mark()
		fails("an address that is taken", string(good)+named("more", 82, ""), 1, "another program listens there")
		d.waitFrom(t, from, func(l line) bool { return strings.Contains(l.field("message"), "this one goes on") })
	}
	replied(t, held)
	h.must(t, "drain", "web")
	d.until(t, "sleep", asleep)
	replied(t, h.ask(t))
}

// TestReplaceUndecided: a daemon that has all it needs, but has not taken over,
// takes no datagram and forgets no verdict: if it ends then, nothing is lost.
func TestReplaceUndecided(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	relay := newPodmanRelay(t, h.pod, h.dir)
	relay.listing = make(chan func())
	text := strings.Replace(web(`idle = "5m"`, `PORT = "0", UDP_PORT = "8080"`, ""), ":80/tcp", ":80/udp", 1)
	d := h.start(t, h.configure(t, text+"[service.web.canary]\npercent = 50\n[service.web.canary.container]\nenv = { NAME = \"canary\" }\n"))
	h.must(t, "canary", "abort", "web")
	verdicts := filepath.Join(h.state(), "canaries.json")
	before, err := os.ReadFile(verdicts)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(shortDir(t), "sluice.toml")
	text = fmt.Sprintf("[daemon]\npodman = \"unix://%s\"\nadmin = %q\nstate = %q\nlog_format = \"json\"\n", relay.path, h.admin(), h.state()) + text
	if err := os.WriteFile(other, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	next := h.launchCommand(t, h.command(t, "--config", other, "run", "--replace"))
	select {
	case <-relay.listing:
	case <-time.After(patient):
		t.Fatal("the other daemon does not come so far")
	}
	c := h.datagrams(t)
	c.send(t, "one")
	c.send(t, "two")
	testenv.Eventually(t, patient, func() (bool, string) {
		sockets := h.Host.Run(t, "ss", "-Hun", "-a", "src", address+":80")
		words := strings.Fields(sockets) // state, bytes to be read
		return len(words) > 1 && words[1] != "0", "no datagram waits in the socket: " + sockets
	})
	next.signal(t, syscall.SIGKILL)
	next.end(t)
	d.wait(t, func(l line) bool { return strings.Contains(l.field("message"), "this one goes on") })
	c.replied(t)
	if after, err := os.ReadFile(verdicts); err != nil || string(after) != string(before) {
		t.Errorf("verdicts were %s, now %s, %v", before, after, err)
	}

	// Nor does it take over from one that has been stopped meanwhile.
	next = h.launchCommand(t, h.command(t, "--config", other, "run", "--replace"))
	pass := <-relay.listing
	d.signal(t, syscall.SIGTERM)
	d.end(t)
	pass()
	next.end(t)
	next.wait(t, func(l line) bool { return strings.Contains(l.text, "does not give way any more") })
}

// datagrams is a client of a UDP service.
type datagrams struct {
	net.Conn
	sent []string
}

func (h *host) datagrams(t *testing.T) *datagrams {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "udp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &datagrams{Conn: conn}
}

func (c *datagrams) send(t *testing.T, text string) {
	t.Helper()
	c.sent = append(c.sent, text)
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
}

// replied waits for an answer to each datagram, in any order; one may come twice.
func (c *datagrams) replied(t *testing.T) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	missing := slices.Clone(c.sent)
	b := make([]byte, 2048)
	for len(missing) > 0 {
		n, err := c.Read(b)
		if err != nil {
			t.Errorf("no answer to %q: %v", missing, err)
			return
		}
		text := strings.TrimSpace(string(b[:n]))
		if !strings.Contains(text, c.LocalAddr().String()) {
			t.Errorf("answer %q, want one to %s", text, c.LocalAddr())
		}
		missing = slices.DeleteFunc(missing, func(s string) bool { return strings.HasSuffix(text, s) })
	}
}

// TestNoGapUDP: datagrams that are held when the daemon is stopped, killed or
// replaced, and those that come while there is none, are answered by the container.
func TestNoGapUDP(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web(`idle = "5m"`, `PORT = "0", UDP_PORT = "8080", LISTEN_DELAY = "1s"`, "[service.web.drain]\ntimeout = \"1s\"\n"), ":80/tcp", ":80/udp", 1)
	config := h.configure(t, text)
	m := newManager(t, h)
	d := m.start(t, h, config)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		first, second := h.datagrams(t), h.datagrams(t)
		from := d.mark()
		first.send(t, "one")
		d.waitFrom(t, from, func(l line) bool { return l.field("message") == "connection held" })
		m.untilNames(t, "the file of held datagrams", func(names []string) bool {
			return slices.Contains(names, "datagrams/"+address+"/80")
		})
		if sig != syscall.SIGKILL { // which may come between its arrival and its being written down
			first.send(t, "two")
		}
		d.signal(t, sig)
		d.end(t)
		first.send(t, "three")
		second.send(t, "four")
		d = m.start(t, h, config)
		first.replied(t)
		second.replied(t)
		h.must(t, "drain", "web")
		d.until(t, "sleep", asleep)
	}
	d.signal(t, syscall.SIGTERM)
	d.end(t)
	m.discard()

	// With nobody to keep anything.
	d = h.start(t, config)
	for range 2 {
		c := h.datagrams(t)
		from := d.mark()
		c.send(t, "one")
		d.waitFrom(t, from, func(l line) bool { return l.field("message") == "connection held" })
		d = h.succeedBy(t, d, config)
		c.send(t, "two")
		c.replied(t)
		h.must(t, "drain", "web")
		d.until(t, "sleep", asleep)
	}
}
