package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sluice/testenv"
)

// stranger is an address of the client that no list allows.
const stranger = "198.51.100.7"

// newAttackedHost is a host whose client has another address besides.
func newAttackedHost(t *testing.T) *host {
	t.Helper()
	h := newHost(t)
	h.Client.AddAddr(t, stranger+"/32", "lo")
	h.Host.IP(t, "route add "+stranger+" via "+h.ClientAddr4.String())
	return h
}

// call connects from an address of the namespace, asks who is there and returns
// what went wrong.
func call(ns *testenv.NS, from, network, to string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c, err := ns.DialFrom(ctx, netip.AddrPortFrom(netip.MustParseAddr(from), 0), network, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patient)); err != nil {
		return err
	}
	question := "GET /who HTTP/1.0\r\n\r\n"
	if network == "udp" {
		question = "who"
	}
	if _, err := fmt.Fprint(c, question); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 1))
	return err
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// TestAllow: who is not allowed is refused while the service sleeps and while it
// wakes, wakes nothing and holds nothing; once it is awake all are served.
func TestAllow(t *testing.T) {
	t.Parallel()
	h := newAttackedHost(t)
	text := web(`idle = "1s"`, `LISTEN_DELAY = "1s"`, "")
	text = strings.Replace(text, "[service.web.container]", "allow = [\"10.99.0.0/24\"]\n[service.web.container]", 1)
	config := h.configure(t, text)
	d := h.start(t, config)
	turned := func() {
		t.Helper()
		if err := call(h.Client, stranger, "tcp", address+":80"); !refused(err) {
			t.Errorf("a stranger: %v, want a refusal", err)
		}
		if err := call(h.Host, address, "tcp", address+":80"); !refused(err) {
			t.Errorf("the host itself: %v, want a refusal", err)
		}
	}
	for range 2 {
		turned()
		if st := d.status(t); st.Phase != "cold" || st.Held != 0 {
			t.Errorf("after strangers have called: %+v", st)
		}
		answered := make(chan error, 1)
		from := d.mark()
		go func() { answered <- call(h.Client, h.ClientAddr4.String(), "tcp", address+":80") }()
		d.waitFrom(t, from, func(l line) bool { return l.field("message") == "connection held" })
		turned()
		if err := <-answered; err != nil {
			t.Errorf("a friend: %v", err)
		}
		// Awake: everyone.
		conn, err := h.Client.DialFrom(t.Context(), netip.MustParseAddrPort(stranger+":0"), "tcp", address+":80")
		if err != nil {
			t.Fatalf("a stranger to a service that is awake: %v", err)
		}
		_ = conn.Close()
		d.until(t, "sleep", asleep)
		if d.mark() > 0 && len(h.containers(t)) != 0 {
			t.Error("a container is left")
		}
	}
	for _, f := range testenv.Conntrack(t, h.Host) {
		if f.Orig.Src.Addr() == netip.MustParseAddr(stranger) && f.State != "TIME_WAIT" && f.State != "CLOSE" {
			t.Errorf("kept of a stranger: %v", f)
		}
	}

	// The list holds across a restart, and while the daemon is away; and a new
	// one is in force with a reload.
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	turned()
	h.start(t, config)
	turned()
	h.configure(t, strings.Replace(text, "10.99.0.0/24", stranger+"\", \""+address, 1))
	h.must(t, "reload")
	testenv.Eventually(t, patient, func() (bool, string) {
		err := call(h.Client, h.ClientAddr4.String(), "tcp", address+":80")
		return refused(err), fmt.Sprint("who is not allowed any more: ", err)
	})
	if err := call(h.Client, stranger, "tcp", address+":80"); err != nil {
		t.Errorf("who is allowed now: %v", err)
	}
}

// TestAllowPaused: a paused service has its slots in place, and who is not
// allowed meets none of them; nor do packets of his open connection wake it.
func TestAllowPaused(t *testing.T) {
	t.Parallel()
	h := newAttackedHost(t)
	text := web("idle = \"1s\"\nsleep = \"pause\"\nidle_counts = \"bytes\"", "", "")
	text = strings.Replace(text, "[service.web.container]", "allow = [\"10.99.0.0/24\"]\n[service.web.container]", 1)
	d := h.start(t, h.configure(t, text))
	h.get(t, "/who")
	open, err := h.Client.DialFrom(t.Context(), netip.MustParseAddrPort(stranger+":0"), "tcp", address+":80")
	if err != nil {
		t.Fatalf("a stranger to a service that is awake: %v", err)
	}
	defer open.Close()
	calm := func() {
		t.Helper()
		d.until(t, "pause", pausedOne)
		testenv.Eventually(t, patient, func() (bool, string) { // the table follows the pause
			err := call(h.Client, stranger, "tcp", address+":80")
			return refused(err), fmt.Sprint("a stranger: ", err)
		})
		st := d.until(t, "pause", pausedOne)
		from := d.mark()
		if err := call(h.Client, stranger, "tcp", address+":80"); !refused(err) {
			t.Errorf("a stranger: %v, want a refusal", err)
		}
		if _, err := open.Write([]byte("G")); err != nil {
			t.Error(err)
		}
		if err := call(h.Host, address, "tcp", address+":80"); !refused(err) {
			t.Errorf("the host itself: %v, want a refusal", err)
		}
		if got := h.pod.CLI(t, "inspect", "--format", "{{.State.Status}}", st.Backends[0].Name); strings.TrimSpace(got) != "paused" {
			t.Errorf("podman says %s after strangers have called", got)
		}
		for _, l := range d.log.Since(from) {
			if l.fields["event"] == "waking" {
				t.Errorf("strangers have woken it: %s", l.text)
			}
		}
	}
	for range 2 {
		calm()
		h.get(t, "/who")
	}
	d.until(t, "pause", pausedOne)
	d.signal(t, syscall.SIGKILL)
	d.end(t)
	d = h.start(t, filepath.Join(h.dir, "sluice.toml"))
	calm()
	h.get(t, "/who")
}

// TestAllowHere: clients on the host go by their own address, at every local
// address, by the kernel or, at [::1] and with forward = "proxy", by the daemon.
func TestAllowHere(t *testing.T) {
	t.Parallel()
	for _, forward := range []string{"nat", "proxy"} {
		t.Run(forward, func(t *testing.T) {
			t.Parallel()
			h := newAttackedHost(t)
			h.Host.Sysctl(t, "net.ipv4.conf.all.route_localnet", "1")
			text := strings.Replace(web(`idle = "5s"`, "", ""), address+":80/tcp", ":80/tcp", 1)
			text = strings.Replace(text, "[service.web.container]", "forward = \""+forward+"\"\nallow = [\"127.0.0.0/8\", \"::1\"]\n[service.web.container]", 1)
			d := h.start(t, h.configure(t, text))
			for _, friend := range []string{"127.0.0.1", "::1"} {
				if err := call(h.Client, stranger, "tcp", address+":80"); !refused(err) {
					t.Errorf("a stranger: %v, want a refusal", err)
				}
				if err := call(h.Host, address, "tcp", address+":80"); !refused(err) {
					t.Errorf("the host by its address: %v, want a refusal", err)
				}
				if err := call(h.Host, friend, "tcp", netip.AddrPortFrom(netip.MustParseAddr(friend), 80).String()); err != nil {
					t.Errorf("the host by %s: %v", friend, err)
				}
				for _, ns := range []struct {
					*testenv.NS
					from string
				}{{h.Client, stranger}, {h.Host, address}} {
					if err := call(ns.NS, ns.from, "tcp", address+":80"); err != nil {
						t.Errorf("%s to a service that is awake: %v", ns.from, err)
					}
				}
				d.until(t, "sleep", asleep)
			}
		})
	}
}

// TestAllowUDP: a stranger's datagram is answered by a port unreachable.
func TestAllowUDP(t *testing.T) {
	t.Parallel()
	h := newAttackedHost(t)
	text := web(`idle = "5m"`, `PORT = "0", UDP_PORT = "8080"`, "")
	text = strings.Replace(text, "/tcp", "/udp", 1)
	text = strings.Replace(text, "[service.web.container]", "allow = [\"10.99.0.0/24\"]\n[service.web.container]", 1)
	d := h.start(t, h.configure(t, text))
	if err := call(h.Client, stranger, "udp", address+":80"); !refused(err) {
		t.Errorf("a stranger: %v, want a refusal", err)
	}
	if st := d.status(t); st.Phase != "cold" || st.Held != 0 {
		t.Errorf("after a stranger's datagram: %+v", st)
	}
	if err := call(h.Client, h.ClientAddr4.String(), "udp", address+":80"); err != nil {
		t.Errorf("a friend: %v", err)
	}
	if err := call(h.Client, stranger, "udp", address+":80"); err != nil {
		t.Errorf("a stranger to a service that is awake: %v", err)
	}
}
