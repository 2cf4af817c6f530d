package accept

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/uring"
	"sluice/testenv"
)

// storm connects and resets from two threads in the namespace until stopped.
func storm(b *testing.B, ns *testenv.NS, addr netip.AddrPort) (stop func()) {
	var wg sync.WaitGroup
	done := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			err := ns.Do(func() error {
				sa := &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
				for {
					select {
					case <-done:
						return nil
					default:
					}
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					err = errors.Join(
						unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
						unix.Connect(fd, sa), unix.Close(fd))
					if err != nil {
						return err
					}
				}
			})
			if err != nil {
				b.Error(err)
			}
		})
	}
	return func() { close(done); wg.Wait() }
}

// BenchmarkAccept is connections per second in mode All, clients included.
func BenchmarkAccept(b *testing.B) {
	for _, be := range backends[:2] {
		b.Run(be.name, func(b *testing.B) { accepts(b, be.make()) })
	}
	b.Run("epoll", func(b *testing.B) { accepts(b, &poller{}) })
	b.Run("net.Listener", func(b *testing.B) {
		ns := testenv.NewNS(b, "host")
		var ln net.Listener
		err := ns.Do(func() (err error) {
			lc := net.ListenConfig{}
			lc.SetMultipathTCP(false)
			ln, err = lc.Listen(context.Background(), "tcp", "127.0.0.1:0")
			return err
		})
		if err != nil {
			b.Fatal(err)
		}
		defer ln.Close()
		defer storm(b, ns, ln.Addr().(*net.TCPAddr).AddrPort())()
		b.ResetTimer()
		for range b.N {
			c, err := ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			c.Close()
		}
		b.StopTimer()
		b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
	})
}

func accepts(b *testing.B, be backend) {
	if _, ok := be.(*ring); ok {
		if err := uring.Probe(); err != nil {
			b.Skip(err)
		}
	}
	ns := testenv.NewNS(b, "host")
	n, done := 0, make(chan struct{})
	l, err := open(Config{Deliver: func(c Conn) {
		unix.Close(c.FD)
		if n++; n == b.N {
			close(done)
		}
	}}, be)
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	var ln *Listener
	err = ns.Do(func() (err error) {
		ln, err = Listen(netip.MustParseAddrPort("127.0.0.1:0"), 4096)
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	if err := errors.Join(l.Add(1, ln), l.Arm(1, All)); err != nil {
		b.Fatal(err)
	}
	defer l.Remove(1)
	defer storm(b, ns, ln.Addr())()
	b.ResetTimer()
	<-done
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "conn/s")
}

// BenchmarkOne is the way of a first connection, one at a time: arm, connect,
// delivered to another goroutine.
func BenchmarkOne(b *testing.B) {
	for _, be := range backends {
		b.Run(be.name, func(b *testing.B) {
			if be.name != "epoll" {
				if err := uring.Probe(); err != nil {
					b.Skip(err)
				}
			}
			x := newBench(b, be.make())
			ln := x.add(1, 16)
			sa := &unix.SockaddrInet4{Addr: ln.Addr().Addr().As4(), Port: int(ln.Addr().Port())}
			x.must(x.ns.Do(func() error {
				var connecting time.Duration
				b.ResetTimer()
				for range b.N {
					if err := x.loop.Arm(1, One); err != nil {
						return err
					}
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					if err != nil {
						return err
					}
					start := time.Now()
					err = errors.Join(
						unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}),
						unix.Connect(fd, sa))
					c := <-x.conns
					connecting += time.Since(start)
					if err := errors.Join(err, unix.Close(fd), unix.Close(c.FD)); err != nil {
						return err
					}
				}
				b.ReportMetric(float64(connecting.Nanoseconds())/float64(b.N), "ns/connect-to-delivery")
				return nil
			}))
		})
	}
}
