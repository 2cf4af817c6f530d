package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// cold is a service asleep whose first connection is about to come.
type cold struct {
	*proc
	moved bool
}

// middle is called in the middle of the conversation that woke the service: the
// daemon must have handed it over, and dies.
func (c *cold) middle(t *testing.T) {
	t.Helper()
	st := c.until(t, "the handover", func(st control.ServiceStatus) bool { return st.HandedOver+st.Relayed > 0 })
	if st.HandedOver != 1 || st.Relayed != 0 {
		t.Errorf("not handed over: %+v, %v", st, c.handovers(t))
	}
	c.socketless(t)
	c.kill(t)
	c.moved = true
}

// TestHandoverConversations: whatever is said on the connection that woke the
// service, it is said without the daemon, which is killed in the middle.
func TestHandoverConversations(t *testing.T) {
	t.Parallel()
	for _, v := range []struct {
		name string
		port int // of the container; 0: 8080
		env  string
		hold func(*testing.T, *cold)
	}{
		{"curl", 0, "", curl},
		{"TLS", 8443, `TLS_PORT = "8443"`, encrypted},
		{"server speaks first", 2222, `SPEAK_FIRST_PORT = "2222"`, greeted},
		{"WebSocket", 0, "", webSocket},
		{"thousand requests", 0, "", thousand},
		{"upload", 0, `LISTEN_DELAY = "1s"`, upload},
		{"download", 0, "", download},
		{"silence", 0, "", silence},
		{"byte by byte", 7007, `RAW_ECHO_PORT = "7007"`, dribble},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			config := web(`idle = "1s"`, v.env, "")
			if v.port != 0 {
				config = onPort(v.port, config)
			}
			c := &cold{proc: h.start(t, h.configure(t, config))}
			v.hold(t, c)
			if !c.moved {
				t.Error("the conversation has ended before its middle")
			}
		})
	}
}

// session speaks HTTP/1.1 on one connection.
type session struct {
	net.Conn
	from *bufio.Reader
}

func newSession(t *testing.T, c net.Conn) *session {
	t.Helper()
	if err := c.SetDeadline(time.Now().Add(3 * patient)); err != nil {
		t.Fatal(err)
	}
	return &session{c, bufio.NewReader(c)}
}

func (s *session) ask(t *testing.T, method, path string, body io.Reader, size int64) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "http://x"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	req.ContentLength = size
	if err := req.Write(s); err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	resp, err := http.ReadResponse(s.from, req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s: %s", method, path, resp.Status)
	}
	return resp
}

// who asks the server whom it sees.
func (s *session) who(t *testing.T) {
	t.Helper()
	resp := s.ask(t, http.MethodGet, "/who", nil, 0)
	defer resp.Body.Close()
	var a testenv.Answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		t.Fatal(err)
	}
	if me := netip.MustParseAddrPort(s.LocalAddr().String()); a.Remote != me {
		t.Errorf("the container sees %s, not the client %s", a.Remote, me)
	}
}

// halves reads size bytes of seed, and calls middle after half of them.
func halves(t *testing.T, from io.Reader, size int64, seed uint64, middle func()) {
	t.Helper()
	got, want := sha256.New(), sha256.New()
	n, err := io.CopyN(got, from, size/2)
	if err == nil {
		middle()
		var m int64
		m, err = io.Copy(got, from)
		n += m
	}
	if err != nil || n != size {
		t.Fatalf("%d of %d bytes: %v", n, size, err)
	}
	if _, err := io.Copy(want, testenv.Bytes(size, seed)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes, but others than were sent", n)
	}
}

func curl(t *testing.T, c *cold) {
	const size, seed = 64 << 20, 1
	cmd := c.Client.Command(t.Context(), "curl", "--silent", "--show-error", "--fail", "--noproxy", "*",
		fmt.Sprintf("http://%s/bytes?n=%d&seed=%d", address, size, seed))
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	halves(t, out, size, seed, func() { c.middle(t) })
	if err := cmd.Wait(); err != nil {
		t.Errorf("curl: %v: %s", err, errs.String())
	}
}

func encrypted(t *testing.T, c *cold) {
	const size, seed = 16 << 20, 2
	conn, _ := c.dial(t)
	// The container's certificate is its own; what counts is that it is the
	// container's, which a daemon in between could not show.
	s := newSession(t, tls.Client(conn, &tls.Config{InsecureSkipVerify: true})) //nolint:gosec // see above
	body := s.ask(t, http.MethodGet, fmt.Sprintf("/bytes?n=%d&seed=%d", size, seed), nil, 0).Body
	halves(t, body, size, seed, func() { c.middle(t) })
	s.who(t)
}

func greeted(t *testing.T, c *cold) {
	const size, seed = 4 << 20, 3
	conn, me := c.dial(t)
	s := newSession(t, conn)
	line, err := s.from.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(line, "220 ") || !strings.HasSuffix(line, " "+me.String()+"\r\n") {
		t.Errorf("greeted by %q", line)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, testenv.Bytes(size, seed))
		if err == nil {
			err = conn.CloseWrite()
		}
		sent <- err
	}()
	halves(t, s.from, size, seed, func() { c.middle(t) })
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func thousand(t *testing.T, c *cold) {
	conn, _ := c.dial(t)
	s := newSession(t, conn)
	for i := range 1000 {
		if i == 500 {
			c.middle(t)
		}
		if i%2 == 0 {
			s.who(t)
			continue
		}
		size, seed := int64(i*i%70_000), uint64(i)
		body := s.ask(t, http.MethodGet, fmt.Sprintf("/bytes?n=%d&seed=%d", size, seed), nil, 0).Body
		halves(t, body, size, seed, func() {})
	}
}

// upload sends more than any window takes before there is anyone to take it.
func upload(t *testing.T, c *cold) {
	const size, seed = 64 << 20, 4
	conn, _ := c.dial(t)
	s := newSession(t, conn)
	sum := sha256.New()
	resp := s.ask(t, http.MethodPost, "/upload", &gate{
		Reader: io.TeeReader(testenv.Bytes(size, seed), sum), left: size / 2,
		open: func() {
			if st := c.status(t); st.Phase != "warm" {
				t.Errorf("half of the upload has found room while the service is %s", st.Phase)
			}
			c.middle(t)
		},
	}, size)
	defer resp.Body.Close()
	var got struct {
		SHA256 string
		Size   int64
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
		t.Fatal(err)
	}
	if got.Size != size || got.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
		t.Errorf("the container has received %d of %d bytes, sum %s", got.Size, size, got.SHA256)
	}
}

// gate calls open when it has given left bytes.
type gate struct {
	io.Reader
	left int64
	open func()
}

func (g *gate) Read(b []byte) (int, error) {
	if g.left <= 0 && g.open != nil {
		g.open()
		g.open = nil
	}
	n, err := g.Reader.Read(b)
	g.left -= int64(n)
	return n, err
}

func download(t *testing.T, c *cold) {
	size, seed := int64(1<<30), uint64(5)
	if testing.Short() {
		size = 256 << 20
	}
	conn, _ := c.dial(t)
	s := newSession(t, conn)
	body := s.ask(t, http.MethodGet, fmt.Sprintf("/bytes?n=%d&seed=%d", size, seed), nil, 0).Body
	began := time.Now()
	halves(t, body, size, seed, func() { c.middle(t) })
	t.Logf("%d MB in %s", size>>20, time.Since(began))
	s.who(t)
}

// silence says nothing for thirty seconds: that is what is tested, also that a
// service whose only flow is silent does not go to sleep after a second.
func silence(t *testing.T, c *cold) {
	conn, _ := c.dial(t)
	half, whole := time.NewTimer(15*time.Second), time.NewTimer(30*time.Second)
	<-half.C
	if st := c.status(t); st.Phase != "warm" || st.Flows != 1 {
		t.Errorf("while the client is silent: %+v", st)
	}
	c.middle(t)
	<-whole.C
	newSession(t, conn).who(t)
}

// dribble sends one byte at a time from the beginning, so that some of them
// meet each step of the handover.
func dribble(t *testing.T, c *cold) {
	const seed = 6
	conn, _ := c.dial(t)
	s := newSession(t, conn)
	stop := make(chan struct{})
	sent := make(chan error, 1)
	n := 0 // until sent
	go func() {
		pace := time.NewTicker(200 * time.Microsecond)
		defer pace.Stop()
		from, more := testenv.Bytes(1<<30, seed), 2000
		for b := make([]byte, 1); more > 0; n++ {
			select {
			case <-stop:
				more--
			default:
			}
			<-pace.C
			_, _ = from.Read(b) // never fails
			if _, err := conn.Write(b); err != nil {
				sent <- err
				return
			}
		}
		sent <- conn.CloseWrite()
	}()
	sum := sha256.New()
	if _, err := io.CopyN(sum, s.from, 1); err != nil {
		t.Fatal(err)
	}
	c.middle(t)
	close(stop)
	got, err := io.Copy(sum, s.from)
	if err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	want := sha256.New()
	if _, err := io.Copy(want, testenv.Bytes(int64(n), seed)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d bytes one by one", n)
	if got+1 != int64(n) || !bytes.Equal(sum.Sum(nil), want.Sum(nil)) {
		t.Errorf("%d bytes came back, not the %d that were sent", got+1, n)
	}
}

// webSocket sends frames of all three kinds of length and expects them back.
func webSocket(t *testing.T, c *cold) {
	conn, _ := c.dial(t)
	s := newSession(t, conn)
	if _, err := fmt.Fprint(s, "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(s.from, nil)
	if err != nil {
		t.Fatal(err)
	}
	// The key and its answer are those of RFC 6455 section 1.3.
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatalf("%s %v", resp.Status, resp.Header)
	}
	const opBinary, opClose = 2, 8
	for i := range 200 {
		if i == 100 {
			c.middle(t)
		}
		s.echoFrame(t, opBinary, i*i*4, uint64(i))
	}
	s.echoFrame(t, opClose, 0, 0)
	if n, err := s.from.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the end: %d bytes, %v", n, err)
	}
}

// echoFrame sends a frame as a client does, masked, and reads the server's.
func (s *session) echoFrame(t *testing.T, op byte, size int, seed uint64) {
	t.Helper()
	payload, err := io.ReadAll(testenv.Bytes(int64(size), seed))
	if err != nil {
		t.Fatal(err)
	}
	var length []byte
	switch {
	case size < 126:
		length = []byte{byte(size)}
	case size < 1<<16:
		length = binary.BigEndian.AppendUint16([]byte{126}, uint16(size))
	default:
		length = binary.BigEndian.AppendUint64([]byte{127}, uint64(size))
	}
	mask := [4]byte{byte(seed), 0x5a, 0xc3, byte(size)}
	frame := append([]byte{0x80 | op}, length...)
	frame[1] |= 0x80
	frame = append(frame, mask[:]...)
	for i, b := range payload {
		frame = append(frame, b^mask[i%4])
	}
	if _, err := s.Write(frame); err != nil {
		t.Fatal(err)
	}
	want := append(append([]byte{0x80 | op}, length...), payload...)
	got := make([]byte, len(want))
	if n, err := io.ReadFull(s.from, got); err != nil {
		t.Fatalf("frame of %d bytes: %d bytes came: %v", size, n, err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("frame of %d bytes: others came back", size)
	}
}
