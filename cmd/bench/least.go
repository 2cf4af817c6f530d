package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const (
	leastBackends = 8
	leastAddr     = "192.0.2.14"
	leastPort     = 80 // sluice's; HAProxy has the next

	leastRun  = 8 * time.Second
	leastWarm = 3 * time.Second // until the long ones are as many as there will be
	leastTick = 10 * time.Millisecond
)

// least compares how evenly sluice's least-connections and HAProxy's leastconn
// share out the same trace of short and long connections: how many the busiest
// backend carries, as a part of what they carry on average, over time.
func least(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, rounds int) {
	r.part(fmt.Sprintf("least-connections over %d backends; without: HAProxy's leastconn", leastBackends))
	if _, err := exec.LookPath("haproxy"); err != nil {
		r.row("haproxy is not installed", "", "", "", "")
		return
	}
	s.Host.AddAddr(t, leastAddr+"/32", "lo")
	n := testenv.NewBackendNet(t, s.Host, leastBackends)
	live := make([]*atomic.Int64, leastBackends)
	var members, servers strings.Builder
	for i, b := range n.Backends {
		at := netip.AddrPortFrom(b.Addr4, 8080)
		live[i] = keep(t, b.NS, at)
		fmt.Fprintf(&members, "[[service.least.backend]]\naddress = %q\n", at)
		fmt.Fprintf(&servers, "\tserver b%d %s\n", i, at)
	}
	s.Configure(t, fmt.Sprintf("[service.least]\nlisten = [\"%s:%d/tcp\"]\nbalance = \"least-connections\"\n%s", leastAddr, leastPort, &members))
	d := s.Start(ctx, t)
	defer d.Stop(t)
	s.Until(ctx, t, "least", "all backends", func(st control.ServiceStatus) bool { return st.Ready == leastBackends })
	haproxy(ctx, t, s, servers.String())

	var p pairs
	for range rounds {
		seed := rand.Uint64() //nolint:gosec // no secret; both get the same
		run := func(port uint16) func() (float64, error) {
			to := netip.AddrPortFrom(netip.MustParseAddr(leastAddr), port)
			return func() (float64, error) { return unevenness(ctx, s.Client, to, live, seed) }
		}
		p.add(t, run(leastPort), run(leastPort+1))
	}
	two := func(f float64) string { return fmt.Sprintf("%.3f", f) }
	r.row(fmt.Sprintf("busiest / mean, median of %d pairs", rounds), two(median(p.with)), two(median(p.without)), two(median(p.ratio)), "<= 1.10")
	r.row("  the worst pair", two(slices.Max(p.with)), two(slices.Max(p.without)), two(slices.Max(p.ratio)), "")
}

// keep accepts connections, keeps each until its client has closed it, and
// counts those that are open.
func keep(t testenv.TB, ns *testenv.NS, at netip.AddrPort) *atomic.Int64 {
	t.Helper()
	l, err := ns.Listen("tcp", at.String())
	if err != nil {
		t.Fatalf("listen: %v", err)
	}
	t.Cleanup(func() { _ = l.Close() })
	live := new(atomic.Int64)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			live.Add(1)
			go func() {
				defer live.Add(-1)
				defer c.Close()
				_, _ = io.Copy(io.Discard, c) // ends with the client
			}()
		}
	}()
	return live
}

// haproxy runs HAProxy on the host, beside the daemon, until t ends.
func haproxy(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, servers string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "sl")
	if err != nil {
		t.Fatalf("make directory: %v", err)
	}
	path := filepath.Join(dir, "haproxy.cfg")
	text := fmt.Sprintf("defaults\n\tmode tcp\n\ttimeout connect 5s\n\ttimeout client 1m\n\ttimeout server 1m\n"+
		"listen least\n\tbind %s:%d\n\tbalance leastconn\n%s", leastAddr, leastPort+1, servers)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
	cmd := s.Host.Command(ctx, "haproxy", "-db", "-f", path)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatalf("start haproxy: %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove directory: %v", err)
		}
	})
	testenv.Eventually(t, time.Minute, func() (bool, string) {
		c, err := s.Client.Dial(ctx, "tcp", fmt.Sprintf("%s:%d", leastAddr, leastPort+1))
		if err != nil {
			return false, fmt.Sprintf("haproxy does not answer: %v", err)
		}
		return c.Close() == nil, ""
	})
}

// unevenness plays a trace: three hundred connections a second at random, one
// of five for about three seconds, the others for some 30 ms.
func unevenness(ctx context.Context, from *testenv.NS, to netip.AddrPort, live []*atomic.Int64, seed uint64) (float64, error) {
	const rate, short, long, part = 300, 30 * time.Millisecond, 3 * time.Second, 0.2
	rnd := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // the same for both
	ctx, cancel := context.WithTimeout(ctx, leastRun+time.Minute)
	defer cancel()
	var failed atomic.Pointer[error]
	var wg sync.WaitGroup
	begin := time.Now()
	for at := time.Duration(0); at < leastRun; at += time.Duration(rnd.ExpFloat64() / rate * float64(time.Second)) {
		last := time.Duration(rnd.ExpFloat64() * float64(short))
		if rnd.Float64() < part {
			last = time.Duration((0.5 + rnd.Float64()) * float64(long))
		}
		wg.Go(func() {
			time.Sleep(time.Until(begin.Add(at)))
			c, err := from.Dial(ctx, "tcp", to.String())
			if err != nil {
				failed.Store(&err)
				return
			}
			time.Sleep(last)
			// A reset: the client's port is free at once.
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		})
	}
	var sum float64
	n := 0
	time.Sleep(time.Until(begin.Add(leastWarm)))
	for ; time.Since(begin) < leastRun; n++ {
		most, total := int64(0), int64(0)
		for _, l := range live {
			v := l.Load()
			most, total = max(most, v), total+v
		}
		sum += float64(most) * float64(len(live)) / float64(max(total, 1))
		time.Sleep(leastTick)
	}
	wg.Wait()
	for open := true; open; time.Sleep(leastTick) { // by way of HAProxy it takes a moment
		open = slices.ContainsFunc(live, func(l *atomic.Int64) bool { return l.Load() > 0 }) && ctx.Err() == nil
	}
	if err := failed.Load(); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", to, *err)
	}
	return sum / float64(n), ctx.Err()
}
