package testenv

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestServerHTTP(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "TLS_PORT=8443", "COLOUR=blue", "READY_DELAY=1h")
	c := client.HTTPClient(HTTPOptions{Timeout: 20 * time.Second})
	base := "http://" + at(be.Addr4, 8080)

	a := WhoAnswered(t, client, at(be.Addr6, 8080))
	if a.Name != "backend0" || a.Remote.Addr().String() != "fd98::12" {
		t.Errorf("who = %+v", a)
	}
	if got := get(t, c, "https://"+at(be.Addr4, 8443)+"/"); !strings.Contains(got, `"remote":"10.98.0.12:`) {
		t.Errorf("over TLS: %s", got)
	}
	for _, base := range []string{base, "https://" + at(be.Addr6, 8443)} {
		resp, err := client.HTTPClient(HTTPOptions{Timeout: 20 * time.Second, HTTP2: true}).Get(base + "/bytes?n=100000")
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != 100000 || err != nil || resp.ProtoMajor != 2 {
			t.Errorf("%s: %d bytes, %v, %s", base, n, err, resp.Proto)
		}
		resp.Body.Close()
	}
	if got := get(t, c, base+"/env"); !strings.Contains(got, `"COLOUR":"blue"`) {
		t.Errorf("env = %s", got)
	}
	const n, seed = 3<<20 + 17, 42
	want, err := io.ReadAll(Bytes(n, seed))
	if err != nil {
		t.Fatal(err)
	}
	for _, rate := range []int{0, 64 << 20} {
		got := get(t, c, fmt.Sprintf("%s/bytes?n=%d&seed=%d&rate=%d", base, n, seed, rate))
		if got != string(want) {
			t.Errorf("rate %d: got %d bytes, want %d others", rate, len(got), n)
		}
	}
	resp, err := c.Post(base+"/upload", "", bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var sum struct {
		SHA256 string
		Size   int
	}
	if err := json.NewDecoder(resp.Body).Decode(&sum); err != nil {
		t.Fatal(err)
	}
	if h := sha256.Sum256(want); sum.SHA256 != hex.EncodeToString(h[:]) || sum.Size != n {
		t.Errorf("upload = %+v", sum)
	}
	if got := get(t, c, base+"/hold?for=20ms&every=1ms"); !strings.HasPrefix(got, ".") || !strings.HasSuffix(got, "\n") {
		t.Errorf("hold = %q", got)
	}
	health, err := c.Get(base + "/healthz")
	if err != nil {
		t.Fatal(err)
	}
	health.Body.Close()
	if health.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("health = %s", health.Status)
	}
}

func TestServerRaw(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "RAW_ECHO_PORT=7", "SPEAK_FIRST_PORT=25", "UDP_PORT=53")

	c := dial(t, client, at(be.Addr4, 7))
	const n = 1 << 20
	go func() {
		_, _ = io.Copy(c, Bytes(n, 1)) // an error shows as a short echo
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	want, _ := io.ReadAll(Bytes(n, 1))
	if !bytes.Equal(got, want) {
		t.Errorf("echo: got %d bytes", len(got))
	}

	c = dial(t, client, at(be.Addr6, 25))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("220 backend0 %s\r\n", c.LocalAddr()); line != want {
		t.Errorf("greeting = %q, want %q", line, want)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, addr := range []string{at(be.Addr4, 53), at(be.Addr6, 53)} {
		a, err := WhoUDP(ctx, client, addr)
		if err != nil {
			t.Fatal(err)
		}
		if a.Name != "backend0" {
			t.Errorf("%s: %+v", addr, a)
		}
	}
}

func TestServerWebSocket(t *testing.T) {
	t.Parallel()
	be, client := serverNet(t, "WS_PORT=9000", "PORT=0")
	c := dial(t, client, at(be.Addr4, 9000))
	// The key and its answer are the example of RFC 6455 section 1.3; the frame
	// is that of section 5.7, a masked "Hello".
	fmt.Fprint(c, "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("handshake = %s %v", resp.Status, resp.Header)
	}
	for _, f := range []struct{ send, want string }{
		{"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "\x81\x05Hello"},
		{"\x89\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "\x8a\x05Hello"},
		{"\x88\x80\x00\x00\x00\x00", "\x88\x00"},
	} {
		fmt.Fprint(c, f.send)
		got := make([]byte, len(f.want))
		if _, err := io.ReadFull(br, got); err != nil {
			t.Fatal(err)
		}
		if string(got) != f.want {
			t.Errorf("got %x, want %x", got, f.want)
		}
	}
	if _, err := br.ReadByte(); err != io.EOF {
		t.Errorf("after close: %v", err)
	}
}

func TestServerLife(t *testing.T) {
	t.Parallel()
	ns := NewNS(t, "life")
	client := ns.HTTPClient(HTTPOptions{Timeout: 20 * time.Second})

	s := StartServer(t, ns, "IGNORE_TERM=1")
	if err := syscall.Kill(s.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	WhoAnswered(t, ns, "127.0.0.1:8080") // answers, so it lives
	get(t, client, "http://127.0.0.1:8080/exit?code=3")
	wantExit(t, s, 3)

	s = StartServer(t, ns)
	if err := syscall.Kill(s.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	wantExit(t, s, 0)

	wantExit(t, StartServer(t, ns, "NEVER_LISTEN=1", "EXIT_AFTER=10ms", "EXIT_CODE=4"), 4)

	s = StartServer(t, ns, "NEVER_LISTEN=1")
	if got := Sockets(t, ns, s.PID()); len(got) != 0 {
		t.Errorf("sockets = %v", got)
	}
}

func wantExit(t *testing.T, s *Server, code int) {
	t.Helper()
	select {
	case <-s.Done():
	case <-time.After(patience):
		t.Fatalf("server lives on")
	}
	got := 0
	var exit *exec.ExitError
	if errors.As(s.err, &exit) {
		got = exit.ExitCode()
	}
	if got != code {
		t.Errorf("exit = %d (%v), want %d", got, s.err, code)
	}
}

// serverNet runs the server on the first of two backends; the second calls it.
func serverNet(t *testing.T, env ...string) (*Backend, *NS) {
	t.Helper()
	bn := NewBackendNet(t, NewNS(t, "host"), 2)
	StartServer(t, bn.Backends[0].NS, env...)
	return bn.Backends[0], bn.Backends[1].NS
}

func at(a netip.Addr, port uint16) string { return netip.AddrPortFrom(a, port).String() }

func dial(t *testing.T, ns *NS, addr string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := ns.Dial(ctx, "tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

func get(t *testing.T, c *http.Client, url string) string {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("get %s: %s: %s", url, resp.Status, b)
	}
	return string(b)
}
