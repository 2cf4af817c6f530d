package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// asSluice makes the test binary behave as the sluice command, so that the
// tests run the daemon as a process of its own, with the race detector in it.
const asSluice = "SLUICE_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asSluice) != "" {
		if os.Getenv(noUring) != "" {
			refuse(unix.SYS_IO_URING_SETUP)
		}
		if fd := os.Getenv(wardenEnv); fd != "" {
			obey(fd)
		}
		main()
	}
	// These tests wait for other processes more than they compute.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("5"); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

const (
	address = "192.0.2.10"
	patient = 60 * time.Second // for what must happen, on a busy machine
)

// host is a lab with Podman and one service address.
type host struct {
	*testenv.Lab
	pod    *testenv.Podman
	dir    string
	resolv string       // what the daemon finds at /etc/resolv.conf; "": the machine's own
	by     []string     // a program, with its arguments, that starts the daemon
	warden *warden      // over the daemon's system calls; nil: none
	relay  *podmanRelay // nil: the daemon speaks to Podman itself
}

func newHost(t *testing.T) *host {
	t.Helper()
	lab := testenv.NewLab(t)
	lab.Host.AddAddr(t, address+"/32", "lo")
	return &host{Lab: lab, pod: testenv.NewPodman(t, lab.Host), dir: shortDir(t)}
}

// shortDir is a temporary directory whose name leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (h *host) admin() string { return filepath.Join(h.dir, "admin.sock") }
func (h *host) state() string { return filepath.Join(h.dir, "state") }

// uri is where the daemon finds Podman.
func (h *host) uri() string {
	if h.relay != nil {
		return "unix://" + h.relay.path
	}
	return h.pod.URI()
}

// configure writes the configuration: the daemon's part, then text.
func (h *host) configure(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(h.dir, "sluice.toml")
	text = fmt.Sprintf("[daemon]\npodman = %q\nadmin = %q\nstate = %q\nlog_level = \"debug\"\nlog_format = \"json\"\n\n", h.uri(), h.admin(), h.state()) + text
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// web is a service of the test image; more is appended, scale inserted.
func web(scale, env, more string) string {
	return fmt.Sprintf(`[service.web]
listen = ["%s:80/tcp"]
[service.web.container]
image = "%s"
port = 8080
pull = "never"
stop_timeout = "2s"
env = { %s }
[service.web.scale]
%s
%s
`, address, testenv.Image, env, scale, more)
}

// proc is a running `sluice run`.
type proc struct {
	*host
	cmd  *exec.Cmd
	done chan struct{}
	log  testenv.Log[line]
}

// line is one line of the daemon's log.
type line struct {
	at     time.Time
	text   string
	fields map[string]any
}

func (l line) field(k string) string { return fmt.Sprint(l.fields[k]) }

// stamp is when the daemon wrote the line, which may be read much later.
func (l line) stamp(t *testing.T) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, l.field("time"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// start runs the daemon and waits until it is ready.
func (h *host) start(t *testing.T, config string) *proc {
	t.Helper()
	d := h.launch(t, config)
	d.wait(t, func(l line) bool { return l.field("message") == "ready" })
	return d
}

// awake starts the daemon with a service and wakes that.
func (h *host) awake(t *testing.T) *proc {
	t.Helper()
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "")))
	h.get(t, "/who")
	d.wait(t, event("warm"))
	return d
}

func (h *host) launch(t *testing.T, config string) *proc {
	t.Helper()
	cmd := h.command(t, "--config", config, "run")
	if h.warden != nil {
		h.warden.watch(t, cmd)
	}
	return h.launchCommand(t, cmd)
}

func (h *host) launchCommand(t *testing.T, cmd *exec.Cmd) *proc {
	t.Helper()
	d := &proc{host: h, cmd: cmd, done: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	go func() {
		defer close(d.done)
		sc := bufio.NewScanner(r)
		sc.Buffer(nil, 1<<20)
		for sc.Scan() {
			l := line{at: time.Now(), text: sc.Text()}
			_ = json.Unmarshal(sc.Bytes(), &l.fields) // a race report is no JSON
			d.log.Add(l)
		}
		_ = r.Close()
	}()
	t.Cleanup(func() {
		d.signal(t, syscall.SIGTERM)
		d.end(t)
		if t.Failed() {
			for _, l := range d.log.Since(0) {
				t.Log(l.text)
			}
		}
	})
	return d
}

// command prepares the sluice command on the host.
func (h *host) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := slices.Concat(h.by, []string{exe}, args)
	if h.resolv != "" {
		argv = slices.Concat([]string{"unshare", "--mount", "--propagation", "private", "sh", "-c",
			`mount --bind "$0" /etc/resolv.conf && exec "$@"`, h.resolv}, argv)
	}
	cmd := h.Host.Command(context.Background(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), asSluice+"=1", "GORACE=halt_on_error=0")
	return cmd
}

// sluice runs a command to its end.
func (h *host) sluice(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := h.command(t, append([]string{"--config", filepath.Join(h.dir, "sluice.toml"), "--admin", h.admin()}, args...)...)
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// must is sluice for a command that has to succeed.
func (h *host) must(t *testing.T, args ...string) string {
	t.Helper()
	out, errOut, code := h.sluice(t, args...)
	if code != 0 {
		t.Fatalf("sluice %s: exit %d: %s", strings.Join(args, " "), code, errOut)
	}
	return out
}

func (d *proc) signal(t *testing.T, sig syscall.Signal) {
	t.Helper()
	if err := d.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
}

// end waits for the daemon to end and fails the test on a race report.
func (d *proc) end(t *testing.T) {
	t.Helper()
	select {
	case <-d.done:
	case <-time.After(patient):
		t.Error("the daemon does not end")
		_ = d.cmd.Process.Kill()
		<-d.done
	}
	_ = d.cmd.Wait()
	for _, l := range d.log.Since(0) {
		if strings.Contains(l.text, "DATA RACE") || strings.HasPrefix(l.text, "panic:") {
			t.Errorf("the daemon's log has: %s", l.text)
		}
	}
}

// wait returns the first line of the log that is ok, from the beginning.
func (d *proc) wait(t *testing.T, ok func(line) bool) line {
	t.Helper()
	return d.waitFrom(t, 0, ok)
}

func (d *proc) mark() int { return d.log.Mark() }

func (d *proc) waitFrom(t *testing.T, from int, ok func(line) bool) line {
	t.Helper()
	return d.log.Wait(t, patient, from, "the awaited line of the daemon's log", d.done, ok)
}

// event is true for the log line of an event.
func event(kind string) func(line) bool {
	return func(l line) bool { return l.fields["event"] == kind }
}

// status is that of the only service, or of the one called web.
func (d *proc) status(t *testing.T) control.ServiceStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	st, err := admin.Dial(d.admin()).Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range st.Services {
		if s.Name == "web" || len(st.Services) == 1 {
			return s
		}
	}
	t.Fatalf("status: %d services, and none is called web", len(st.Services))
	return control.ServiceStatus{}
}

// until polls the status; the daemon's phases are events, but what a stranger
// sees is the status.
func (d *proc) until(t *testing.T, what string, ok func(control.ServiceStatus) bool) control.ServiceStatus {
	t.Helper()
	var st control.ServiceStatus
	testenv.Eventually(t, patient, func() (bool, string) {
		st = d.status(t)
		return ok(st), fmt.Sprintf("waiting for %s: %+v", what, st)
	})
	return st
}

func asleep(st control.ServiceStatus) bool { return st.Phase == "cold" && len(st.Backends) == 0 }

// get asks the service for a path from the client and returns the body.
func (h *host) get(t *testing.T, path string) string {
	t.Helper()
	body, err := h.tryGet(path)
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return body
}

func (h *host) tryGet(path string) (string, error) {
	c := h.Client.HTTPClient(testenv.HTTPOptions{Timeout: patient})
	resp, err := c.Get("http://" + address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != 200 {
		err = fmt.Errorf("%s: %s", resp.Status, b)
	}
	return string(b), err
}

// containers lists the names of all containers, by Podman's own program.
func (h *host) containers(t *testing.T) []string {
	t.Helper()
	return strings.Fields(h.pod.CLI(t, "ps", "--all", "--format", "{{.Names}}"))
}
