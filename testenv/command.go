package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Command prepares a program that runs in the namespace and dies with ctx. It
// starts by way of nsenter, which replaces itself: the process id is the
// program's own. A program that does not exist shows as exit status 127.
func (ns *NS) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + ns.Path(), "--", name}, args...)...)
}

// Run runs a program in the namespace to its end and returns its standard
// output. Anything but success ends the test.
func (ns *NS) Run(t TB, name string, args ...string) string {
	t.Helper()
	return ns.RunInput(t, "", name, args...)
}

// RunInput is Run with text on standard input.
func (ns *NS) RunInput(t TB, input, name string, args ...string) string {
	t.Helper()
	out, err := run(ns.Command(context.Background(), name, args...), input)
	if err != nil {
		t.Fatalf("in %s: %v", ns.Name, err)
	}
	return out
}

// IP runs ip(8) commands, one per line and without the leading "ip". When it
// returns, IPv6 addresses without duplicate address detection receive.
func (ns *NS) IP(t TB, lines ...string) {
	t.Helper()
	text := strings.Join(lines, "\n") + "\n"
	ns.RunInput(t, text, "ip", "-batch", "-")
	if strings.Contains(text, " nodad") {
		Eventually(t, 20*time.Second, func() (bool, string) {
			missing, err := ns.unrouted()
			if err != nil {
				t.Fatalf("in %s: %v", ns.Name, err)
			}
			return len(missing) == 0, fmt.Sprintf("in %s no local route to %s", ns.Name, missing)
		})
	}
}

// unrouted returns the IPv6 addresses, in hexadecimal digits, that the namespace
// has but does not receive at yet. The kernel puts the local route in later, from
// a work queue that shares a lock with all namespaces; until then a packet to an
// address on lo is answered with "no route".
func (ns *NS) unrouted() (missing []string, err error) {
	var addrs, routes []byte
	err = ns.Do(func() (err error) {
		if addrs, err = os.ReadFile("/proc/thread-self/net/if_inet6"); err == nil {
			routes, err = os.ReadFile("/proc/thread-self/net/ipv6_route")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	local := map[string]bool{}
	for line := range strings.Lines(string(routes)) {
		// Destination, its length, source, its length, next hop, metric,
		// references, uses, flags, device: all hexadecimal but the last.
		w := strings.Fields(line)
		if len(w) != 10 {
			return nil, fmt.Errorf("route %q", line)
		}
		flags, err := strconv.ParseUint(w[8], 16, 32)
		if err != nil {
			return nil, fmt.Errorf("route %q: %w", line, err)
		}
		local[w[0]] = local[w[0]] || w[1] == "80" && flags&unix.RTF_LOCAL != 0
	}
	for line := range strings.Lines(string(addrs)) {
		// Address, device's index, prefix length, scope, flags, device.
		w := strings.Fields(line)
		if len(w) != 6 {
			return nil, fmt.Errorf("address %q", line)
		}
		flags, err := strconv.ParseUint(w[4], 16, 32)
		if err != nil {
			return nil, fmt.Errorf("address %q: %w", line, err)
		}
		if flags&unix.IFA_F_NODAD != 0 && !local[w[0]] {
			missing = append(missing, w[0])
		}
	}
	return missing, nil
}

// AddAddr puts an address in CIDR notation on dev, without duplicate address
// detection; an empty dev is lo.
func (ns *NS) AddAddr(t TB, cidr, dev string) {
	t.Helper()
	if dev == "" {
		dev = "lo"
	}
	if strings.Contains(cidr, ":") {
		ns.IP(t, fmt.Sprintf("addr add %s dev %s nodad", cidr, dev))
		return
	}
	ns.IP(t, fmt.Sprintf("addr add %s dev %s", cidr, dev))
}

// Sysctl sets a setting of the namespace; only keys under "net." are accepted,
// since all others belong to the whole machine. Dots in interface names are
// written as slashes, as sysctl(8) does.
func (ns *NS) Sysctl(t TB, key, value string) {
	t.Helper()
	path, err := sysctlPath(key)
	if err == nil {
		err = ns.Do(func() error { return os.WriteFile(path, []byte(value), 0) })
	}
	if err != nil {
		t.Fatalf("in %s: set sysctl %s=%s: %v", ns.Name, key, value, err)
	}
}

// GetSysctl reads a setting under "net.".
func (ns *NS) GetSysctl(t TB, key string) string {
	t.Helper()
	path, err := sysctlPath(key)
	var b []byte
	if err == nil {
		err = ns.Do(func() (err error) {
			b, err = os.ReadFile(path)
			return err
		})
	}
	if err != nil {
		t.Fatalf("in %s: get sysctl %s: %v", ns.Name, key, err)
	}
	return strings.TrimSpace(string(b))
}

func sysctlPath(key string) (string, error) {
	if !strings.HasPrefix(key, "net.") || strings.Contains(key, "..") {
		return "", fmt.Errorf("key %q: %w", key, ErrOrigin)
	}
	swap := strings.NewReplacer(".", "/", "/", ".")
	return "/proc/sys/" + swap.Replace(key), nil
}

// reap reports and kills processes still in the namespace. Those just killed by
// their context get a moment to be gone.
func (ns *NS) reap(t TB) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Second)
	pids := ns.processes()
	for len(pids) > 0 && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
		pids = ns.processes()
	}
	for _, pid := range pids {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		t.Errorf("process %d (%s) left in namespace %s", pid, bytes.TrimSpace(comm), ns.Name)
		ns.kill(pid)
	}
}

// kill ends pid if it is still in the namespace: the descriptor pins the
// process, so that a recycled number cannot be hit.
func (ns *NS) kill(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if ns.holds(strconv.Itoa(pid)) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}

func (ns *NS) processes() []int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil
	}
	var pids []int
	for _, d := range dirs {
		base := filepath.Base(d)
		pid, err := strconv.Atoi(base)
		if err == nil && pid != os.Getpid() && ns.holds(base) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func (ns *NS) holds(pid string) bool {
	link, err := os.Readlink("/proc/" + pid + "/ns/net")
	return err == nil && link == fmt.Sprintf("net:[%d]", ns.inode)
}

func run(cmd *exec.Cmd, input string) (string, error) {
	var out, errs bytes.Buffer
	if input != "" {
		cmd.Stdin = strings.NewReader(input)
	}
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s: %w\n%s%s", strings.Join(cmd.Args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}
