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

// IP runs ip(8) commands, one per line and without the leading "ip".
func (ns *NS) IP(t TB, lines ...string) {
	t.Helper()
	ns.RunInput(t, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
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
