package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/testenv"
)

type faultGroup struct {
	name    string
	relayed bool
	small   bool // Podman's storage
	watched bool // the daemon's system calls
	managed bool // there is a service manager that keeps descriptors
	faults  []fault
}

// faultGroups are suffered by a stage each, one fault after the other.
func faultGroups() []faultGroup {
	return []faultGroup{
		{name: "podman", relayed: true, faults: podmanFaults()},
		{name: "container", faults: containerFaults()},
		{name: "network", faults: networkFaults()},
		{name: "kernel", faults: kernelFaults()},
		{name: "memory", watched: true, faults: memoryFaults()},
		{name: "daemon", faults: slices.Concat(restartFaults("", awayFromHeld, awayFromHeld), daemonFaults())},
		{name: "managed", managed: true, faults: restartFaults(", managed", justAccepted, nil)},
		{name: "full", small: true, faults: fullFaults()},
	}
}

func podmanFaults() []fault {
	return []fault{
		{name: "podman killed, back after 1 s", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			s.pod.KillService(t)
			s.last(time.Second)
			s.pod.StartService(t)
		}},
		{name: "podman stopped, back after 2 s", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			s.pod.StopService(t)
			s.last(2 * time.Second)
			s.pod.StartService(t)
		}},
		{name: "podman hangs for 2 s", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			stopProcess(t, s.pod.PID(), 2*time.Second)
		}},
		{name: "podman slow, 300 ms an answer", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			s.relay.set(300*time.Millisecond, false)
			s.last(2 * time.Second)
			s.relay.set(0, false)
		}},
		{name: "podman's events cut", strike: func(t *testing.T, s *stage, b *blow) {
			testenv.Eventually(t, patient, func() (bool, string) { return s.relay.cut() > 0, "nobody listens to events" })
			s.d.waitFrom(t, b.log, func(l line) bool { return l.field("message") == "podman is back" })
		}},
		{name: "podman answers: no space", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			s.relay.set(0, true)
			s.last(1500 * time.Millisecond)
			s.relay.set(0, false)
		}},
	}
}

// last is how long a fault lasts.
func (s *stage) last(d time.Duration) { time.Sleep(d) }

// stopProcess lets a process stand still for a while.
func stopProcess(t *testing.T, pid int, d time.Duration) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(d)
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
}

// victims are one container of each service that has one.
func (s *stage) victims(t *testing.T) map[string]string {
	t.Helper()
	m := map[string]string{}
	for service, states := range map[string][]string{
		inWaking: {"probing", "ready"}, inWarm: {"ready"}, inDraining: {"draining"},
	} {
		for _, b := range s.status(t, service).Backends {
			if slices.Contains(states, b.State) && (service != inDraining || b.Name == s.victim) && s.runs(b.Name) && s.onNetwork(b) {
				m[service] = b.Name
				break
			}
		}
	}
	return m
}

// runs says whether Podman takes a container to be running.
func (s *stage) runs(name string) bool {
	out, err := s.pod.Command(context.Background(), "podman", "inspect", "--format", "{{.State.Status}}", name).Output()
	return err == nil && strings.TrimSpace(string(out)) == "running"
}

// hitAll does something to a container of each service and waits until none of
// them is sent anything any more.
func (s *stage) hitAll(t *testing.T, b *blow, do func(name string)) {
	t.Helper()
	victims := s.victims(t)
	for _, name := range victims {
		b.hit[s.idOf(t, name)] = true
		do(name)
	}
	for service, name := range victims {
		s.d.waitFrom(t, b.log, func(l line) bool {
			return l.field("backend") == name && slices.Contains([]string{"died", "unhealthy", "start-failed", "drained"}, l.field("event"))
		})
		s.until(t, service, "the victim out", func(st control.ServiceStatus) bool {
			v := backend(st, name)
			return v.State != "ready" || s.d.has(b.log, func(l line) bool { return event("ready")(l) && l.field("backend") == name })
		})
	}
}

// has says whether the log has such a line.
func (d *proc) has(from int, ok func(line) bool) bool {
	return slices.ContainsFunc(d.log.Since(from), ok)
}

func containerFaults() []fault {
	return []fault{
		{name: "container killed", promise: onVictim, strike: func(t *testing.T, s *stage, b *blow) {
			s.hitAll(t, b, func(name string) {
				if pid := s.pidOf(t, name); pid > 1 { // 0 would be this process and its kin
					_ = syscall.Kill(pid, syscall.SIGKILL) // gone is as well
				}
			})
		}},
		{name: "container stopped by hand", promise: onVictim, strike: func(t *testing.T, s *stage, b *blow) {
			s.hitAll(t, b, func(name string) { s.pod.CLI(t, "stop", "--time", "1", name) })
		}},
		{name: "container removed by hand", promise: onVictim, strike: func(t *testing.T, s *stage, b *blow) {
			s.hitAll(t, b, func(name string) { s.pod.CLI(t, "rm", "--force", "--time", "0", name) })
		}},
		{name: "container paused by hand for 2 s", strike: func(t *testing.T, s *stage, b *blow) {
			victims := s.victims(t)
			for _, name := range victims {
				s.pod.CLI(t, "pause", name)
			}
			s.until(t, inWarm, "the paused one out", func(st control.ServiceStatus) bool {
				return backend(st, victims[inWarm]).State != "ready"
			})
			s.last(2 * time.Second)
			for _, name := range victims {
				s.pod.CLI(t, "unpause", name)
			}
			if name := victims[inWarm]; name != "" {
				// Beside other faults it may be gone before it is healthy.
				s.d.waitFrom(t, b.log, func(l line) bool {
					return l.field("backend") == name && slices.Contains([]string{"healthy", "died", "drained"}, l.field("event"))
				})
			}
		}},
		{name: "container renamed by hand", strike: func(t *testing.T, s *stage, b *blow) {
			for service, name := range s.victims(t) {
				s.pod.CLI(t, "rename", name, "other-"+name)
				s.d.waitFrom(t, b.log, func(l line) bool { return l.field("name") == "other-"+name })
				if service == inDraining {
					s.victim = "other-" + name
				}
			}
		}},
		{name: "network disconnected by hand", promise: onVictim, strike: func(t *testing.T, s *stage, b *blow) {
			s.hitAll(t, b, func(name string) { s.pod.CLI(t, "network", "disconnect", "--force", stageNet, name) })
		}},
	}
}

// putRight waits until the daemon says that it has restored the table.
func (s *stage) putRight(t *testing.T, b *blow) {
	t.Helper()
	s.d.waitFrom(t, b.log, func(l line) bool { return strings.Contains(l.field("message"), "put right") })
	b.to = time.Now()
}

func (s *stage) nft(t *testing.T, text string) {
	t.Helper()
	s.Host.RunInput(t, text+"\n", "nft", "-f", "-")
}

// sysctl changes a setting by hand and waits until the daemon has put it right.
func sysctlFault(key, wrong, right string) fault {
	return fault{name: key + "=" + wrong, strike: func(t *testing.T, s *stage, b *blow) {
		s.Host.Sysctl(t, key, wrong)
		testenv.Eventually(t, patient, func() (bool, string) {
			v := s.Host.GetSysctl(t, key)
			return v == right, key + " is " + v
		})
	}}
}

func kernelFaults() []fault {
	return []fault{
		{name: "nft flush ruleset", exposes: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.nft(t, "flush ruleset")
			s.putRight(t, b)
		}},
		{name: "nft delete table inet sluice", exposes: true, strike: func(t *testing.T, s *stage, b *blow) {
			s.nft(t, "delete table inet sluice")
			s.putRight(t, b)
		}},
		{name: "element deleted by hand", exposes: true, first: true, strike: func(t *testing.T, s *stage, b *blow) {
			done := 0
			for _, of := range []string{
				"first4 { %s . tcp . 80 }", "rest4 { %s . tcp . 80 }", "spread4 { %s . tcp . 80 }", "known4 { %s . tcp . 80 }", "cold4 { %s . tcp . 80 }",
			} { // a service is in some of them, by the number of its replicas
				for _, name := range stagePhases() {
					if s.Host.Command(context.Background(), "nft", "delete element inet sluice "+fmt.Sprintf(of, stageAddr(name))).Run() == nil {
						done++
					}
				}
			}
			if done < len(stagePhases()) {
				t.Errorf("%d elements deleted", done)
			}
			s.putRight(t, b)
		}},
		{name: "element added by hand", exposes: true, first: true, promise: inGap, after: func(s *stage) {
			// For two minutes the kernel would send there what comes from the same ports.
			_ = s.Host.Command(context.Background(), "conntrack", "-D", "--reply-src", nobody).Run()
		}, strike: func(t *testing.T, s *stage, b *blow) {
			s.nft(t, fmt.Sprintf(`add element inet sluice first4 { %[1]s . tcp . 80 : %[4]s . 8080 }
add element inet sluice first4 { %[2]s . tcp . 80 : %[4]s . 8080 }
delete element inet sluice first4 { %[3]s . tcp . 80 }
add element inet sluice first4 { %[3]s . tcp . 80 : %[4]s . 8080 }`,
				stageAddr(inCold), stageAddr(inWaking), stageAddr(inDraining), nobody))
			s.putRight(t, b)
		}},
		sysctlFault("net.netfilter.nf_conntrack_acct", "0", "1"),
		sysctlFault("net.netfilter.nf_conntrack_events", "0", "1"),
		sysctlFault("net.ipv4.ip_forward", "0", "1"),
		{name: "events of conntrack lost", strike: func(t *testing.T, s *stage, b *blow) {
			pid := s.d.cmd.Process.Pid
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				s.d.waitFrom(t, b.log, func(l line) bool { return l.field("message") == "flows are counted anew" })
			}()
			s.strangers(t, 40_000)() // an event each to begin and to end
		}},
		{name: "conntrack entries deleted by hand", promise: fromAwake, after: func(s *stage) {
			s.forgetFlows(inCold, inWaking)
		}, strike: func(t *testing.T, s *stage, b *blow) {
			s.torn = true
			awake := func(name string) bool { return s.status(t, name).Phase == "warm" }
			for _, name := range stagePhases() {
				b.hit[name] = awake(name)
				s.forgetFlows(name)
				b.hit[name] = b.hit[name] || awake(name) // it may have woken meanwhile
			}
			b.to = time.Now()
		}},
	}
}

// forgetFlows deletes the entries of services. What the kernel takes up again of
// a connection in their middle is no end to it that the other side knows, and
// would be there for days.
func (s *stage) forgetFlows(services ...string) {
	for _, name := range services {
		// Exit code 1 if there is none.
		_ = s.Host.Command(context.Background(), "conntrack", "-D", "--orig-dst", stageAddr(name)).Run()
	}
}

// fromAwake: connections of services that were awake.
func fromAwake(c contact, b *blow) bool { return b.hit[c.service] && inGap(c, b) }

func fullFaults() []fault {
	return []fault{
		{name: "podman's disk full for 2 s", prepare: func(t *testing.T, s *stage) {
			s.inPodman(t, "! dd if=/dev/zero of=graph/fill bs=64k 2>/dev/null") // until it is
		}, early: true, strike: func(t *testing.T, s *stage, b *blow) {
			for _, name := range []string{inCold, inWaking} {
				s.d.waitFrom(t, b.log, func(l line) bool {
					return l.field("service") == name && strings.Contains(l.text, "no space left on device")
				})
			}
			s.last(2 * time.Second)
			s.inPodman(t, "rm graph/fill")
		}},
		{name: "conntrack's table full for 2 s", early: true, prepare: func(t *testing.T, s *stage) {
			const spare = 300 // for what goes on meanwhile
			s.fill(t, s.room(t)-spare)
		}, strike: func(t *testing.T, s *stage, b *blow) {
			testenv.Eventually(t, patient, func() (bool, string) { // others end meanwhile
				n := s.room(t)
				if n > 0 {
					s.fill(t, n)
				}
				return n <= 0, fmt.Sprintf("room for %d entries", n)
			})
			s.d.waitFrom(t, b.log, func(l line) bool { return strings.Contains(l.field("message"), "nf_conntrack_max") })
			s.last(2 * time.Second)
			s.Host.Run(t, "conntrack", "-D", "--orig-dst", fillAddr)
		}},
	}
}

// inPodman runs a shell command where Podman is, in its directory.
func (s *stage) inPodman(t *testing.T, script string) {
	t.Helper()
	cmd := s.pod.Command(t.Context(), "sh", "-ec", "cd "+filepath.Dir(s.pod.Socket())+"; "+script)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", script, err, out)
	}
}

// shrink moves Podman's storage to a disk of its own that is soon full.
func (s *stage) shrink(t *testing.T) {
	t.Helper()
	s.pod.StopService(t)
	s.inPodman(t, `mkdir small
mount -t tmpfs -o size=64m tmpfs small
cp -a graph/. small/
mount --move small graph
rmdir small`)
	s.pod.StartService(t)
}

const fillAddr = "192.0.2.99"

// nobody is an address on Podman's network that no container has.
const nobody = "172.16.255.250"

// room is how many entries conntrack's table still takes.
func (s *stage) room(t *testing.T) int {
	t.Helper()
	var n [2]int
	for i, key := range []string{"max", "count"} {
		if _, err := fmt.Sscan(s.Host.GetSysctl(t, "net.netfilter.nf_conntrack_"+key), &n[i]); err != nil {
			t.Fatal(err)
		}
	}
	if n[0] > 1<<19 {
		t.Skipf("conntrack's table takes %d entries, which is more than a test can fill; it cannot be limited for one namespace", n[0])
	}
	return n[0] - n[1]
}

// fill makes n entries of connections that nobody has, which the kernel does
// not drop to make room. It goes on until the table is full, if that is before.
func (s *stage) fill(t *testing.T, n int) {
	t.Helper()
	var b strings.Builder
	for i := s.filled; i < s.filled+n; i++ {
		fmt.Fprintf(&b, "-I -s 10.%d.%d.%d -d %s -p tcp --sport %d --dport 80 --state ESTABLISHED -u ASSURED,SEEN_REPLY -t 3600\n",
			100+i>>22, i>>14&255, i>>6&255, fillAddr, 20000+i&63)
	}
	s.filled += n
	path := filepath.Join(s.dir, "entries")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := s.Host.Command(context.Background(), "conntrack", "--load-file", path).CombinedOutput()
	if err != nil && s.room(t) > 1000 {
		t.Fatalf("fill conntrack: %v: %s", err, out)
	}
}

// orders are what an operator does meanwhile, for the soak.
func orders() []fault {
	return []fault{
		{name: "scale", strike: func(t *testing.T, s *stage, _ *blow) { s.order(t, inWarm, "scale?n=3") }},
		{name: "scale down", strike: func(t *testing.T, s *stage, _ *blow) { s.order(t, inWarm, "scale?n=2") }},
		{name: "wake", strike: func(t *testing.T, s *stage, _ *blow) { s.order(t, inCold, "wake") }},
		{name: "drain one", strike: func(t *testing.T, s *stage, _ *blow) {
			if name := s.victims(t)[inWarm]; name != "" {
				s.order(t, inWarm, "drain?backend="+name)
			}
		}},
		{name: "drain all", strike: func(t *testing.T, s *stage, _ *blow) { s.order(t, inCold, "drain") }},
		{name: "reload", strike: func(t *testing.T, s *stage, _ *blow) {
			if err := admin.Dial(s.admin()).Reload(t.Context()); err != nil {
				t.Error(err)
			}
		}},
	}
}

// strangers makes entries in conntrack that look like flows of the table, to a
// backend that there is not.
func (s *stage) strangers(t *testing.T, n int) (remove func()) {
	t.Helper()
	var c *conntrack.Conn
	if err := s.Host.Do(func() (err error) {
		c, err = conntrack.Open(nft.CTMark, nft.CTMask)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	backend := netip.MustParseAddrPort("172.16.255.251:8080")
	for i := range n {
		if err := c.Create(conntrack.Entry{
			Orig: conntrack.Tuple{
				Src:   netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, byte(1 + i>>14), byte(i >> 6)}), uint16(20000+i&63)), //nolint:gosec // cut on purpose
				Dst:   netip.MustParseAddrPort("192.0.2.99:80"),
				Proto: unix.IPPROTO_TCP,
			},
			Backend: backend, Mark: nft.CTMark, Timeout: time.Hour, State: conntrack.StateEstablished,
		}); err != nil {
			t.Fatalf("entry %d: %v", i, err)
		}
	}
	return func() {
		if _, err := c.DeleteBackend(t.Context(), backend, unix.IPPROTO_TCP); err != nil {
			t.Error(err)
		}
	}
}

func (s *stage) restart(t *testing.T, b *blow, sig syscall.Signal) {
	t.Helper()
	b.from = time.Now()
	s.d.signal(t, sig)
	s.d.end(t)
	b.died = time.Now()
	s.d = s.begin(t)
	b.log, b.to = 0, time.Now()
}

// awayFromHeld: while the daemon is away nobody holds connections for a
// service that sleeps or wakes.
func awayFromHeld(c contact, b *blow) bool {
	return (c.service == inCold || c.service == inWaking) && inGap(c, b)
}

// justAccepted: what is accepted in the moment of a kill has not been given to the
// service manager yet.
func justAccepted(c contact, b *blow) bool {
	const moment = 100 * time.Millisecond // on a busy machine
	return awayFromHeld(c, b) && c.began.After(b.from.Add(-moment)) && c.began.Before(b.died)
}

// restartFaults are those that the daemon comes back from, with what a kill and
// an orderly end may cost.
func restartFaults(how string, kill, end func(contact, *blow) bool) []fault {
	return []fault{
		{name: "daemon killed" + how, restarts: true, promise: kill, strike: func(t *testing.T, s *stage, b *blow) {
			s.restart(t, b, syscall.SIGKILL)
		}},
		{name: "daemon ended" + how, restarts: true, promise: end, strike: func(t *testing.T, s *stage, b *blow) {
			s.restart(t, b, syscall.SIGTERM)
		}},
		{name: "io_uring refused, killed" + how, restarts: true, promise: kill, strike: func(t *testing.T, s *stage, b *blow) {
			s.by = []string{"env", noUring + "=1"}
			s.restart(t, b, syscall.SIGKILL)
			s.by = nil
			s.d.wait(t, func(l line) bool { return l.field("accept") == "epoll" })
		}},
	}
}

func daemonFaults() []fault {
	return []fault{
		{name: "daemon stopped for 3 s (SIGSTOP)", early: true, strike: func(t *testing.T, s *stage, _ *blow) {
			stopProcess(t, s.d.cmd.Process.Pid, 3*time.Second)
		}},
		{name: "reload with a bad file", strike: func(t *testing.T, s *stage, b *blow) {
			good, err := os.ReadFile(s.config)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(s.config, []byte("[service.x]\nlisten = 7\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := admin.Dial(s.admin()).Reload(t.Context()); err == nil {
				t.Error("a bad file was taken")
			}
			if err := os.WriteFile(s.config, good, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := admin.Dial(s.admin()).Reload(t.Context()); err != nil {
				t.Error(err)
			}
		}},
		{name: "reload with a changed service", strike: func(t *testing.T, s *stage, b *blow) {
			old := map[string]bool{}
			leave := false
			for _, r := range s.status(t, inWarm).Backends {
				old[r.Address] = true
				leave = leave || r.State == "draining"
			}
			if leave { // what drains counts as a replica: there may be no room for others
				s.visitWarm()
			}
			s.version++
			s.config = s.write(t)
			if err := admin.Dial(s.admin()).Reload(t.Context()); err != nil {
				t.Error(err)
			}
			s.until(t, inWarm, "two new replicas", func(st control.ServiceStatus) bool {
				fresh := 0
				for _, r := range st.Backends {
					if r.State == "ready" && !old[r.Address] {
						fresh++
					}
				}
				return fresh == 2
			})
			s.visitWarm() // for the old ones drain for as long as these stay
		}},
		{name: "file descriptors used up for 2 s", early: true, strike: func(t *testing.T, s *stage, b *blow) {
			pid := s.d.cmd.Process.Pid
			open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
			if err != nil {
				t.Fatal(err)
			}
			var was unix.Rlimit
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &was); err != nil {
				t.Fatal(err)
			}
			few := unix.Rlimit{Cur: uint64(len(open)), Max: was.Max}
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil); err != nil {
				t.Fatal(err)
			}
			s.last(2 * time.Second)
			if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &was, nil); err != nil {
				t.Fatal(err)
			}
		}},
	}
}
