package podman_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/podman"
	"sluice/testenv"
)

// patience bounds waits for what normally takes far less; the machine may be
// busy.
const patience = 30 * time.Second

// host is a private Podman service and a client inside its namespace.
type host struct {
	ns  *testenv.NS
	pod *testenv.Podman
	c   *podman.Client

	mu       sync.Mutex
	warnings []error
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{ns: testenv.NewNS(t, "podman")}
	h.pod = testenv.NewPodman(t, h.ns)
	h.c = h.open(t)
	t.Cleanup(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, err := range h.warnings {
			t.Errorf("warned of: %v", err)
		}
	})
	return h
}

// open makes another client.
func (h *host) open(t testing.TB) *podman.Client {
	t.Helper()
	var c *podman.Client
	err := h.ns.Do(func() (err error) {
		c, err = podman.Open(t.Context(), h.pod.URI(), podman.Options{Timeout: patience, Warn: func(err error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.warnings = append(h.warnings, err)
		}})
		return err
	})
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return c
}

// spec describes a service of the test image.
func spec(service string) podman.Spec {
	return podman.Spec{
		Service: service,
		Image:   testenv.Image,
		Port:    8080,
		Env:     map[string]string{"NAME": service},
		Pull:    "never",
	}
}

// withShell gives the replica the host's programs, read-only, to have something
// to exec.
func withShell(s podman.Spec) podman.Spec {
	for _, dir := range []string{"/bin", "/usr", "/lib", "/lib64"} {
		if _, err := os.Stat(dir); err == nil {
			s.Volumes = append(s.Volumes, dir+":"+dir+":ro")
		}
	}
	return s
}

// get asks the replica's server for its name, once it listens.
func (h *host) get(ctx context.Context, r podman.Replica) (string, error) {
	for {
		conn, err := h.ns.Dial(ctx, "tcp", r.Addr().String())
		if err != nil {
			if ctx.Err() != nil {
				return "", err
			}
			continue // refused: not listening yet
		}
		defer conn.Close()
		if d, ok := ctx.Deadline(); ok {
			conn.SetDeadline(d)
		}
		fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		return res.Status, nil
	}
}

func (h *host) serves(t testing.TB, r podman.Replica) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if status, err := h.get(ctx, r); err != nil || !strings.HasPrefix(status, "200") {
		t.Fatalf("GET from %s at %s: %q, %v", r.Name, r.Addr(), status, err)
	}
}

// bounded ends every call of a test after patience: a call that hangs then
// fails, and says which it was.
func bounded(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func made(t testing.TB, what string) func(podman.Replica, error) podman.Replica {
	return func(r podman.Replica, err error) podman.Replica {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		return r
	}
}

// line checks that an error is of a kind, fits one line and has all the words.
func line(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if err == nil {
		t.Error("no error")
		return
	}
	if kind != nil && !errors.Is(err, kind) {
		t.Errorf("%q is not %q", err, kind)
	}
	if strings.ContainsAny(err.Error(), "\n\r") || len(err.Error()) > 600 {
		t.Errorf("not one line: %q", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

// TestReplicas runs all that can share one Podman service.
func TestReplicas(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	// The bridge goes when the last container on it ends, which takes other
	// replicas' first packets with it on a slow machine.
	h.pod.CLI(t, "run", "-d", "--name", "anchor", "--env", "NEVER_LISTEN=1", testenv.Image)

	t.Run("group", func(t *testing.T) {
		for name, f := range map[string]func(*testing.T, *host){
			"life":      testLife,
			"prepared":  testPrepared,
			"paused":    testPaused,
			"adopt":     testAdopt,
			"clash":     testClash,
			"refused":   testRefused,
			"network":   testNetwork,
			"death":     testDeath,
			"crash":     testCrash,
			"events":    testEvents,
			"exec":      testExec,
			"probe":     testProbe,
			"volumes":   testVolumes,
			"parallel":  testParallel,
			"cancelled": testCancelled,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				f(t, h)
			})
		}
	})
}

func testLife(t *testing.T, h *host) {
	ctx := bounded(t)
	s := spec("life")
	s.StopTimeout = 3 * time.Second
	s.CPUs = 0 // the machine may lack the controller
	r := made(t, "create")(h.c.Create(ctx, s, 3))
	if r.Name != "sluice-life-3" || r.Service != "life" || r.Index != 3 || r.State != podman.Created || r.Port != 8080 || r.SpecHash != s.Hash() || len(r.ID) != 64 {
		t.Errorf("created %+v", r)
	}
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.ID != r.ID || now.State != podman.Created || now.PID != 0 || now.Addr().IsValid() || !now.StartedAt.IsZero() {
		t.Errorf("inspected %+v", now)
	}
	before := time.Now()
	r = made(t, "start")(h.c.Start(ctx, r.Name))
	if r.StopTimeout != s.StopTimeout {
		t.Errorf("it has %s to stop, want %s", r.StopTimeout, s.StopTimeout)
	}
	if r.State != podman.Running || r.PID <= 0 || !r.Addr4.Is4() || r.Index != 3 || r.ImageID == "" || r.StartedAt.Before(before.Add(-time.Second)) {
		t.Errorf("started %+v", r)
	}
	h.serves(t, r)
	if again := made(t, "start again")(h.c.Start(ctx, r.Name)); again.PID != r.PID || again.Addr() != r.Addr() {
		t.Errorf("second start: %+v, first %+v", again, r)
	}
	if labels := h.pod.CLI(t, "inspect", "--format", "{{json .Config.Labels}} {{.HostConfig.RestartPolicy.Name}} {{.Config.StopTimeout}}", r.Name); !strings.Contains(labels, `"sluice.index":"3"`) ||
		!strings.Contains(labels, `"sluice.port":"8080"`) || !strings.Contains(labels, `"sluice.spec":"`+s.Hash()+`"`) || !strings.Contains(labels, `"sluice.service":"life"`) || !strings.Contains(labels, " 3") {
		t.Errorf("podman's own view: %s", labels)
	}
	ok(t, h.c.Stop(ctx, r.Name, 10*time.Second))
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.State != podman.Exited || now.ExitCode != 0 || now.PID != 0 || now.Addr().IsValid() {
		t.Errorf("stopped %+v", now)
	}
	ok(t, h.c.Stop(ctx, r.Name, time.Second))
	r = made(t, "restart")(h.c.Start(ctx, r.Name))
	h.serves(t, r)
	ok(t, h.c.Remove(ctx, r.Name))
	ok(t, h.c.Remove(ctx, r.Name))
	ok(t, h.c.Stop(ctx, r.Name, time.Second))
	_, err := h.c.Inspect(ctx, r.Name)
	line(t, err, podman.ErrGone, r.Name)
	_, err = h.c.Start(ctx, r.Name)
	line(t, err, podman.ErrGone, r.Name)
	line(t, h.c.Pause(ctx, r.Name), podman.ErrGone, r.Name)
	_, err = h.c.Logs(ctx, r.Name, 5)
	line(t, err, podman.ErrGone, r.Name)
}

func testPrepared(t *testing.T, h *host) {
	ctx := bounded(t)
	r := made(t, "create")(h.c.Create(ctx, spec("prepared"), 1))
	r = made(t, "init")(h.c.Init(ctx, r.Name))
	if r.State != podman.Initialized || r.PID <= 0 || !r.Addr().IsValid() {
		t.Fatalf("initialised %+v", r)
	}
	if again := made(t, "init again")(h.c.Init(ctx, r.Name)); again.PID != r.PID {
		t.Errorf("second init: %+v, first %+v", again, r)
	}
	run := made(t, "start")(h.c.Start(ctx, r.Name))
	if run.State != podman.Running || run.PID != r.PID || run.Addr() != r.Addr() {
		t.Errorf("started %+v, prepared as %+v", run, r)
	}
	h.serves(t, run)
	if now := made(t, "init of running")(h.c.Init(ctx, r.Name)); now.State != podman.Running {
		t.Errorf("init of a running replica: %+v", now)
	}
	ok(t, h.c.Stop(ctx, r.Name, 10*time.Second))
	_, err := h.c.Init(ctx, r.Name)
	line(t, err, nil, r.Name, "fresh")

	r = made(t, "create afresh")(h.c.Create(ctx, spec("prepared"), 1))
	r = made(t, "init")(h.c.Init(ctx, r.Name))
	run = made(t, "start prepared")(h.c.StartPrepared(ctx, r))
	h.serves(t, run)
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.PID != run.PID || now.Addr() != run.Addr() || now.State != run.State || now.StartedAt.Sub(run.StartedAt).Abs() > patience {
		t.Errorf("started %+v, in truth %+v", run, now)
	}
	// What was prepared is not what runs: the death notice says so.
	ok(t, h.c.Stop(ctx, r.Name, 10*time.Second))
	now := made(t, "start by another")(h.c.Start(ctx, r.Name))
	run = made(t, "start of what was prepared")(h.c.StartPrepared(ctx, r))
	if err := h.c.Exited(ctx, run); err != nil {
		t.Errorf("%v\nprepared %+v\nruns %+v", err, run, now)
	}

	// An initialised one has no program that would hear a signal.
	ok(t, h.c.Remove(ctx, r.Name))
	made(t, "create afresh")(h.c.Create(ctx, spec("prepared"), 1))
	r = made(t, "init")(h.c.Init(ctx, r.Name))
	ok(t, h.c.Stop(ctx, r.Name, 10*time.Second))
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.State.Live() {
		t.Errorf("stopped from initialised: %+v", now)
	}
	_, err = h.c.Init(ctx, r.Name)
	line(t, err, nil, r.Name, "fresh")
}

func testPaused(t *testing.T, h *host) {
	ctx := bounded(t)
	r := made(t, "create")(h.c.Create(ctx, spec("paused"), 1))
	r = made(t, "start")(h.c.Start(ctx, r.Name))
	h.serves(t, r)
	ok(t, h.c.Pause(ctx, r.Name))
	ok(t, h.c.Pause(ctx, r.Name))
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.State != podman.Paused || now.Addr() != r.Addr() || now.PID != r.PID {
		t.Errorf("paused %+v, was %+v", now, r)
	}
	ok(t, h.c.Unpause(ctx, r.Name))
	ok(t, h.c.Unpause(ctx, r.Name))
	h.serves(t, r)
	ok(t, h.c.Pause(ctx, r.Name))
	if now := made(t, "start of paused")(h.c.Start(ctx, r.Name)); now.State != podman.Running {
		t.Errorf("start of a paused replica: %+v", now)
	}
	h.serves(t, r)
	ok(t, h.c.Pause(ctx, r.Name))
	ok(t, h.c.Stop(ctx, r.Name, 10*time.Second))
	if now := made(t, "inspect")(h.c.Inspect(ctx, r.Name)); now.State != podman.Exited || now.ExitCode != 0 {
		t.Errorf("stopped from paused: %+v", now)
	}
	line(t, h.c.Pause(ctx, r.Name), nil, r.Name)
}

func testAdopt(t *testing.T, h *host) {
	ctx := bounded(t)
	first := h.open(t)
	s := spec("adopt")
	var want []podman.Replica
	for i := 1; i <= 4; i++ {
		r := made(t, "create")(first.Create(ctx, s, i))
		switch i {
		case 1, 2:
			r = made(t, "start")(first.Start(ctx, r.Name))
			if i == 2 {
				ok(t, first.Pause(ctx, r.Name))
				r.State = podman.Paused
			}
		case 3:
			r = made(t, "init")(first.Init(ctx, r.Name))
		}
		want = append(want, r)
	}
	all, err := h.open(t).List(ctx)
	ok(t, err)
	all = slices.DeleteFunc(all, func(r podman.Replica) bool { return r.Service != "adopt" })
	if len(all) != len(want) {
		t.Fatalf("listed %+v, want %+v", all, want)
	}
	for i, r := range all {
		w := want[i]
		if r.Name != w.Name || r.ID != w.ID || r.Index != i+1 || r.State != w.State || r.PID != w.PID || r.Addr() != w.Addr() || r.SpecHash != s.Hash() || r.Port != 8080 {
			t.Errorf("listed %+v, want %+v", r, w)
		}
	}
	if out := h.pod.CLI(t, "ps", "-a", "--format", "{{.Names}}"); !strings.Contains(out, "anchor") {
		t.Fatalf("no foreign container to leave out: %s", out)
	}
}

func testClash(t *testing.T, h *host) {
	ctx := bounded(t)
	s := spec("clash")
	name := podman.Name("clash", 1)
	h.pod.CLI(t, "create", "--name", name, testenv.Image)
	_, err := h.c.Create(ctx, s, 1)
	line(t, err, podman.ErrSpec, name, "no label sluice.service")
	h.pod.CLI(t, "rm", name)

	// A dead leftover makes way.
	h.pod.CLI(t, "create", "--name", name, "--label", "sluice.service=clash", testenv.Image)
	r := made(t, "create over leftover")(h.c.Create(ctx, s, 1))
	// A prepared one from the same spec is as good as new.
	r = made(t, "init")(h.c.Init(ctx, r.Name))
	if again := made(t, "create again")(h.c.Create(ctx, s, 1)); again.ID != r.ID || again.State != podman.Initialized {
		t.Errorf("create over the like: %+v, was %+v", again, r)
	}
	other := s
	other.Env = map[string]string{"NAME": "other"}
	changed := made(t, "create with another spec")(h.c.Create(ctx, other, 1))
	if changed.ID == r.ID || changed.SpecHash == r.SpecHash {
		t.Errorf("kept the old one: %+v", changed)
	}
	made(t, "start")(h.c.Start(ctx, name))
	if same := made(t, "create over running")(h.c.Create(ctx, other, 1)); same.ID != changed.ID || same.State != podman.Running {
		t.Errorf("create over the like: %+v", same)
	}
	_, err = h.c.Create(ctx, s, 1)
	line(t, err, nil, name, "another configuration", "running")
	if errors.Is(err, podman.ErrSpec) {
		t.Errorf("permanent: %v", err)
	}
}

func testRefused(t *testing.T, h *host) {
	ctx := bounded(t)
	base := spec("refused")
	var wg sync.WaitGroup
	for what, c := range map[string]struct {
		edit  func(*podman.Spec)
		kind  error
		words []string
	}{
		"image never":   {func(s *podman.Spec) { s.Image = "localhost/absent:7" }, podman.ErrImage, []string{"localhost/absent:7", "never"}},
		"image missing": {func(s *podman.Spec) { s.Image, s.Pull = "localhost/absent:8", "" }, podman.ErrImage, []string{"localhost/absent:8", "refused"}},
		"image always":  {func(s *podman.Spec) { s.Image, s.Pull = "localhost/absent:9", "always" }, podman.ErrImage, []string{"localhost/absent:9", "refused"}},
		"image newer":   {func(s *podman.Spec) { s.Image, s.Pull = "localhost/absent:6", "newer" }, podman.ErrImage, []string{"localhost/absent:6", "refused"}},
		"image name":    {func(s *podman.Spec) { s.Image, s.Pull = "not a name", "missing" }, podman.ErrImage, []string{"not a name"}},
		"network":       {func(s *podman.Spec) { s.Network = "nowhere" }, podman.ErrSpec, []string{"network nowhere does not exist", "podman network create nowhere"}},
		"host network":  {func(s *podman.Spec) { s.Network = "host" }, podman.ErrSpec, []string{"host"}},
		"host path":     {func(s *podman.Spec) { s.Volumes = []string{"/nonexistent/path:/x"} }, podman.ErrSpec, []string{"/nonexistent/path"}},
		"volume":        {func(s *podman.Spec) { s.Volumes = []string{"a:b:c:d"} }, podman.ErrSpec, []string{"a:b:c:d"}},
		"port":          {func(s *podman.Spec) { s.Port = 0 }, podman.ErrSpec, []string{"port"}},
	} {
		s := base
		s.Service = "refused-" + strings.ReplaceAll(what, " ", "-")
		c.edit(&s)
		wg.Go(func() { // at once, for Podman tries a registry four times within 3 s
			_, err := h.c.Create(ctx, s, 1)
			t.Logf("%s: %v", what, err)
			line(t, err, c.kind, c.words...)
		})
	}
	wg.Wait()
	ok(t, h.c.Pull(ctx, base))
	base.Pull = "missing"
	ok(t, h.c.Pull(ctx, base))
	base.Pull = "newer" // no registry, but an image at hand
	ok(t, h.c.Pull(ctx, base))
}

func testNetwork(t *testing.T, h *host) {
	ctx := bounded(t)
	n, err := h.c.Network(ctx, "")
	ok(t, err)
	if n.Name != "podman" || n.Driver != "bridge" || n.Bridge == "" || len(n.Subnets) != 1 || n.DNS || n.IPv6 {
		t.Errorf("default network %+v", n)
	}
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.89.77.0/24", "--subnet", "fd77::/64", "dual")
	n, err = h.c.Network(ctx, "dual")
	ok(t, err)
	if want := []netip.Prefix{netip.MustParsePrefix("10.89.77.0/24"), netip.MustParsePrefix("fd77::/64")}; !slices.Equal(n.Subnets, want) || !n.IPv6 {
		t.Errorf("dual stack network %+v", n)
	}
	_, err = h.c.Network(ctx, "nowhere")
	line(t, err, podman.ErrSpec, "nowhere", "podman network create nowhere")

	s := spec("dual")
	s.Network = "dual"
	made(t, "create")(h.c.Create(ctx, s, 1))
	r := made(t, "start")(h.c.Start(ctx, podman.Name("dual", 1)))
	if !n.Subnets[0].Contains(r.Addr4) || !n.Subnets[1].Contains(r.Addr6) {
		t.Errorf("addresses %v, %v", r.Addr4, r.Addr6)
	}
	h.serves(t, r)
	h.serves(t, six(r))

	version, err := h.c.Version(ctx)
	ok(t, err)
	if out := h.pod.CLI(t, "version", "--format", "{{.Client.Version}}"); strings.TrimSpace(out) != version {
		t.Errorf("version %q, podman says %q", version, out)
	}
	ok(t, h.c.Ping(ctx))
}

func testDeath(t *testing.T, h *host) {
	ctx := bounded(t)
	made(t, "create")(h.c.Create(ctx, spec("death"), 1))
	r := made(t, "start")(h.c.Start(ctx, podman.Name("death", 1)))
	died := make(chan error, 1)
	go func() { died <- h.c.Exited(ctx, r) }()

	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if err := h.c.Exited(brief, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("watching a live replica: %v", err)
	}
	p, err := os.FindProcess(r.PID)
	ok(t, err)
	before := time.Now()
	ok(t, p.Kill())
	select {
	case err := <-died:
		ok(t, err)
	case <-time.After(patience):
		t.Fatal("death not noticed")
	}
	t.Logf("noticed after %v", time.Since(before))
	now := made(t, "ended")(h.c.Ended(ctx, r))
	t.Logf("podman knew after %v", time.Since(before))
	if now.State.Live() || now.ExitCode != 137 {
		t.Errorf("after the kill: %+v", now)
	}
	ok(t, h.c.Exited(ctx, r)) // long dead

	// A number that belongs to somebody else by now.
	r.PID = os.Getpid()
	ok(t, h.c.Exited(ctx, r))
}

func testCrash(t *testing.T, h *host) {
	ctx := bounded(t)
	s := spec("crash")
	s.Env["PORT"] = "no port" // the program ends with a message
	made(t, "create")(h.c.Create(ctx, s, 1))
	name := podman.Name("crash", 1)
	r, err := h.c.Start(ctx, name)
	if err == nil { // it lived for as long as the call took
		ok(t, h.c.Exited(ctx, r))
		r, err = h.c.Ended(ctx, r)
		ok(t, err)
	} else {
		line(t, err, nil, name, "exit code 1")
	}
	if r.State.Live() || r.ExitCode != 1 {
		t.Errorf("crashed %+v", r)
	}
	for {
		lines, err := h.c.Logs(ctx, name, 3)
		ok(t, err)
		if len(lines) > 0 {
			if len(lines) > 3 || !strings.Contains(strings.Join(lines, "\n"), "no port") {
				t.Errorf("last words %q", lines)
			}
			break
		}
		ok(t, ctx.Err())
	}
	s.Service = "crashed-command"
	s.Volumes = []string{"/proc/self:/server:ro"} // a directory where the program should be
	made(t, "create")(h.c.Create(ctx, s, 1))
	_, err = h.c.Start(ctx, podman.Name(s.Service, 1))
	t.Log(err)
	line(t, err, nil, s.Service)
}

func testEvents(t *testing.T, h *host) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen := make(chan podman.Event, 64)
	ended := make(chan error, 1)
	since := time.Now()
	made(t, "create")(h.c.Create(ctx, spec("events"), 2)) // before the stream stands
	go func() {
		ended <- h.c.Watch(ctx, since, func(e podman.Event) {
			if e.Service == "events" {
				seen <- e
			}
		})
	}()
	name := podman.Name("events", 2)
	made(t, "init")(h.c.Init(ctx, name))
	r := made(t, "start")(h.c.Start(ctx, name))
	ok(t, h.c.Pause(ctx, name))
	ok(t, h.c.Unpause(ctx, name))
	p, err := os.FindProcess(r.PID)
	ok(t, err)
	ok(t, p.Kill())
	made(t, "ended")(h.c.Ended(ctx, r))
	h.pod.CLI(t, "rename", name, "elsewhere")
	ok(t, h.c.Remove(ctx, r.ID))
	for _, want := range []podman.Action{podman.OnCreate, podman.OnInit, podman.OnStart, podman.OnPause, podman.OnUnpause, podman.OnDeath, podman.OnRename, podman.OnRemove} {
		select {
		case e := <-seen:
			if e.Action != want || e.ID != r.ID || e.Index != 2 || e.Time.Before(since) || e.Action == podman.OnDeath && e.ExitCode != 137 || e.Action < podman.OnRemove && e.Name != name {
				t.Fatalf("event %+v, want %v", e, want)
			}
		case err := <-ended:
			t.Fatalf("stream ended: %v", err)
		case <-ctx.Done():
			t.Fatalf("no event %v", want)
		}
	}
	cancel()
	select {
	case err := <-ended:
		line(t, err, context.Canceled)
	case <-time.After(patience):
		t.Fatal("watch does not end with its context")
	}
}

func testExec(t *testing.T, h *host) {
	ctx := bounded(t)
	made(t, "create")(h.c.Create(ctx, withShell(spec("exec")), 1))
	name := podman.Name("exec", 1)
	_, _, err := h.c.Exec(ctx, name, []string{"/bin/sh", "-c", ":"}, patience)
	line(t, err, nil, name)
	made(t, "start")(h.c.Start(ctx, name))
	code, out, err := h.c.Exec(ctx, name, []string{"/bin/sh", "-c", "echo one; sleep 0.1; echo two >&2; exit 7"}, patience)
	if err != nil || code != 7 || out != "one\ntwo\n" {
		t.Errorf("exec: %d, %q, %v", code, out, err)
	}
	code, out, err = h.c.Exec(ctx, name, []string{"/bin/sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo 12345678; i=$((i+1)); done"}, patience)
	if err != nil || code != 0 || len(out) != 64<<10 {
		t.Errorf("long output: %d, %d bytes, %v", code, len(out), err)
	}
	code, out, err = h.c.Exec(ctx, name, []string{"/nowhere"}, patience)
	if err == nil && code != 127 {
		t.Errorf("exec of nothing: %d, %q, %v", code, out, err)
	}
	_, _, err = h.c.Exec(ctx, name, []string{"/bin/sh", "-c", "echo here; exec sleep 1001"}, 500*time.Millisecond)
	line(t, err, context.DeadlineExceeded, name)
	h.gone(t, "sleep\x001001\x00")
	_, _, err = h.c.Exec(ctx, "sluice-exec-9", []string{"/bin/sh"}, patience)
	line(t, err, podman.ErrGone)
}

// gone waits until no process has this command line.
func (h *host) gone(t *testing.T, cmdline string) {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		found := false
		dirs, err := os.ReadDir("/proc")
		ok(t, err)
		for _, d := range dirs {
			if text, err := os.ReadFile("/proc/" + d.Name() + "/cmdline"); err == nil && string(text) == cmdline {
				found = true
			}
		}
		if !found {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q lives on", cmdline)
		}
	}
}

func testProbe(t *testing.T, h *host) {
	ctx := bounded(t)
	for what, c := range map[string]struct {
		script  string
		healthy bool
	}{
		"good": {"exit 0", true},
		"bad":  {"exit 3", false},
	} {
		s := withShell(spec("probe-" + what))
		s.Health = []string{"/bin/sh", "-c", c.script}
		r := made(t, "create")(h.c.Create(ctx, s, 1))
		made(t, "start")(h.c.Start(ctx, r.Name))
		for range 3 {
			healthy, err := h.c.Probe(ctx, r.Name, patience)
			if err != nil || healthy != c.healthy {
				t.Errorf("probe %s: %v, %v", what, healthy, err)
			}
		}
	}
	s := withShell(spec("probe-hung"))
	s.Health = []string{"/bin/sleep", "1002"}
	r := made(t, "create")(h.c.Create(ctx, s, 1))
	made(t, "start")(h.c.Start(ctx, r.Name))
	_, err := h.c.Probe(ctx, r.Name, 500*time.Millisecond)
	line(t, err, context.DeadlineExceeded, r.Name)
	h.gone(t, "/bin/sleep\x001002\x00")
	h.serves(t, made(t, "inspect")(h.c.Inspect(ctx, r.Name)))
}

func testVolumes(t *testing.T, h *host) {
	ctx := bounded(t)
	dir := t.TempDir()
	ok(t, os.WriteFile(dir+"/word", []byte("from the host"), 0o644))
	s := withShell(spec("volumes"))
	s.Volumes = append(s.Volumes, dir+":/given:ro", "kept:/kept", "/anonymous")
	s.Command = []string{"an", "argument"}
	r := made(t, "create")(h.c.Create(ctx, s, 1))
	made(t, "start")(h.c.Start(ctx, r.Name))
	code, out, err := h.c.Exec(ctx, r.Name, []string{"/bin/sh", "-c",
		"cat /given/word && ! echo x 2>/dev/null >/given/word && echo y >/kept/word && echo z >/anonymous/word && tr '\\0' ' ' </proc/1/cmdline"}, patience)
	if err != nil || code != 0 || !strings.HasPrefix(out, "from the host") || !strings.HasSuffix(out, "/server an argument ") {
		t.Errorf("exec: %d, %q, %v", code, out, err)
	}
	volumes := func() []string { return strings.Fields(h.pod.CLI(t, "volume", "ls", "--quiet")) }
	before := volumes()
	ok(t, h.c.Remove(ctx, r.Name))
	after := volumes()
	if !slices.Contains(after, "kept") || len(after) != len(before)-1 {
		t.Errorf("volumes before removal %q, after %q", before, after)
	}
}

// testParallel starts more replicas at once than may be under way.
func testParallel(t *testing.T, h *host) {
	ctx := bounded(t)
	s := spec("parallel")
	var wg sync.WaitGroup
	addrs := make([]netip.AddrPort, 6)
	for i := range addrs {
		wg.Go(func() {
			r, err := h.c.Create(ctx, s, i+1)
			if err == nil && i%2 == 0 {
				_, err = h.c.Init(ctx, r.Name)
			}
			if err == nil {
				r, err = h.c.Start(ctx, r.Name)
			}
			if err != nil {
				t.Error(err)
				return
			}
			addrs[i] = r.Addr()
		})
	}
	wg.Wait()
	for i, a := range addrs {
		if slices.Index(addrs, a) != i {
			t.Errorf("address given twice: %v", addrs)
		}
	}
}

func testCancelled(t *testing.T, h *host) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := h.c.List(ctx)
	line(t, err, context.Canceled)
	_, err = h.c.Start(ctx, "sluice-cancelled-1")
	line(t, err, context.Canceled)
	if errors.Is(err, podman.ErrUnreachable) {
		t.Errorf("podman blamed: %v", err)
	}
}

// six is the replica with its IPv6 address alone.
func six(r podman.Replica) podman.Replica {
	r.Addr4 = netip.Addr{}
	return r
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
