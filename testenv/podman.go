package testenv

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Podman is a private Podman service: its own storage, networks, locks, runtime
// state and cgroup, in the network namespace of a host. Several may run at
// once, but one per host. What it makes ends with the test, and also if the
// test process dies.
type Podman struct {
	host   *NS
	dir    string // short: socket paths are limited to 107 bytes
	keeper *exec.Cmd
	stdin  io.Closer // the keeper lives until it is closed
	holder int
	http   *http.Client

	mu      sync.Mutex
	service *service // nil while stopped
}

type service struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once cmd has been waited for
	err  error
}

// patience bounds every wait for something that normally takes well under a
// second; a busy machine must not fail a test.
const patience = 60 * time.Second

// NewPodman starts a service in host and imports Image. Where Podman cannot run
// the test is skipped, or failed with CI=true.
func NewPodman(t TB, host *NS) *Podman {
	t.Helper()
	requirePodman(t)
	image := imageTar(t)
	dir, err := os.MkdirTemp(shortTemp(), "slc-")
	if err != nil {
		t.Fatalf("make podman directory: %v", err)
	}
	p := &Podman{host: host, dir: dir}
	p.http = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", p.Socket())
		},
	}}
	t.Cleanup(func() { p.down(t) })
	err = p.folders()
	var controllers []string
	if err == nil {
		controllers, err = p.up()
	}
	if err == nil {
		err = p.configure(probe(controllers))
	}
	if err == nil {
		err = p.start()
	}
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		err = p.importImage(ctx, image)
	}
	if err != nil {
		t.Fatalf("start podman: %v", err)
	}
	return p
}

func requirePodman(t TB) {
	t.Helper()
	requireRoot(t)
	RequirePrograms(t, "podman", "conmon", "runc", "unshare")
	found := false
	for _, dir := range []string{"/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman"} {
		found = found || isFile(filepath.Join(dir, "netavark"))
	}
	if _, err := exec.LookPath("netavark"); err != nil && !found {
		skip(t, "needs netavark")
	}
	if _, err := run(exec.Command("unshare", "--mount", "--cgroup", "true"), ""); err != nil {
		skip(t, "needs mount and cgroup namespaces: %v", err)
	}
}

// shortTemp is where instances are kept, with room for a socket's name: in
// memory if there is such a place, for Podman syncs what it writes many times a
// second, and all instances would wait for one disk.
func shortTemp() string {
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err == nil && fs.Type == unix.TMPFS_MAGIC && fs.Bavail*uint64(fs.Bsize) > 4<<30 { //nolint:gosec // a block's size is not negative
		return shm
	}
	if d := os.TempDir(); len(d) <= 20 {
		return d
	}
	return "/tmp"
}

// Socket is the path of the service's socket.
func (p *Podman) Socket() string { return filepath.Join(p.dir, "podman.sock") }

// URI is what Podman's clients take: unix:// and Socket.
func (p *Podman) URI() string { return "unix://" + p.Socket() }

// Host is the namespace in which container addresses are reached.
func (p *Podman) Host() *NS { return p.host }

// PID is the process id of the service, 0 while it is stopped.
func (p *Podman) PID() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.service == nil {
		return 0
	}
	return p.service.cmd.Process.Pid
}

// Command prepares any program inside the instance's namespaces and cgroup,
// most usefully podman itself, which then acts without the service.
func (p *Podman) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target=" + strconv.Itoa(p.holder), "--mount", "--net", "--cgroup", "--", name}, args...)...)
	cmd.Dir = "/"
	for _, kv := range os.Environ() {
		switch k, _, _ := strings.Cut(kv, "="); k {
		case "XDG_RUNTIME_DIR", "CONTAINER_HOST", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF", "NOTIFY_SOCKET", "LISTEN_FDS", "TMPDIR":
		default:
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env,
		"CONTAINERS_CONF="+filepath.Join(p.dir, "containers.conf"),
		"CONTAINERS_STORAGE_CONF="+filepath.Join(p.dir, "storage.conf"),
		"TMPDIR="+filepath.Join(p.dir, "tmp"),
	)
	return cmd
}

// born starts cmd as a member of the instance's cgroup. Joining later would be
// refused: with nsdelegate the kernel lets nobody inside the cgroup namespace
// fetch a process from outside it.
func (p *Podman) born(cmd *exec.Cmd) error {
	cg, err := os.Open(fmt.Sprintf("/proc/%d/root%s/cg/%s/svc", p.keeper.Process.Pid, p.dir, filepath.Base(p.dir)))
	if err != nil {
		return fmt.Errorf("open cgroup: %w", err)
	}
	defer cg.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD = true
	cmd.SysProcAttr.CgroupFD = int(cg.Fd())
	return cmd.Start()
}

// CLI runs the podman program in the instance and returns its standard output.
// Anything but success ends the test.
func (p *Podman) CLI(t TB, args ...string) string {
	t.Helper()
	out, err := p.cli(context.Background(), args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

func (p *Podman) cli(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	cmd := p.Command(ctx, "podman", args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	// What a detached container keeps open must not hold up Wait.
	cmd.WaitDelay = 5 * time.Second
	err := p.born(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("podman %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), nil
}

// ContainerLogs returns what a container has written so far.
func (p *Podman) ContainerLogs(t TB, container string) string {
	t.Helper()
	return p.CLI(t, "logs", container)
}

// StopService ends the service as systemd would; containers live on.
func (p *Podman) StopService(t TB) { t.Helper(); p.end(t, syscall.SIGTERM) }

// KillService ends the service by SIGKILL; containers live on.
func (p *Podman) KillService(t TB) { t.Helper(); p.end(t, syscall.SIGKILL) }

// StartService starts a stopped service and returns when it answers.
func (p *Podman) StartService(t TB) {
	t.Helper()
	if err := p.start(); err != nil {
		t.Fatalf("start podman service: %v\n%s", err, p.logs())
	}
}

func (p *Podman) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.service != nil {
		return errors.New("already running")
	}
	if err := os.Remove(p.Socket()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// The socket is opened here and handed over as systemd does it, so that a
	// client may connect at once and is answered when the service is up. Only
	// the service holds it afterwards: when it dies, connects are refused.
	l, err := net.Listen("unix", p.Socket())
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	defer l.Close()
	fd, err := l.(*net.UnixListener).File()
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer fd.Close()
	log, err := os.OpenFile(p.serviceLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open service log: %w", err)
	}
	defer log.Close()
	cmd := p.Command(context.Background(), "sh", "-c",
		`LISTEN_FDS=1 LISTEN_PID=$$ exec podman --log-level=warn system service --time=0`)
	cmd.ExtraFiles = []*os.File{fd}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := p.born(cmd); err != nil {
		return fmt.Errorf("start service: %w", err)
	}
	s := &service{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		s.err = cmd.Wait()
	}()
	p.service = s
	fd.Close()
	l.Close()
	return p.ping()
}

func (p *Podman) ping() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://podman/_ping", nil)
	if err != nil {
		return err
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return fmt.Errorf("ping service: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ping service: %s", resp.Status)
	}
	return nil
}

func (p *Podman) end(t TB, sig syscall.Signal) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.service
	if s == nil {
		t.Fatalf("podman service is not running")
		return
	}
	p.service = nil
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Fatalf("signal podman service: %v", err)
	}
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Fatalf("podman service outlives signal %v", sig)
	}
}

// up starts keeper and holder and returns the cgroup controllers on offer.
func (p *Podman) up() (controllers []string, err error) {
	name := filepath.Base(p.dir)
	log, err := os.Create(filepath.Join(p.dir, "keeper.log"))
	if err != nil {
		return nil, fmt.Errorf("open keeper log: %w", err)
	}
	defer log.Close()
	cmd := p.host.Command(context.Background(), "unshare", "--mount", "--propagation", "private",
		"sh", "-c", keeper, "keeper", name, p.dir)
	cmd.Env = append(os.Environ(), "HOLDER="+holder)
	cmd.Dir = "/"
	cmd.Stderr = log
	// An interrupt from the terminal is for the test; the keeper cleans up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start keeper: %w", err)
	}
	p.keeper = cmd
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		switch word {
		case "controllers":
			controllers = strings.Fields(rest)
		case "up":
			p.holder, err = strconv.Atoi(rest)
			return controllers, err
		}
	}
	return nil, errors.Join(errors.New("keeper ended early"), lines.Err())
}

func (p *Podman) down(t TB) {
	t.Helper()
	if t.Failed() {
		t.Logf("podman:\n%s", p.logs())
	}
	if p.keeper == nil {
		if err := os.RemoveAll(p.dir); err != nil {
			t.Errorf("remove podman directory: %v", err)
		}
		return
	}
	if err := p.stdin.Close(); err != nil {
		t.Errorf("stop podman: %v", err)
	}
	// Bounded, for a test that hangs in its clean-up tells nothing.
	kill := time.AfterFunc(patience, func() { _ = p.keeper.Process.Kill() })
	defer kill.Stop()
	if err := p.keeper.Wait(); err != nil {
		t.Errorf("stop podman: %v", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if s := p.service; s != nil {
		<-s.done
		p.service = nil
	}
	if _, err := os.Stat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("podman directory %s is left: %v", p.dir, err)
	}
}

func (p *Podman) serviceLog() string { return filepath.Join(p.dir, "service.log") }

// logs returns the ends of the instance's own logs.
func (p *Podman) logs() string {
	var b strings.Builder
	for _, name := range []string{"keeper.log", "service.log"} {
		text, err := os.ReadFile(filepath.Join(p.dir, name))
		if err != nil || len(text) == 0 {
			continue
		}
		text = text[max(0, len(text)-8<<10):]
		fmt.Fprintf(&b, "%s:\n%s\n", name, bytes.TrimSpace(text))
	}
	return b.String()
}
