package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/nft"
)

// The client does something at a step. What it has sent and closed arrives, and
// a reset is heard of.
func TestClientActs(t *testing.T) {
	t.Parallel()
	acts := map[string]func(*net.TCPConn) error{
		"sends":           func(c *net.TCPConn) error { _, err := c.Write([]byte("more")); return err },
		"closes its side": func(c *net.TCPConn) error { return c.CloseWrite() },
		"resets": func(c *net.TCPConn) error {
			return errors.Join(c.SetLinger(0), c.Close())
		},
	}
	for name, act := range acts {
		for _, step := range stepNames() {
			t.Run(name+" "+step, func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				heards := make(chan heard, 2)
				l.serve(t, listener(heards))
				h := l.hold(t, service4)
				c := dial(t, l.Client, service4)
				sent := text(2000, 5)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				held := h.accept()
				waitBytes(t, held, len(sent))
				l.warm(t, service4)
				s := &steps{Freezer: l.table, Tracker: l.tracker}
				s.at = func(at string) {
					if at == step {
						s.at = func(string) {}
						if err := act(c); err != nil {
							t.Error(err)
						}
					}
				}
				r := l.handover(l.open(t, s, s), held)[0]
				if r.Err != nil {
					t.Errorf("result %+v", r)
				}
				switch name {
				case "sends":
					sent = append(sent, "more"...)
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				case "resets":
					if r.Reason.Relay() {
						t.Errorf("result %+v", r)
					}
					if r.Reason == Gone {
						return // the backend knows of nothing, or of a reset handshake
					}
				}
				if r.Reason.Relay() {
					l.relay(t, held)
				}
				got := hear(t, heards)
				if string(got.data) != string(sent) && name != "resets" {
					t.Errorf("backend got %d bytes, want %d", len(got.data), len(sent))
				}
				if (got.err != nil) != (name == "resets") {
					t.Errorf("%s: backend's end is %v", r.Reason, got.err)
				}
				l.thawed(t)
			})
		}
	}
}

// A client that keeps sending single bytes all the time.
func TestDribble(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	h := l.hold(t, service4)
	for range 10 {
		l.cold(t, service4)
		c := dial(t, l.Client, service4)
		_ = c.SetNoDelay(true)
		sent := text(2000, 6)
		half := make(chan struct{})
		done := make(chan error, 1)
		go func() {
			for i := range sent {
				if i == len(sent)/4 {
					close(half)
				}
				if _, err := c.Write(sent[i : i+1]); err != nil {
					done <- err
					return
				}
			}
			done <- c.CloseWrite()
		}()
		held := h.accept()
		<-half
		l.warm(t, service4)
		r := l.handover(l.porter, held)[0]
		if r.Reason.Relay() && r.Reason != HalfClosed || r.Err != nil {
			t.Fatalf("result %+v", r)
		}
		who := c.LocalAddr()
		if r.Reason.Relay() {
			who = l.relay(t, held)
		}
		if err := finish(c, who, sent, nil); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// leaky lets all of the client's packets through.
type leaky struct{ *nft.Table }

func (l leaky) Freeze(ts []nft.Tuple, d time.Duration) error {
	return l.Table.Freeze(l.elsewhere(ts), d)
}

func (l leaky) Unfreeze(ts []nft.Tuple) error { return l.Table.Unfreeze(l.elsewhere(ts)) }

func (leaky) elsewhere(ts []nft.Tuple) []nft.Tuple {
	out := slices.Clone(ts)
	for i := range out {
		out[i].Service = netip.AddrPortFrom(out[i].Service.Addr(), 9)
	}
	return out
}

// What was under way to the socket when it was frozen comes in after it has been
// inspected for the last time.
func TestLate(t *testing.T) {
	t.Parallel()
	for _, before := range []int{0, 3000} {
		for _, closes := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d bytes/closes %v", before, closes), func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				heards := make(chan heard, 1)
				l.serve(t, listener(heards))
				h := l.hold(t, service4)
				c := dial(t, l.Client, service4)
				sent := text(before, 5)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				held := h.accept()
				waitBytes(t, held, before)
				l.warm(t, service4)
				s := &steps{Freezer: leaky{l.table}, Tracker: l.tracker}
				s.at = func(at string) {
					if at != "before track" {
						return
					}
					if _, err := c.Write([]byte("late")); err != nil {
						t.Error(err)
					}
					waitBytes(t, held, before+4)
					if closes {
						if err := c.CloseWrite(); err != nil {
							t.Error(err)
						}
						waitState(t, held, stateCloseWait)
					}
				}
				r := l.handover(l.open(t, s, s), held)[0]
				if r.Reason != Done || r.Err != nil || r.Bytes != before+4 {
					t.Errorf("result %+v", r)
				}
				sent = append(sent, "late"...)
				if !closes {
					sent = append(sent, "r"...)
					if _, err := c.Write([]byte("r")); err != nil {
						t.Error(err)
					}
					if err := c.CloseWrite(); err != nil {
						t.Error(err)
					}
				}
				if got := hear(t, heards); got.err != nil || string(got.data) != string(sent) {
					t.Errorf("backend got %d bytes of %d, %v", len(got.data), len(sent), got.err)
				}
				if b, err := io.ReadAll(c); err != nil || !strings.HasPrefix(string(b), "hello") {
					t.Errorf("client got %q, %v", b, err)
				}
			})
		}
	}
}

// An upload that begins while held and is larger than any window.
func TestUpload(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	heards := make(chan heard, 1)
	l.serve(t, listener(heards))
	h := l.hold(t, service4)
	c := dial(t, l.Client, service4)
	sent := text(8<<20, 7)
	done := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		done <- errors.Join(err, c.CloseWrite())
	}()
	held := h.accept()
	waitBytes(t, held, 50000)
	l.warm(t, service4)
	r := l.handover(l.porter, held)[0]
	t.Logf("%d bytes were held", r.Bytes)
	if r.Reason != Done || r.Err != nil {
		t.Fatalf("result %+v", r)
	}
	if got := hear(t, heards); got.err != nil || string(got.data) != string(sent) {
		t.Errorf("backend got %d bytes, %v", len(got.data), got.err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
