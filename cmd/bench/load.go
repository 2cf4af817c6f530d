package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const (
	loadAddr     = "192.0.2.14"
	loadBackends = 2
	loadFor      = 10 * time.Second
	workerAddrs  = 4
)

// load holds many connections to one service and opens and closes others at a
// rate, and compares what the daemon counts with the kernel's table and with
// the clients' sockets.
func load(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, flows, rate int) {
	// The kernel keeps the entry of what is reset for 10 s otherwise, and the
	// table would be full of them.
	s.Host.Sysctl(t, "net.netfilter.nf_conntrack_tcp_timeout_close", "1")
	limit, err := strconv.Atoi(strings.TrimSpace(s.Host.GetSysctl(t, "net.netfilter.nf_conntrack_max")))
	if err != nil {
		t.Fatalf("read nf_conntrack_max: %v", err)
	}
	if most := limit / 2; flows > most {
		r.row(fmt.Sprintf("nf_conntrack_max of %d allows for fewer flows", limit), "", "", fmt.Sprint(most), "")
		flows = most
	}
	s.Host.AddAddr(t, loadAddr+"/32", "lo")
	s.Host.IP(t, "route add 10.99.0.0/16 via "+s.ClientAddr4.String())
	net := testenv.NewBackendNet(t, s.Host, loadBackends)
	text := fmt.Sprintf("[service.load]\nlisten = [\"%s:80/tcp\"]\n[service.load.health]\ntype = \"none\"\n", loadAddr)
	each := workerFlows()
	n := (flows + each - 1) / each
	var servers, clients []*worker
	for _, b := range net.Backends {
		text += fmt.Sprintf("[[service.load.backend]]\naddress = \"%s:8080\"\n", b.Addr4)
		for range n/loadBackends + 1 {
			w := startWorker(ctx, t, b.NS, "server", netip.AddrPortFrom(b.Addr4, 8080).String())
			w.answer(t)
			servers = append(servers, w)
		}
	}
	s.LogLevel = "info"
	s.Configure(t, text)
	d := s.Start(ctx, t)
	s.Until(ctx, t, "load", "its backends", func(st control.ServiceStatus) bool { return st.Ready == loadBackends })
	for i := range n {
		args := []string{"client", loadAddr + ":80"}
		for j := range workerAddrs {
			from := fmt.Sprintf("10.99.%d.%d", 1+i, 1+j)
			s.Client.AddAddr(t, from+"/32", "eth0")
			args = append(args, from)
		}
		clients = append(clients, startWorker(ctx, t, s.Client, args...))
	}
	rest(ctx, t)
	idle := d.Memory(t)

	r.part(fmt.Sprintf("%d connections held, %d more per second wanted, for %s", flows, rate, loadFor))
	begin, cpu := time.Now(), processTime(t, d.PID())
	made := ask(t, clients, func(i int) string { return fmt.Sprintf("hold %d", share(flows, n, i)) })
	took := time.Since(begin)
	r.row("opened per second while the held ones were made", "", "", fmt.Sprintf("%.0f", float64(made)/took.Seconds()), "")
	r.row("  processor of the daemon meanwhile, of one", "", "", percent(processTime(t, d.PID())-cpu, took), "< 100 %")

	begin, cpu = time.Now(), processTime(t, d.PID())
	churned := ask(t, clients, func(int) string {
		return fmt.Sprintf("churn %d %f", loadFor.Milliseconds(), float64(rate)/float64(n))
	})
	took = time.Since(begin)
	used := processTime(t, d.PID()) - cpu
	r.row("opened and reset per second besides them", "", "", fmt.Sprintf("%.0f", float64(churned)/took.Seconds()), strconv.Itoa(rate))
	r.row("  processor of the daemon meanwhile, of one", "", "", percent(used, took), "< 100 %")
	r.row("  for each connection", "", "", fmt.Sprintf("%.1f µs", float64(used.Microseconds())/float64(max(churned, 1))), "")

	// The clients have come to rest: so have, soon, the counts.
	sockets := ask(t, clients, func(int) string { return "count" })
	begin = time.Now()
	st := s.Until(ctx, t, "load", "the count of flows", settled(sockets))
	settle := time.Since(begin)
	r.row("flows by the daemon, and by conntrack(8)", strconv.Itoa(st.Flows), strconv.Itoa(established(t, s.Host)), "", "equal")
	r.row("  connections by the clients' sockets", "", strconv.Itoa(sockets), "", "equal")
	r.row("  equal after", "", "", msec(settle), "")
	r.row("flows so far by the daemon, and by the clients", strconv.FormatUint(st.FlowsTotal, 10), strconv.Itoa(made+churned), "", "equal without resync")
	r.row("  resyncs", strconv.Itoa(int(s.Metric(ctx, t, "sluice_conntrack_resyncs_total"))), "", "", "")
	r.row("resident memory of the daemon, idle and at most", mebi(idle), "", mebi(peakMemory(t, d.PID())), "< 150 MiB")

	ask(t, clients, func(int) string { return "drop" })
	s.Until(ctx, t, "load", "no flow", settled(0))
	for _, w := range append(servers, clients...) {
		w.stop()
	}
	d.Stop(t)
}

func settled(flows int) func(control.ServiceStatus) bool {
	return func(st control.ServiceStatus) bool { return st.Flows == flows }
}

// workerFlows is how many connections one worker can hold.
func workerFlows() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max < 2000 {
		return 1000
	}
	return int(min(l.Max, 20_000)) * 3 / 4 //nolint:gosec // at most 20,000. A server gets a little more than its share.
}

func share(all, n, i int) int { return all*(i+1)/n - all*i/n }

func percent(part, of time.Duration) string {
	return fmt.Sprintf("%.0f %%", 100*float64(part)/float64(of))
}

// worker is a process as worker.go tells.
type worker struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startWorker(ctx context.Context, t testenv.TB, ns *testenv.NS, args ...string) *worker {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatalf("start worker: %v", err)
	}
	w := &worker{cmd: ns.Command(ctx, exe, append([]string{workerCommand}, args...)...)}
	w.cmd.Stderr = os.Stderr
	in, err := w.cmd.StdinPipe()
	if err != nil {
		t.Fatalf("start worker: %v", err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("start worker: %v", err)
	}
	w.in, w.out = in, bufio.NewScanner(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatalf("start worker: %v", err)
	}
	t.Cleanup(w.stop)
	return w
}

func (w *worker) stop() {
	if w.cmd.ProcessState == nil {
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	}
}

func (w *worker) answer(t testenv.TB) int {
	t.Helper()
	if !w.out.Scan() {
		t.Fatalf("a worker has ended: %v", w.out.Err())
	}
	n, err := strconv.Atoi(w.out.Text())
	if err != nil {
		t.Fatalf("a worker answers %q", w.out.Text())
	}
	return n
}

// ask gives each worker an order and adds up the answers.
func ask(t testenv.TB, workers []*worker, order func(i int) string) (sum int) {
	t.Helper()
	var wg sync.WaitGroup
	answers := make([]string, len(workers))
	for i, w := range workers {
		wg.Go(func() {
			if _, err := fmt.Fprintln(w.in, order(i)); err == nil && w.out.Scan() {
				answers[i] = w.out.Text()
			}
		})
	}
	wg.Wait()
	for _, a := range answers {
		n, err := strconv.Atoi(a)
		if err != nil {
			t.Fatalf("a worker has ended")
		}
		sum += n
	}
	return sum
}

// established counts the open connections to the service by conntrack's own
// program.
func established(t testenv.TB, ns *testenv.NS) int {
	t.Helper()
	out := ns.Run(t, "conntrack", "-L", "-p", "tcp", "--orig-dst", loadAddr)
	return strings.Count(out, " ESTABLISHED ")
}

// processTime is the processor time that a process has used.
func processTime(t testenv.TB, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatalf("read processor time: %v", err)
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	f := strings.Fields(rest) // from the third of proc(5) on
	if len(f) < 13 {
		t.Fatalf("read processor time: %q", b)
	}
	user, err1 := strconv.ParseInt(f[11], 10, 64)
	system, err2 := strconv.ParseInt(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		t.Fatalf("read processor time: %q", b)
	}
	const tick = 10 * time.Millisecond // USER_HZ is 100 wherever Go runs
	return time.Duration(user+system) * tick
}

// peakMemory is the most memory that a process has had resident, in bytes.
func peakMemory(t testenv.TB, pid int) int64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatalf("read memory: %v", err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.Fields(v)[0], 10, 64)
			if err != nil {
				t.Fatalf("read memory: %q", line)
			}
			return n << 10
		}
	}
	t.Fatalf("read memory: no VmHWM")
	return 0
}
