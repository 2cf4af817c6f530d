package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/nft"
	"sluice/testenv"
)

// steps stands between a Porter and the kernel and calls at before and after
// each of its transactions.
type steps struct {
	Freezer
	Tracker
	at func(step string)
}

func stepNames() []string {
	return []string{"before freeze", "after freeze", "before track", "after track", "before thaw", "after thaw"}
}

func (s *steps) Freeze(ts []nft.Tuple, d time.Duration) error {
	s.at("before freeze")
	defer s.at("after freeze")
	return s.Freezer.Freeze(ts, d)
}

func (s *steps) Unfreeze(ts []nft.Tuple) error {
	s.at("before thaw")
	defer s.at("after thaw")
	return s.Freezer.Unfreeze(ts)
}

func (s *steps) Do(b *conntrack.Batch) ([]error, error) {
	s.at("before track")
	defer s.at("after track")
	return s.Tracker.Do(b)
}

// heard is what a backend got on a connection.
type heard struct {
	data []byte
	err  error
}

// hear waits for a backend to have heard all.
func hear(t *testing.T, heards <-chan heard) heard {
	t.Helper()
	select {
	case h := <-heards:
		return h
	case <-time.After(2 * patience):
		return heard{err: os.ErrDeadlineExceeded}
	}
}

// listener greets, hears to the end, and tells.
func listener(heards chan<- heard) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, werr := fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
		data, err := io.ReadAll(c)
		heards <- heard{data, errors.Join(werr, err)}
	}
}

// A packet is lost between host and backend.
func TestLoss(t *testing.T) {
	t.Parallel()
	for _, hook := range []string{"input", "output"} {
		for _, before := range []int{0, 5000} {
			for nth := range 5 {
				t.Run(fmt.Sprintf("%s/%d bytes/packet %d", hook, before, nth), func(t *testing.T) {
					t.Parallel()
					l := newLab(t)
					port := map[string]string{"input": "dport", "output": "sport"}[hook]
					l.backend.RunInput(t, fmt.Sprintf(`table inet loss {
						chain c { type filter hook %s priority 0; tcp %s 8080 numgen inc mod 100000 == %d counter drop; }
					}`, hook, port, nth), "nft", "-f", "-")
					l.serve(t, greet)
					h := l.hold(t, service4)
					c := dial(t, l.Client, service4)
					text1, text2 := text(before, 3), text(100000, 4)
					if _, err := c.Write(text1); err != nil {
						t.Fatal(err)
					}
					held := h.accept()
					waitBytes(t, held, before)
					l.warm(t, service4)
					if r := l.handover(l.porter, held)[0]; r.Reason != Done || r.Err != nil {
						t.Fatalf("result %+v", r)
					}
					if err := finish(c, c.LocalAddr(), text1, text2); err != nil {
						t.Error(err)
					}
					if out := l.backend.Run(t, "nft", "list", "table", "inet", "loss"); !strings.Contains(out, "packets 1 ") {
						t.Errorf("no packet was lost: %s", out)
					}
				})
			}
		}
	}
}

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

// A backend that says more than a window before it reads at all, so that what was
// held for it beyond its window must wait.
func TestDeafTalker(t *testing.T) {
	t.Parallel()
	for name, from := range map[string]func(*lab) *testenv.NS{
		"remote client":      func(l *lab) *testenv.NS { return l.Client },
		"client on the host": func(l *lab) *testenv.NS { return l.Host },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.backend.Sysctl(t, "net.ipv4.tcp_rmem", "4096 98304 33554432") // a smaller window
			speech := text(4<<20, 1)
			heards := make(chan heard, 1)
			l.serve(t, func(c *net.TCPConn) {
				_, werr := c.Write(speech)
				// Not before nothing is left of it to send: the client has it all.
				if err := drained(c); err != nil {
					heards <- heard{err: err}
					return
				}
				werr = errors.Join(werr, c.CloseWrite())
				data, err := io.ReadAll(c)
				heards <- heard{data, errors.Join(werr, err)}
			})
			h := l.hold(t, service4, clamp(1400)...)
			c := dial(t, from(l), service4)
			sent := text(80000, 2)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, len(sent))
			l.warm(t, service4)
			results := make(chan Result, 1)
			go func() { results <- l.handover(l.porter, held)[0] }()
			got := make([]byte, len(speech))
			_, err := io.ReadFull(c, got)
			err = errors.Join(err, c.CloseWrite())
			if err != nil || string(got) != string(speech) {
				t.Errorf("client got %v", err)
			}
			if got := hear(t, heards); got.err != nil || string(got.data) != string(sent) {
				t.Errorf("backend got %d bytes, %v", len(got.data), got.err)
			}
			if r := <-results; r.Reason != Done || r.Err != nil {
				t.Errorf("result %+v", r)
			}
		})
	}
}

// drained waits until the peer has acknowledged all; no event says so.
func drained(c *net.TCPConn) error {
	rc, err := c.SyscallConn()
	if err != nil {
		return err
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		n := -1
		if cerr := rc.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); cerr != nil || err != nil {
			return errors.Join(cerr, err)
		}
		if n == 0 {
			return nil
		}
	}
	return os.ErrDeadlineExceeded
}

// A backend that answers and closes, or resets, at once.
func TestBackendEnds(t *testing.T) {
	t.Parallel()
	for name, linger := range map[string]int{"close": -1, "reset": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.serve(t, func(c *net.TCPConn) {
				_ = c.SetLinger(linger)
				fmt.Fprint(c, "bye")
				if linger < 0 {
					_ = c.CloseWrite()
					_, _ = io.Copy(io.Discard, c)
				}
			})
			h := l.hold(t, service4)
			c := dial(t, l.Client, service4)
			if _, err := c.Write(text(3000, 8)); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, 3000)
			l.warm(t, service4)
			if r := l.handover(l.porter, held)[0]; r.Reason != Done || r.Err != nil {
				t.Errorf("result %+v", r)
			}
			got, err := io.ReadAll(c)
			if name == "close" && (string(got) != "bye" || err != nil) || name == "reset" && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("got %q %v", got, err)
			}
		})
	}
}

// The backend has another connection with the very addresses.
func TestTaken(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	h := l.hold(t, service4)
	from := func(fd int) error {
		return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.Bind(fd, &unix.SockaddrInet4{Port: 4000, Addr: l.ClientAddr4.As4()}))
	}
	other := dial(t, l.Client, l.address(service4), from)
	c := dial(t, l.Client, service4, from)
	held := h.accept()
	l.warm(t, service4)
	r := l.handover(l.porter, held)[0]
	if r.Reason != Refused || r.Err != nil {
		t.Fatalf("result %+v", r)
	}
	who := l.relay(t, held)
	if err := finish(c, who, nil, text(1000, 1)); err != nil {
		t.Error(err)
	}
	if err := finish(other, other.LocalAddr(), nil, text(1000, 2)); err != nil {
		t.Errorf("the other connection: %v", err)
	}
}

var errBroken = errors.New("broken")

// broken fails what it is told to fail, as many times.
type broken struct {
	Freezer
	Tracker
	freeze, track, create, thaw int
}

func (b *broken) Freeze(ts []nft.Tuple, d time.Duration) error {
	if b.freeze--; b.freeze >= 0 {
		return errBroken
	}
	return b.Freezer.Freeze(ts, d)
}

func (b *broken) Unfreeze(ts []nft.Tuple) error {
	if b.thaw--; b.thaw >= 0 {
		return errBroken
	}
	return b.Freezer.Unfreeze(ts)
}

func (b *broken) Do(batch *conntrack.Batch) ([]error, error) {
	if b.track--; b.track >= 0 {
		return nil, errBroken
	}
	errs, err := b.Tracker.Do(batch)
	if b.create--; b.create >= 0 && err == nil {
		errs[1] = errBroken
	}
	return errs, err
}

// What fails on this host before the commit leads to the relay, with nothing lost.
func TestBroken(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		broken
		want Reason
	}{
		{"freeze", broken{freeze: 1}, Unable},
		{"track", broken{track: 1}, Unable},
		{"create", broken{create: 1}, Unable},
		{"thaw", broken{thaw: 1}, Done},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.serve(t, greet)
			h := l.hold(t, service4)
			c := dial(t, l.Client, service4)
			before := text(5000, 1)
			if _, err := c.Write(before); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, len(before))
			l.warm(t, service4)
			b := tt.broken
			b.Freezer, b.Tracker = l.table, l.tracker
			r := l.handover(l.open(t, &b, &b), held)[0]
			if r.Reason != tt.want || !errors.Is(r.Err, errBroken) {
				t.Errorf("result %+v", r)
			}
			who := c.LocalAddr()
			if r.Reason.Relay() {
				who = l.relay(t, held)
			}
			if err := finish(c, who, before, text(100000, 2)); err != nil {
				t.Error(err)
			}
		})
	}
}

// An attempt that is cancelled leaves the connection to the relay.
func TestCancel(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	h := l.hold(t, service4)
	c := dial(t, l.Client, service4)
	held := h.accept()
	l.warm(t, service4)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := l.handoverCtx(ctx, l.porter, held)[0]
	if r.Reason != Timeout || !errors.Is(r.Err, context.Canceled) {
		t.Fatalf("result %+v", r)
	}
	l.thawed(t)
	if err := finish(c, l.relay(t, held), nil, text(1000, 1)); err != nil {
		t.Error(err)
	}
}

const victim = "SLUICE_HANDOVER_VICTIM"

func TestMain(m *testing.M) {
	if v := os.Getenv(victim); v != "" {
		if err := runVictim(v); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runVictim hands over descriptor 3 and kills itself at a step.
func runVictim(v string) error {
	w := strings.Split(v, ",")
	table, err := nft.Open(nft.Options{})
	if err != nil {
		return err
	}
	tracker, err := conntrack.Open(0, 0)
	if err != nil {
		return err
	}
	s := &steps{Freezer: table, Tracker: tracker, at: func(at string) {
		if at == w[0] {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}}
	p, err := Open(s, s)
	if err != nil {
		return err
	}
	var r Result
	p.Handover(context.Background(), []Held{{
		FD:     3,
		Client: netip.MustParseAddrPort(w[1]), Service: netip.MustParseAddrPort(w[2]), Backend: netip.MustParseAddrPort(w[3]),
	}}, func(_ int, got Result) { r = got })
	if r.Reason != Done || r.Err != nil {
		return fmt.Errorf("result %+v", r)
	}
	// Over, with everything still open.
	return unix.Kill(os.Getpid(), unix.SIGKILL)
}

// The process is killed at a step: the client is reset, or has its connection.
// It is never left waiting, and nothing stays frozen.
func TestKilled(t *testing.T) {
	t.Parallel()
	for _, step := range append(stepNames(), "at the end") {
		for _, before := range []int{0, 5000} {
			t.Run(fmt.Sprintf("%s/%d bytes", step, before), func(t *testing.T) {
				t.Parallel()
				l := newLab(t)
				l.serve(t, greet)
				h := l.hold(t, service4)
				c := dial(t, l.Client, service4)
				sent := text(before, 9)
				if _, err := c.Write(sent); err != nil {
					t.Fatal(err)
				}
				held := h.accept()
				waitBytes(t, held, before)
				l.warm(t, service4)

				f := os.NewFile(uintptr(held.FD), "held")
				cmd := l.Host.Command(t.Context(), os.Args[0])
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s,%s,%s,%s", victim, step, held.Client, held.Service, held.Backend))
				cmd.ExtraFiles = []*os.File{f}
				var out strings.Builder
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				f.Close()
				err := cmd.Wait()
				if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
					t.Fatalf("not killed: %v\n%s", err, out.String())
				}

				err = finish(c, c.LocalAddr(), sent, text(100000, 2))
				reset := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
				if err != nil && (!reset || step == "at the end") {
					t.Error(err)
				}
				testenv.Eventually(t, 2*freezeTimeout, func() (bool, string) {
					out := l.Host.Run(t, "nft", "list", "table", "inet", "sluice")
					i := strings.Index(out, " expires")
					return i < 0, out
				})
			})
		}
	}
}
