package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// The services of a stage are called what they are when a fault comes.
const (
	inCold     = "cold"
	inWaking   = "waking"
	inWarm     = "warm"
	inDraining = "draining"
)

// stageNet is the network of all of them.
const stageNet = "stage"

func stagePhases() []string { return []string{inCold, inWaking, inWarm, inDraining} }

// A stage is a host with one service in each phase, and its clients.
type stage struct {
	*host
	manager *manager // nil: nobody keeps anything while there is no daemon
	d       *proc
	config  string
	clients *crowd

	filled   int      // see fill
	networks int      // see addNetwork
	version  int      // of warm's containers
	torn     bool     // entries of open connections were deleted
	victim   string   // the replica of draining that drains
	steady   *callers // of warm
	others   *callers // of draining, at its other replica
	pinned   *callers // those whose connections it drains for
}

func stageAddr(service string) string {
	return fmt.Sprintf("192.0.2.%d", 10+slices.Index(stagePhases(), service))
}

// newStage brings up the services that stay as they are for many faults: warm
// and draining. The others are put to sleep again after each.
func newStage(t *testing.T, g faultGroup) *stage {
	t.Helper()
	s := &stage{host: newHost(t)}
	if g.small {
		s.shrink(t)
	}
	addrs := map[string]string{}
	for _, name := range stagePhases() {
		addrs[name] = stageAddr(name) + ":80"
		if stageAddr(name) != address { // which the host has
			s.Host.AddAddr(t, stageAddr(name)+"/32", "lo")
		}
	}
	s.clients = newCrowd(s.Client, addrs)
	if g.relayed {
		s.relay = newPodmanRelay(t, s.pod, s.dir)
	}
	if g.watched {
		s.warden = newWarden(t)
	}
	if g.managed {
		s.manager = newManager(t, s.host)
	}
	s.addNetwork(t)
	s.config = s.write(t)
	s.d = s.begin(t)
	s.until(t, inWarm, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	t.Cleanup(s.goHome)
	s.drainOne(t)
	s.visitWarm()
	return s
}

// begin starts the daemon and waits until it is ready.
func (s *stage) begin(t *testing.T) *proc {
	t.Helper()
	if s.manager != nil {
		return s.manager.start(t, s.host, s.config)
	}
	return s.start(t, s.config)
}

// addNetwork makes the network, each time with other addresses: what is left of
// the one before may have them still.
func (s *stage) addNetwork(t *testing.T) {
	t.Helper()
	s.networks++
	s.pod.CLI(t, "network", "create", "--subnet", s.prefix()+"0.0/16", "--disable-dns", stageNet)
}

// prefix is what the addresses on the network begin with.
func (s *stage) prefix() string { return fmt.Sprintf("172.%d.", 16+s.networks%16) }

// onNetwork says whether a replica is on the network: one that was started in
// the moment of its removal is on the one before, which Podman knows no more.
func (s *stage) onNetwork(b control.BackendStatus) bool {
	return strings.HasPrefix(b.Address, s.prefix())
}

func (s *stage) visitWarm() {
	if s.steady != nil {
		s.steady.end()
	}
	s.steady = s.clients.visit(inWarm, 1, 4, 20*time.Millisecond)
}

// goHome ends the clients.
func (s *stage) goHome() {
	for _, c := range []*callers{s.steady, s.others, s.pinned} {
		if c != nil {
			c.end()
		}
	}
}

// write writes the configuration.
func (s *stage) write(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[daemon]\npodman = %q\nadmin = %q\nmetrics = \"127.0.0.1:9464\"\nlog_level = \"debug\"\nlog_format = \"json\"\n", s.uri(), s.admin())
	for _, name := range stagePhases() {
		scale, env := "max = 3", ""
		switch name {
		case inWaking:
			env = `LISTEN_DELAY = "1200ms"`
		case inWarm:
			scale, env = "min = 2\nmax = 4", fmt.Sprintf(`VERSION = "%d"`, s.version)
		case inDraining:
			scale = "min = 1\nmax = 3"
		}
		fmt.Fprintf(&b, `
[service.%[1]s]
listen = ["%[2]s:80/tcp"]
[service.%[1]s.container]
image = "%[3]s"
port = 8080
network = "`+stageNet+`"
pull = "never"
stop_timeout = "1s"
env = { %[4]s }
[service.%[1]s.scale]
%[5]s
idle = "5m"
[service.%[1]s.health]
interval = "500ms"
timeout = "2s"
[service.%[1]s.drain]
timeout = "5m"
`, name, stageAddr(name), testenv.Image, env, scale)
	}
	path := filepath.Join(s.dir, "sluice.toml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// drainOne gives a replica of draining some long connections, and then the
// order to drain.
func (s *stage) drainOne(t *testing.T) {
	t.Helper()
	for _, c := range []*callers{s.pinned, s.others} {
		if c != nil {
			c.end()
		}
	}
	// A replica that drained for connections that are lost may linger.
	st := s.until(t, inDraining, "one replica", func(st control.ServiceStatus) bool {
		return st.Phase == "warm" && len(st.Backends) == 1 && st.Backends[0].Weight > 0
	})
	s.victim = st.Backends[0].Name
	id := s.idOf(t, s.victim)
	ctx, cancel := context.WithCancel(context.Background())
	s.pinned = &callers{stop: cancel}
	up := make(chan string, 3)
	for range cap(up) {
		s.pinned.done.Go(func() { s.clients.long(ctx, inDraining, up) })
	}
	for range cap(up) {
		select {
		case name := <-up:
			if name != id {
				t.Fatalf("a connection went to %s, want %s", name, id)
			}
		case <-time.After(patient):
			t.Fatal("no connection to the replica that is to drain")
		}
	}
	s.order(t, inDraining, "drain?backend="+s.victim)
	s.until(t, inDraining, "a draining replica", s.isDraining)
	s.others = s.clients.visit(inDraining, 1, 2, 20*time.Millisecond)
}

func (s *stage) isDraining(st control.ServiceStatus) bool {
	return st.Phase == "warm" && slices.ContainsFunc(st.Backends, func(b control.BackendStatus) bool {
		return b.Name == s.victim && b.State == "draining" && b.Flows >= 3
	})
}

func (s *stage) order(t *testing.T, service, order string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	if err := admin.Dial(s.admin()).Order(ctx, service, order); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) status(t *testing.T, service string) control.ServiceStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	st, err := admin.Dial(s.admin()).Status(ctx, service)
	if err != nil {
		t.Fatal(err)
	}
	return st.Services[0]
}

func (s *stage) until(t *testing.T, service, what string, ok func(control.ServiceStatus) bool) (st control.ServiceStatus) {
	t.Helper()
	testenv.Eventually(t, patient, func() (bool, string) {
		st = s.status(t, service)
		return ok(st), fmt.Sprintf("waiting for %s: %+v", what, st)
	})
	return st
}

// backend is a replica of a service by its name; the zero value if it has none.
func backend(st control.ServiceStatus, name string) (b control.BackendStatus) {
	for _, b := range st.Backends {
		if b.Name == name {
			return b
		}
	}
	return b
}

// idOf is how a container names itself in its answers.
func (s *stage) idOf(t *testing.T, name string) string {
	t.Helper()
	return s.pod.CLI(t, "inspect", "--format", "{{.Id}}", name)[:12]
}

// pidOf is the process of a container.
func (s *stage) pidOf(t *testing.T, name string) (pid int) {
	t.Helper()
	if _, err := fmt.Sscan(s.pod.CLI(t, "inspect", "--format", "{{.State.Pid}}", name), &pid); err != nil {
		t.Fatal(err)
	}
	return pid
}

// asleepAgain puts a service to sleep that has no clients any more.
func (s *stage) asleepAgain(t *testing.T, service string) {
	t.Helper()
	s.order(t, service, "drain")
	s.until(t, service, "sleep", asleep)
}
