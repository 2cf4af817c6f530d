// Package sandbox runs the sluice program as it is installed, in network
// namespaces of its own with a Podman of its own, for programs that show or
// measure it. Nothing of it touches the machine's own network or containers.
package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// Sandbox is a client, a host with service addresses, and Podman on the host.
type Sandbox struct {
	*testenv.Lab
	Podman *testenv.Podman

	LogLevel string // for Configure; New sets "debug"

	dir, program string
	admin        *admin.Client
}

// patience bounds every wait for what must happen, on a busy machine too.
const patience = time.Minute

// New makes a sandbox for the sluice program at a path. The addresses are put
// on the host.
func New(t testenv.TB, program string, addrs ...string) *Sandbox {
	t.Helper()
	program, err := filepath.Abs(program)
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		t.Fatalf("find the sluice program: %v", err)
	}
	dir, err := os.MkdirTemp("", "sl")
	if err != nil {
		t.Fatalf("make directory: %v", err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove directory: %v", err)
		}
	})
	lab := testenv.NewLab(t)
	for _, a := range addrs {
		lab.Host.AddAddr(t, a+"/32", "lo")
	}
	s := &Sandbox{Lab: lab, Podman: testenv.NewPodman(t, lab.Host), LogLevel: "debug", dir: dir, program: program}
	s.admin = admin.Dial(s.socket())
	return s
}

func (s *Sandbox) socket() string { return filepath.Join(s.dir, "admin.sock") }
func (s *Sandbox) config() string { return filepath.Join(s.dir, "sluice.toml") }

// metrics is where the daemon serves its metrics, inside the host.
const metrics = "127.0.0.1:9464"

// Configure writes the configuration: the daemon's part, then services.
func (s *Sandbox) Configure(t testenv.TB, services string) {
	t.Helper()
	text := fmt.Sprintf("[daemon]\npodman = %q\nadmin = %q\nmetrics = %q\nlog_level = %q\nlog_format = \"json\"\n\n%s",
		s.Podman.URI(), s.socket(), metrics, s.LogLevel, services)
	if err := os.WriteFile(s.config(), []byte(text), 0o600); err != nil {
		t.Fatalf("write configuration: %v", err)
	}
}

// Sluice runs a sluice command to its end and returns its standard output.
func (s *Sandbox) Sluice(ctx context.Context, t testenv.TB, args ...string) string {
	t.Helper()
	cmd := s.Host.Command(ctx, s.program, append([]string{"--config", s.config()}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("sluice %s: %v: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.String()
}

// Status asks the daemon for the state of a service.
func (s *Sandbox) Status(ctx context.Context, t testenv.TB, service string) control.ServiceStatus {
	t.Helper()
	st, err := s.admin.Status(ctx, service)
	if err != nil {
		t.Fatalf("status: %v", err)
	}
	return st.Services[0]
}

// Until waits for a service to be as ok says. what completes the message
// "still waiting for".
func (s *Sandbox) Until(ctx context.Context, t testenv.TB, service, what string, ok func(control.ServiceStatus) bool) control.ServiceStatus {
	t.Helper()
	var st control.ServiceStatus
	testenv.Eventually(t, patience, func() (bool, string) {
		st = s.Status(ctx, t, service)
		return ok(st), fmt.Sprintf("still waiting for %s: %+v", what, st)
	})
	return st
}

// Asleep is true of a service that has no container, or only prepared ones.
func Asleep(st control.ServiceStatus) bool {
	for _, b := range st.Backends {
		if b.State != "sleeping" {
			return false
		}
	}
	return st.Phase == "cold"
}

// Containers maps the host names of all containers to their own names.
func (s *Sandbox) Containers(t testenv.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	for line := range strings.Lines(s.Podman.CLI(t, "ps", "--all", "--format", "{{.ID}} {{.Names}}")) {
		if id, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			found[id] = name
		}
	}
	return found
}

// Metric returns a metric that has no labels.
func (s *Sandbox) Metric(ctx context.Context, t testenv.TB, name string) float64 {
	t.Helper()
	body := s.scrape(ctx, t)
	defer body.Close()
	sc := bufio.NewScanner(body)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatalf("read metrics: %q", sc.Text())
			}
			return f
		}
	}
	t.Fatalf("read metrics: no %s: %v", name, sc.Err())
	return 0
}

func (s *Sandbox) scrape(ctx context.Context, t testenv.TB) io.ReadCloser {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+metrics+"/metrics", nil)
	if err != nil {
		t.Fatalf("read metrics: %v", err)
	}
	resp, err := s.Host.HTTPClient(testenv.HTTPOptions{}).Do(req)
	if err != nil {
		t.Fatalf("read metrics: %v", err)
	}
	return resp.Body
}

// Steps returns the steps of all cold starts so far, in seconds, added up.
func (s *Sandbox) Steps(ctx context.Context, t testenv.TB) map[string]float64 {
	t.Helper()
	body := s.scrape(ctx, t)
	defer body.Close()
	sums, err := sums(body, "sluice_cold_start_seconds", "step")
	if err != nil {
		t.Fatalf("read metrics: %v", err)
	}
	return sums
}
