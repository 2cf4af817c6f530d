package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const (
	steadyPairs = 31
	steadyRun   = 300 * time.Millisecond
	workers     = 8
)

// steady compares requests through the map with requests straight to the same
// container's address, by the same client, in turn.
func steady(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report) {
	st := s.Until(ctx, t, "warm", "its replica", ready)
	direct := path{to: netip.MustParseAddrPort(st.Backends[0].Address), from: netip.MustParseAddr("10.99.0.3")}
	mapped := path{to: netip.MustParseAddrPort(warmAddr + httpPort), from: s.ClientAddr4}
	// A client address for each path: a connection may otherwise meet what is
	// left of one by the other path, in conntrack and in the container, where
	// both have the same source.
	s.Client.AddAddr(t, direct.from.String()+"/24", "eth0")

	for _, kind := range []struct {
		name  string
		fresh bool
	}{{"requests per second, kept-alive", false}, {"requests per second, new connections", true}} {
		var with, without, ratio []float64
		for i := range steadyPairs {
			pair := []path{direct, mapped}
			if i%2 == 1 {
				slices.Reverse(pair)
			}
			rate := map[path]float64{}
			for _, p := range pair {
				s.Host.Run(t, "conntrack", "--flush")
				n, err := p.run(ctx, s.Client, kind.fresh)
				if err != nil {
					t.Fatalf("%s to %s: %v", kind.name, p.to, err)
				}
				rate[p] = n
			}
			with, without = append(with, rate[mapped]), append(without, rate[direct])
			ratio = append(ratio, rate[mapped]/rate[direct])
		}
		// The machine's other work changes from one moment to the next: the
		// two of a pair have met the same.
		r.row(fmt.Sprintf("%s, median of %d pairs", kind.name, steadyPairs), fmt.Sprintf("%.0f", median(with)),
			fmt.Sprintf("%.0f", median(without)), fmt.Sprintf("%.3f", median(ratio)), ">= 0.95")
		r.row("  the same, best of all", fmt.Sprintf("%.0f", slices.Max(with)),
			fmt.Sprintf("%.0f", slices.Max(without)), fmt.Sprintf("%.3f", slices.Max(with)/slices.Max(without)), "")
	}
}

// path is a way to the container.
type path struct {
	to   netip.AddrPort
	from netip.Addr
}

// run asks for as long as a run takes and returns answers per second.
func (p path) run(ctx context.Context, ns *testenv.NS, fresh bool) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int
	var errs []error
	begin := time.Now()
	end := begin.Add(steadyRun)
	for range workers {
		wg.Go(func() {
			n := 0
			// Blocking system calls on the namespace's own thread: a
			// connection costs the client no more than it must.
			err := ns.Do(func() error {
				for ctx.Err() == nil && time.Now().Before(end) {
					m, err := p.connection(fresh, end)
					n += m
					if err != nil {
						return err
					}
				}
				return ctx.Err()
			})
			mu.Lock()
			defer mu.Unlock()
			total += n
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return float64(total) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// connection asks over one connection: once, and until the server closes it, if
// it is to be fresh each time, else until end.
func (p path) connection(fresh bool, end time.Time) (answers int, err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	limit := unix.Timeval{Sec: 10}
	for _, err := range []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: p.from.As4()}),
	} {
		if err != nil {
			return 0, fmt.Errorf("set up socket: %w", err)
		}
	}
	if err := again(func() error {
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: p.to.Addr().As4(), Port: int(p.to.Port())})
	}); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	request := []byte("GET /who HTTP/1.1\r\nHost: bench\r\n\r\n")
	if fresh {
		request = []byte("GET /who HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
	}
	buf := make([]byte, 4096)
	for {
		if err := again(func() error { _, err := unix.Write(fd, request); return err }); err != nil {
			return answers, fmt.Errorf("write: %w", err)
		}
		n := 0
		for {
			m := 0
			if err := again(func() (err error) { m, err = unix.Read(fd, buf[n:]); return err }); err != nil {
				return answers, fmt.Errorf("read: %w", err)
			}
			n += m
			if m == 0 || !fresh && bytes.HasSuffix(buf[:n], []byte("}\n")) {
				break
			}
		}
		if !bytes.HasPrefix(buf[:n], []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(buf[:n], []byte("}\n")) {
			return answers, fmt.Errorf("unexpected answer %q", buf[:n])
		}
		answers++
		if fresh || !time.Now().Before(end) {
			return answers, nil
		}
	}
}

// again repeats f when a signal has interrupted it; the runtime sends some.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
