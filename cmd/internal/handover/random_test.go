package handover

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
	"sluice/testenv"
)

var (
	randomFor  = flag.Duration("handover.random", 2*time.Second, "how long to hold random conversations")
	randomSeed = flag.Uint64("handover.seed", 0, "seed of the random conversations; 0 picks one")
)

// script is what one side of a conversation does. Both sides send and receive at
// the same time.
type script struct {
	seed   uint64
	total  int           // bytes to send
	chunk  int           // at most, per write
	pause  time.Duration // at most, between writes
	slow   int           // reads at most as many bytes at once, if not 0
	leaves bool          // resets in the middle of sending
	polite bool          // closes its side after the other
}

func randomScript(r *rand.Rand) script {
	s := script{
		seed:  r.Uint64(),
		chunk: 1 + r.IntN([]int{1, 100, 5000, 70000}[r.IntN(4)]),
		pause: time.Duration(r.IntN([]int{1, 200, 3000}[r.IntN(3)])) * time.Microsecond,
	}
	switch r.IntN(5) {
	case 0: // says nothing
	case 4:
		s.total = r.IntN(400000)
	default:
		s.total = r.IntN(4000)
	}
	s.total = min(s.total, s.chunk*200)
	if r.IntN(4) == 0 {
		s.slow = 1 + r.IntN(2000)
	}
	return s
}

// sum is what the other side must have received, if it is the whole.
func (s script) sum() [32]byte { return sha256.Sum256(text(s.total, s.seed)) }

// outcome is what one side has seen.
type outcome struct {
	n   int
	sum [32]byte
	err error
}

// play carries a script out and returns what came from the other side.
func (s script) play(c *net.TCPConn) outcome {
	sent := make(chan error, 1)
	heard := make(chan struct{})
	go func() { sent <- s.send(c, heard) }()
	h := sha256.New()
	var from io.Reader = c
	if s.slow > 0 {
		from = &slowly{c, s.slow}
	}
	n, err := io.Copy(h, from)
	close(heard)
	err = errors.Join(err, <-sent)
	return outcome{int(n), [32]byte(h.Sum(nil)), err}
}

func (s script) send(c *net.TCPConn, heard <-chan struct{}) error {
	r := rand.New(rand.NewPCG(s.seed, 1))
	_ = c.SetNoDelay(r.IntN(2) == 0)
	data := text(s.total, s.seed)
	for len(data) > 0 {
		if s.leaves && len(data) < s.total/2 {
			break
		}
		n := min(len(data), 1+r.IntN(s.chunk))
		if _, err := c.Write(data[:n]); err != nil {
			return err
		}
		data = data[n:]
		if s.pause > 0 {
			// Part of the conversation, not a way to wait for anything.
			time.Sleep(time.Duration(r.Int64N(int64(s.pause) + 1)))
		}
	}
	if s.leaves {
		return errors.Join(c.SetLinger(0), c.Close())
	}
	if s.polite {
		<-heard
	}
	return c.CloseWrite()
}

type slowly struct {
	r io.Reader
	n int
}

func (s *slowly) Read(b []byte) (int, error) { return s.r.Read(b[:min(len(b), s.n)]) }

// stage is where backends learn their part.
type stage struct {
	lossy   bool // the line may lose a reset
	playing sync.WaitGroup

	mu      sync.Mutex
	parts   map[netip.AddrPort]*part
	waiting []error // of those that were left waiting
}

type part struct {
	script
	seen chan outcome
}

func (s *stage) enter(client netip.AddrPort, p *part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.parts[client] = p
}

func (s *stage) serve(c *net.TCPConn) {
	who := addrPort(c.RemoteAddr())
	s.mu.Lock()
	p := s.parts[who]
	delete(s.parts, who)
	s.mu.Unlock()
	if p == nil {
		return // a stranger: the one expected will be missed
	}
	s.playing.Add(1)
	defer s.playing.Done()
	_ = c.SetDeadline(time.Now().Add(patience))
	o := p.play(c)
	if errors.Is(o.err, os.ErrDeadlineExceeded) {
		s.mu.Lock()
		s.waiting = append(s.waiting, fmt.Errorf("%s: %+v: %w", who, p.script, o.err))
		s.mu.Unlock()
	}
	p.seen <- o
}

func addrPort(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

// Random conversations, some of them begun before and some going on during the
// handover, in batches of random size, on a good line and on a bad one: both
// sides must see the same bytes as if they spoke to each other directly.
func TestRandom(t *testing.T) {
	t.Parallel()
	seed := *randomSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-handover.seed=%d", seed)
	for lane, name := range []string{"good line", "bad line"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			st := &stage{lossy: name == "bad line", parts: make(map[netip.AddrPort]*part)}
			l.serve(t, st.serve)
			if st.lossy {
				lossy := `table inet loss {
					chain in { type filter hook input priority 0; meta l4proto tcp numgen random mod 100 < 2 drop; }
					chain out { type filter hook output priority 0; meta l4proto tcp numgen random mod 100 < 2 drop; }
				}`
				l.Client.RunInput(t, lossy, "nft", "-f", "-")
				l.backend.RunInput(t, lossy, "nft", "-f", "-")
			}
			r := rand.New(rand.NewPCG(seed, uint64(lane)))
			holders := map[netip.AddrPort]*holder{service4: l.hold(t, service4), service6: l.hold(t, service6)}
			ctx, cancel := context.WithTimeout(t.Context(), *randomFor)
			defer cancel()
			counts := make(map[Reason]int)
			var going sync.WaitGroup
			defer going.Wait()
			for ctx.Err() == nil && !t.Failed() {
				service := []netip.AddrPort{service4, service6}[r.IntN(2)]
				l.round(t, r, st, holders[service], counts, &going)
			}
			going.Wait()
			t.Logf("%v", counts)
			if counts[Done] == 0 {
				t.Error("nothing was handed over")
			}
			st.playing.Wait()
			if !st.lossy {
				l.finished(t)
			}
			if !st.lossy {
				for _, err := range st.waiting {
					t.Errorf("left waiting: %v", err)
				}
			}
		})
	}
}

// finished checks that no flow is tracked as live.
func (l *lab) finished(t *testing.T) {
	t.Helper()
	testenv.Eventually(t, patience, func() (bool, string) {
		var live []string
		if err := l.tracker.Snapshot(func(f *conntrack.Flow) error {
			if f.Live() && f.Orig.Proto == unix.IPPROTO_TCP {
				live = append(live, f.String())
			}
			return nil
		}); err != nil {
			return false, err.Error()
		}
		return len(live) == 0, strings.Join(live, "\n")
	})
}

// talk is a conversation of the two scripts.
type talk struct {
	conn           *net.TCPConn
	client, server script
	part           *part
	seen           chan outcome
}

// round holds a few connections and hands them over; what they have to say may
// take longer.
func (l *lab) round(t *testing.T, r *rand.Rand, st *stage, h *holder, counts map[Reason]int, going *sync.WaitGroup) {
	l.cold(t, h.service)
	clients, held := l.gather(t, h, 1+r.IntN(20))
	talks := make([]*talk, len(held))
	for i, c := range clients {
		x := &talk{conn: c, client: randomScript(r), server: randomScript(r), seen: make(chan outcome, 1)}
		x.client.polite = r.IntN(4) > 0
		switch r.IntN(12) {
		case 0:
			x.client.leaves = true
		case 1:
			x.server.leaves = true
		}
		x.part = &part{x.server, make(chan outcome, 1)}
		st.enter(held[i].Client, x.part)
		talks[i] = x
		if r.IntN(3) > 0 {
			go func() { x.seen <- x.client.play(x.conn) }()
		} else {
			// Starts when it likes, with the freeze as a likely moment.
			pause := time.Duration(r.IntN(4000)) * time.Microsecond
			go func() {
				time.Sleep(pause)
				x.seen <- x.client.play(x.conn)
			}()
		}
	}
	l.warm(t, h.service)
	for i, res := range l.handover(l.porter, held...) {
		counts[res.Reason]++
		if res.Err != nil && res.Reason != Timeout {
			t.Errorf("result %+v", res)
		}
		if res.Reason.Relay() {
			l.relay(t, held[i], l.announced(h.service, st, talks[i].part))
		}
	}
	for i, x := range talks {
		going.Go(func() {
			if err := x.check(st.lossy); err != nil {
				t.Errorf("%s: client %+v, server %+v: %v", held[i].Client, x.client, x.server, err)
			}
		})
	}
}

// announced tells the stage which address a relay will come from.
func (l *lab) announced(service netip.AddrPort, st *stage, p *part) func(fd int) error {
	return func(fd int) error {
		var sa unix.Sockaddr = &unix.SockaddrInet4{Addr: l.net.Addr4.As4()}
		if service.Addr().Is6() {
			sa = &unix.SockaddrInet6{Addr: l.net.Addr6.As16()}
		}
		if err := unix.Bind(fd, sa); err != nil {
			return err
		}
		got, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		switch got := got.(type) {
		case *unix.SockaddrInet4:
			st.enter(netip.AddrPortFrom(l.net.Addr4, uint16(got.Port)), p)
		case *unix.SockaddrInet6:
			st.enter(netip.AddrPortFrom(l.net.Addr6, uint16(got.Port)), p)
		}
		return nil
	}
}

// check compares what both sides have seen with what was said.
func (x *talk) check(lossy bool) error {
	client := <-x.seen
	if x.client.leaves || x.server.leaves {
		// All that can be asked is that nobody is left waiting, and not even
		// that if the reset may have been lost.
		if !lossy && errors.Is(client.err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("client: %w", client.err)
		}
		return nil
	}
	server := <-x.part.seen
	switch {
	case client.err != nil:
		return fmt.Errorf("client: %w", client.err)
	case server.err != nil:
		return fmt.Errorf("server: %w", server.err)
	case client.n != x.server.total || client.sum != x.server.sum():
		return fmt.Errorf("client got %d bytes, want %d", client.n, x.server.total)
	case server.n != x.client.total || server.sum != x.client.sum():
		return fmt.Errorf("server got %d bytes, want %d", server.n, x.client.total)
	}
	return nil
}
