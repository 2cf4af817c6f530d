package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// childKey makes the test binary a program that keeps a Podman instance until
// it is killed.
const childKey = "SLUICE_TESTENV_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childKey) == "" {
		os.Exit(m.Run())
	}
	err := Program("child", os.Stderr, func(t TB) {
		p := NewPodman(t, NewLab(t).Host)
		p.CLI(t, "run", "-d", Image)
		fmt.Println(p.dir)
		_, _ = io.Copy(io.Discard, os.Stdin)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func TestPodmanService(t *testing.T) {
	t.Parallel()
	l := NewLab(t)
	p := NewPodman(t, l.Host)
	id := strings.TrimSpace(p.CLI(t, "run", "-d", "--name", "c1", "--hostname", "alice", "--ip", "10.88.0.50", "-e", "UDP_PORT=53", Image))
	waitAnswer(t, p, "10.88.0.50:8080", "alice")

	service := p.PID()
	if mine := Sockets(t, l.Host, service); len(mine) != 0 {
		t.Errorf("the service holds %v", mine)
	}
	p.KillService(t)
	if p.PID() != 0 {
		t.Errorf("stopped service has process %d", p.PID())
	}
	if _, err := ask(p, "/_ping"); err == nil {
		t.Error("a killed service answers")
	}
	WhoAnswered(t, l.Host, "10.88.0.50:8080")
	p.StartService(t)
	if p.PID() == service {
		t.Error("the service was not replaced")
	}
	p.StopService(t)
	if _, err := ask(p, "/_ping"); err == nil {
		t.Error("a stopped service answers")
	}
	p.StartService(t)
	body, err := ask(p, "/v4.0.0/libpod/containers/c1/json")
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		ID    string
		State struct{ Running bool }
	}
	if err := json.Unmarshal(body, &info); err != nil {
		t.Fatal(err)
	}
	if info.ID != id || !info.State.Running {
		t.Errorf("after restarts: %+v, want %s", info, id)
	}
	if logs := p.ContainerLogs(t, "c1"); !strings.Contains(logs, "listening\n") || !strings.Contains(logs, "conn 8080 10.88.0.1:") {
		t.Errorf("logs = %q", logs)
	}
}

// The client's address reaches a container through rules of the host.
func TestPodmanFromClient(t *testing.T) {
	t.Parallel()
	l := NewLab(t)
	p := NewPodman(t, l.Host)
	p.CLI(t, "run", "-d", "--hostname", "bob", "--ip", "10.88.0.60", Image)
	waitAnswer(t, p, "10.88.0.60:8080", "bob")
	l.Host.AddAddr(t, "192.0.2.20/32", "lo")
	l.Host.RunInput(t, `
table inet t {
	chain prerouting {
		type nat hook prerouting priority dstnat - 5; policy accept;
		ip daddr 192.0.2.20 tcp dport 80 dnat ip to 10.88.0.60:8080
	}
}`, "nft", "-f", "-")
	a := WhoAnswered(t, l.Client, "192.0.2.20:80")
	if a.Name != "bob" || a.Remote.Addr() != l.ClientAddr4 {
		t.Errorf("answer = %+v", a)
	}
}

// A device with its peer in a watching namespace tells when the kernel has
// really dropped a namespace: then the peer is gone.
func TestPodmanLeavesNothing(t *testing.T) {
	t.Parallel()
	const n = 3
	watch := NewNS(t, "watch")
	dirs := make([]string, n)
	t.Run("instances", func(t *testing.T) {
		for i := range n {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				l := NewLab(t)
				l.Host.IP(t, fmt.Sprintf("link add watch%d type veth peer name host%d netns %s", i, i, watch.Path()))
				p := NewPodman(t, l.Host)
				dirs[i] = p.dir
				p.CLI(t, "run", "-d", "--name", "c1", Image)
				p.CLI(t, "run", "-d", "--name", "c2", "-e", "IGNORE_TERM=1", Image)
				p.CLI(t, "pause", "c1")
				if tr := traces(t, p.dir); len(tr) == 0 {
					t.Error("a live instance shows no trace: the check proves nothing")
				}
			})
		}
	})
	for _, dir := range dirs {
		wantNoTraces(t, dir)
	}
	Eventually(t, patience, func() (bool, string) {
		links := watch.Run(t, "ip", "-o", "link")
		return !strings.Contains(links, "host"), links
	})
}

// What a test process leaves when it is killed is taken down by its keeper.
func TestPodmanKilledProcess(t *testing.T) {
	t.Parallel()
	requirePodman(t)
	imageTar(t) // before the clock of the child runs
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), childKey+"=1")
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	dir = strings.TrimSpace(dir)
	if err == nil && len(traces(t, dir)) == 0 {
		t.Error("a live instance shows no trace: the check proves nothing")
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // killed
	if err != nil {
		t.Fatalf("read from child: %v", err)
	}
	wantNoTraces(t, dir)
}

func TestProgram(t *testing.T) {
	t.Parallel()
	var order []string
	err := Program("p", io.Discard, func(t TB) {
		t.Cleanup(func() { order = append(order, "first") })
		t.Cleanup(func() { t.Cleanup(func() { order = append(order, "third") }); t.Errorf("from cleanup") })
		t.Fatalf("stop")
		order = append(order, "unreachable")
	})
	if got := strings.Join(order, " "); got != "third first" {
		t.Errorf("order = %s", got)
	}
	if err == nil || err.Error() != "stop\nfrom cleanup" {
		t.Errorf("error = %v", err)
	}
}

func TestContainersConf(t *testing.T) {
	t.Parallel()
	plain := containersConf("/d", limits{runtime: "crun"})
	for _, word := range []string{"default_ulimits", "pids_limit"} {
		if strings.Contains(plain, word) {
			t.Errorf("an ordinary machine gets %s:\n%s", word, plain)
		}
	}
	bound := containersConf("/d", limits{runtime: "runc", ulimits: true, pids: true})
	for _, want := range []string{`runtime = "runc"`, "default_ulimits", "pids_limit = 0", `tmp_dir = "/d/tmp"`} {
		if !strings.Contains(bound, want) {
			t.Errorf("no %s in:\n%s", want, bound)
		}
	}
}

// waitAnswer waits for a server to answer from the host; a container's start
// says nothing of its ports.
func waitAnswer(t *testing.T, p *Podman, addr, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	Eventually(t, patience, func() (bool, string) {
		a, err := Who(ctx, p.Host(), addr)
		return err == nil && a.Name == name, fmt.Sprintf("%+v, %v", a, err)
	})
}

func ask(p *Podman, path string) ([]byte, error) {
	resp, err := p.http.Get("http://podman" + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, errors.New(resp.Status)
	}
	return io.ReadAll(resp.Body)
}

func wantNoTraces(t *testing.T, dir string) {
	t.Helper()
	Eventually(t, patience, func() (bool, string) {
		tr := traces(t, dir)
		return len(tr) == 0, strings.Join(tr, "\n")
	})
}

// traces lists what the machine has of an instance: its directory, its cgroup,
// processes in it, and mounts in any process's mount namespace (all of them
// name the instance as their source or lie in its directory).
func traces(t *testing.T, dir string) []string {
	t.Helper()
	var found []string
	if _, err := os.Stat(dir); err == nil {
		found = append(found, dir)
	}
	name := filepath.Base(dir)
	out, err := run(exec.Command("unshare", "--mount", "sh", "-ec",
		`mount -t cgroup2 cgroup2 /sys/fs/cgroup; if [ -d "/sys/fs/cgroup/$1" ]; then echo "cgroup $1"; fi`, "sh", name), "")
	if err != nil {
		t.Fatal(err)
	}
	if out != "" {
		found = append(found, strings.TrimSpace(out))
	}
	for _, file := range []string{"cgroup", "mountinfo"} {
		paths, err := filepath.Glob("/proc/[0-9]*/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			// A process that has ended meanwhile cannot be read.
			if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), name) {
				found = append(found, path)
			}
		}
	}
	return found
}

var _ TB = (*testing.T)(nil)
