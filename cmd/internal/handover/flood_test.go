package handover

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// flood makes connections from the client to the backend, past the service. When
// started, small packets go to and fro on them as fast as they can until stopped.
func (l *lab) flood(t testing.TB, flows int) (start, stop func()) {
	t.Helper()
	// A packet for each 100 bytes, instead of one of 64 KiB for the device to cut.
	// Few of them at once: the devices have to keep up, only the tap need not.
	small := []func(int) error{sockopt(unix.IPPROTO_TCP, maxseg, 100), sockopt(unix.SOL_SOCKET, unix.SO_RCVBUF, 8<<10)}
	l.Client.IP(t, "link set eth0 gso_max_segs 1")
	l.backend.IP(t, "link set eth0 gso_max_segs 1")
	at := netip.AddrPortFrom(l.backend.Addr4, 9090)
	ln := listen(t, l.backend.NS, at, small...)
	ends := make([]*net.TCPConn, 0, 2*flows)
	for range flows {
		c := dial(t, l.Client, at, small...)
		_ = c.SetDeadline(time.Time{})
		s, err := ln.AcceptTCP()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, c, s)
	}
	var going sync.WaitGroup
	var heard atomic.Int64
	start = func() {
		for _, c := range ends {
			going.Go(func() {
				for b := make([]byte, 10000); ; {
					n, err := c.Read(b)
					if err != nil {
						return
					}
					heard.Add(int64(n))
				}
			})
			going.Go(func() {
				for b := text(10000, 1); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			})
		}
		l.flowing(t, &heard)
	}
	stop = sync.OnceFunc(func() {
		for _, c := range ends {
			_ = c.SetLinger(0)
			c.Close()
		}
		going.Wait()
	})
	t.Cleanup(stop)
	return start, stop
}

func (l *lab) flowing(t testing.TB, heard *atomic.Int64) {
	t.Helper()
	for end := time.Now().Add(patience); heard.Load() < 1<<20; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d bytes of flood", heard.Load())
		}
	}
}

// The backend is busy with other connections of the same client, with far more
// packets than a reader can take, while a batch is handed over.
func TestFlood(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	start, stop := l.flood(t, 4)
	clients, held := l.gather(t, l.hold(t, service4), 100)
	sent := make([][]byte, len(clients))
	for i, c := range clients {
		sent[i] = text(i*40, uint64(i))
		if _, err := c.Write(sent[i]); err != nil {
			t.Fatal(err)
		}
		waitBytes(t, held[i], len(sent[i]))
	}
	l.warm(t, service4)
	start()
	begin := time.Now()
	results := l.handover(l.porter, held...)
	t.Logf("%d connections in %v", len(held), time.Since(begin))
	stop()
	var talks sync.WaitGroup
	for i, r := range results {
		if r.Reason != Done || r.Err != nil {
			t.Errorf("result %+v", r)
			if r.Reason.Relay() {
				_ = unix.Close(held[i].FD)
			}
			continue
		}
		talks.Go(func() {
			c := clients[i]
			if err := finish(c, c.LocalAddr(), sent[i], text(1000, uint64(i))); err != nil {
				t.Error(err)
			}
		})
	}
	talks.Wait()
}

// What floods one socket of the tap does not reach the other, and what belongs to
// no connection that is watched reaches none.
func TestTapFlood(t *testing.T) {
	t.Parallel()
	for name, watched := range map[string]bool{"of a watched connection": true, "of another": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			at := l.address(service4)
			busy := pair{at, netip.AddrPortFrom(l.ClientAddr4, 2000)}
			waiting := pair{at, netip.AddrPortFrom(l.ClientAddr4, 2001)}
			pairs := []pair{waiting}
			if watched {
				pairs = append(pairs, busy)
			}
			var tp *tap
			if err := l.Host.Do(func() (err error) {
				tp, err = openTap(pairs)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer tp.close()
			var w *wire
			if err := l.backend.Do(func() (err error) {
				w, err = openWire(0)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			defer w.close()

			tp.mu.Lock() // neither socket is read for as long
			var err error
			for range 3 * packetBuffer / 1000 {
				err = errors.Join(err, w.send(&segment{src: at, dst: busy.client, flags: flagACK}))
			}
			err = errors.Join(err, w.send(&segment{src: at, dst: waiting.client, flags: flagSYN | flagACK, ack: 7}))
			tp.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			p := tp.peer(waiting)
			testenv.Eventually(t, patience, func() (bool, string) {
				s := p.look().synack
				return s != nil && s.ack == 7, fmt.Sprintf("%+v", s)
			})
			if err := tp.lost(); (err != nil) != watched {
				t.Errorf("lost: %v", err)
			}
		})
	}
}
