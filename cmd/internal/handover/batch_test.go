package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// gather dials n connections and holds them.
func (l *lab) gather(t testing.TB, h *holder, n int) (clients []*net.TCPConn, held []Held) {
	t.Helper()
	of := make(map[netip.AddrPort]*net.TCPConn, n)
	for range n {
		c := dialWith(t, l.Client, h.service, l.dialer(h.service))
		of[netip.MustParseAddrPort(c.LocalAddr().String())] = c
	}
	for range n {
		x := h.accept()
		c, ok := of[x.Client]
		if !ok {
			t.Fatalf("held a stranger: %v", x)
		}
		held = append(held, x)
		clients = append(clients, c)
	}
	return clients, held
}

func TestBatch(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	for _, service := range []netip.AddrPort{service4, service6} {
		h := l.hold(t, service)
		clients, held := l.gather(t, h, 300)
		sent := make([][]byte, len(clients))
		for i, c := range clients {
			sent[i] = text(i*17%3000, uint64(i))
			if _, err := c.Write(sent[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i := range held {
			waitBytes(t, held[i], len(sent[i]))
		}
		l.warm(t, service)
		// A few calls at once, as when stragglers come.
		results := make([]Result, len(held))
		var calls sync.WaitGroup
		for _, part := range [][2]int{{0, 200}, {200, 201}, {201, 300}} {
			calls.Go(func() { copy(results[part[0]:part[1]], l.handover(l.porter, held[part[0]:part[1]]...)) })
		}
		calls.Wait()
		var talks sync.WaitGroup
		for i, c := range clients {
			if r := results[i]; r.Reason != Done || r.Err != nil || r.Bytes != len(sent[i]) {
				t.Errorf("result %+v, want %d bytes", r, len(sent[i]))
				continue
			}
			talks.Go(func() {
				if err := finish(c, c.LocalAddr(), sent[i], text(5000, uint64(i))); err != nil {
					t.Error(err)
				}
			})
		}
		talks.Wait()
		l.thawed(t)
	}
}

// TestTwins: clients call two addresses of a service from the same ports, and what
// they say to the one must not be mistaken for what they say to the other.
func TestTwins(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	const pairs = maxMoving + 50 // so that not all are under way at once
	var clients []*net.TCPConn
	var batch []Held
	for _, service := range []netip.AddrPort{service4, netip.AddrPortFrom(service4.Addr(), 81)} {
		l.cold(t, service)
		h := l.hold(t, service)
		for i := range pairs {
			clients = append(clients, dial(t, l.Client, service, func(fd int) error {
				return errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
					unix.Bind(fd, &unix.SockaddrInet4{Port: 4000 + i, Addr: l.ClientAddr4.As4()}))
			}))
			batch = append(batch, h.accept())
		}
		l.warm(t, service)
	}
	results := l.handover(l.porter, batch...)
	for i, r := range results[:pairs] {
		if r.Reason != Done || r.Err != nil {
			t.Errorf("%v: result %+v", batch[i].Client, r)
		} else if err := finish(clients[i], clients[i].LocalAddr(), nil, text(1000, uint64(i))); err != nil {
			t.Error(err)
		}
	}
	for i, r := range results[pairs:] {
		if r.Reason != Refused || r.Err != nil {
			t.Errorf("%v, the other of the two: result %+v", batch[pairs+i].Client, r)
		}
		unix.Close(batch[pairs+i].FD)
	}
}

func BenchmarkHandover(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		for _, sent := range []int{0, 1000} {
			b.Run(fmt.Sprintf("batch=%d/bytes=%d", n, sent), func(b *testing.B) {
				l := newLab(b)
				l.serve(b, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
				h := l.hold(b, service4)
				text := text(sent, 1)
				var took time.Duration
				for b.Loop() {
					b.StopTimer()
					l.cold(b, service4)
					clients, held := l.gather(b, h, n)
					for i, c := range clients {
						if _, err := c.Write(text); err != nil {
							b.Fatal(err)
						}
						waitBytes(b, held[i], sent)
					}
					l.warm(b, service4)
					b.StartTimer()
					begin := time.Now()
					results := l.handover(l.porter, held...)
					took += time.Since(begin)
					b.StopTimer()
					for i, r := range results {
						if r.Reason != Done || r.Err != nil {
							b.Fatalf("%d: %+v", i, r)
						}
					}
					for _, c := range clients {
						_ = c.SetLinger(0)
						c.Close()
					}
					b.StartTimer()
				}
				b.ReportMetric(float64(took.Microseconds())/float64(n*b.N), "µs/conn")
			})
		}
	}
}
