package testenv

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Answer is what a server of the test image says about a request.
type Answer struct {
	Name   string         `json:"name"`   // of the server: $NAME or its host name
	Remote netip.AddrPort `json:"remote"` // the client as the server saw it
}

// Who asks the server behind addr, over a connection of its own, who it is.
func Who(ctx context.Context, from *NS, addr string) (Answer, error) {
	var a Answer
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/who", nil)
	if err != nil {
		return a, err
	}
	resp, err := from.HTTPClient(HTTPOptions{}).Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return a, fmt.Errorf("get %s: %s", req.URL, resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return a, fmt.Errorf("get %s: %w", req.URL, err)
	}
	return a, nil
}

// WhoAnswered is Who for a server that must answer within ten seconds.
func WhoAnswered(t TB, from *NS, addr string) Answer {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	a, err := Who(ctx, from, addr)
	if err != nil {
		t.Fatalf("who answers at %s: %v", addr, err)
	}
	return a
}

// WhoUDP asks the server's UDP port from a new socket, once: a lost datagram
// shows as the end of ctx, which must have a deadline.
func WhoUDP(ctx context.Context, from *NS, addr string) (Answer, error) {
	var a Answer
	deadline, ok := ctx.Deadline()
	if !ok {
		return a, fmt.Errorf("who answers at %s: no deadline", addr)
	}
	c, err := from.Dial(ctx, "udp", addr)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return a, err
	}
	const payload = "who"
	if _, err := io.WriteString(c, payload); err != nil {
		return a, err
	}
	buf := make([]byte, 64<<10)
	n, err := c.Read(buf)
	if err != nil {
		return a, err
	}
	words := strings.SplitN(string(buf[:n]), " ", 3)
	if len(words) != 3 || words[2] != payload {
		return a, fmt.Errorf("who answers at %s: got %q", addr, buf[:n])
	}
	a.Name = words[0]
	if a.Remote, err = netip.ParseAddrPort(words[1]); err != nil {
		return a, fmt.Errorf("who answers at %s: %w", addr, err)
	}
	return a, nil
}

// Bytes is the stream that the server sends for /bytes?n=N&seed=SEED.
func Bytes(n int64, seed uint64) io.Reader {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	return io.LimitReader(rand.NewChaCha8(key), n)
}

// Eventually calls f until it says ok, at short intervals, and fails the test
// with f's last detail after timeout. It is for state of the kernel or of other
// programs that announces itself by no event.
func Eventually(t TB, timeout time.Duration, f func() (ok bool, detail string)) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for pause := time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		ok, detail := f()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", timeout, detail)
		}
		time.Sleep(pause)
	}
}
