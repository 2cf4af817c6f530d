package podman

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"strings"
	"testing"
	"time"
)

func TestHash(t *testing.T) {
	t.Parallel()
	base := func() Spec {
		return Spec{Service: "web", Image: "localhost/nginx:1", Port: 80,
			Command: []string{"-g", "daemon off;"}, Env: map[string]string{"A": "1", "B": "2"},
			Volumes: []string{"/srv:/srv:ro"}, Memory: 256 << 20, CPUs: 0.5}
	}
	// The label outlives the daemon: a change of this value replaces every
	// replica at the next update.
	const want = "41cf83be0f21"
	if got := base().Hash(); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	for what, edit := range map[string]func(*Spec){
		"pull policy":     func(s *Spec) { s.Pull = "always" },
		"default network": func(s *Spec) { s.Network = DefaultNetwork },
		"empty health":    func(s *Spec) { s.Health = []string{} },
	} {
		s := base()
		if edit(&s); s.Hash() != want {
			t.Errorf("%s changes the hash", what)
		}
	}
	seen := map[string]string{want: "nothing"}
	for what, edit := range map[string]func(*Spec){
		"service":      func(s *Spec) { s.Service = "db" },
		"image":        func(s *Spec) { s.Image = "localhost/nginx:2" },
		"port":         func(s *Spec) { s.Port = 81 },
		"command":      func(s *Spec) { s.Command = []string{"-g daemon", "off;"} },
		"no command":   func(s *Spec) { s.Command = nil },
		"env value":    func(s *Spec) { s.Env["A"] = "2" },
		"env name":     func(s *Spec) { s.Env["C"] = "" },
		"volumes":      func(s *Spec) { s.Volumes = append(s.Volumes, "/a:/b") },
		"network":      func(s *Spec) { s.Network = "net" },
		"memory":       func(s *Spec) { s.Memory++ },
		"cpus":         func(s *Spec) { s.CPUs = 0.25 },
		"health":       func(s *Spec) { s.Health = []string{"true"} },
		"stop timeout": func(s *Spec) { s.StopTimeout = time.Second },
		"not a number": func(s *Spec) { s.CPUs = math.NaN() },
	} {
		s := base()
		edit(&s)
		if other, ok := seen[s.Hash()]; ok {
			t.Errorf("%s: same hash as %s", what, other)
		}
		seen[s.Hash()] = what
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := Spec{Service: "web-1.x_y", Image: "nginx", Port: 80, Volumes: []string{"/a:/b:ro,Z", "data:/data", "/scratch"}, CPUs: 0.01}
	if err := good.Check(); err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string]func(*Spec){
		"service empty":    func(s *Spec) { s.Service = "" },
		"service slash":    func(s *Spec) { s.Service = "a/b" },
		"service dash":     func(s *Spec) { s.Service = "-a" },
		"image":            func(s *Spec) { s.Image = " " },
		"port":             func(s *Spec) { s.Port = 0 },
		"memory":           func(s *Spec) { s.Memory = -1 },
		"cpus small":       func(s *Spec) { s.CPUs = 0.001 },
		"cpus negative":    func(s *Spec) { s.CPUs = -1 },
		"cpus NaN":         func(s *Spec) { s.CPUs = math.NaN() },
		"cpus infinite":    func(s *Spec) { s.CPUs = math.Inf(1) },
		"stop timeout":     func(s *Spec) { s.StopTimeout = -1 },
		"pull":             func(s *Spec) { s.Pull = "sometimes" },
		"network host":     func(s *Spec) { s.Network = "host" },
		"network options":  func(s *Spec) { s.Network = "net:ip=10.0.0.1" },
		"network mode":     func(s *Spec) { s.Network = "container:x" },
		"volume relative":  func(s *Spec) { s.Volumes = []string{"./a:/b"} },
		"volume parts":     func(s *Spec) { s.Volumes = []string{"a:b:c:d"} },
		"volume option":    func(s *Spec) { s.Volumes = []string{"/a:/b:fast"} },
		"volume twice":     func(s *Spec) { s.Volumes = []string{"/a:/b", "/c:/b"} },
		"volume no source": func(s *Spec) { s.Volumes = []string{":/b"} },
	} {
		s := good
		edit(&s)
		if err := s.Check(); !errors.Is(err, ErrSpec) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestGenerator(t *testing.T) {
	t.Parallel()
	s := Spec{Service: "web", Image: "nginx", Port: 80, Memory: 64 << 20, CPUs: 1.5, StopTimeout: 1500 * time.Millisecond,
		Volumes: []string{"/z:/z", "named:/n:ro", "/a:/a"}, Health: []string{"/check", "it"}}
	g, err := s.generator(2)
	if err != nil {
		t.Fatal(err)
	}
	if *g.ResourceLimits.Memory.Limit != 64<<20 || *g.ResourceLimits.CPU.Quota != 150000 || *g.ResourceLimits.CPU.Period != 100000 {
		t.Errorf("limits %+v", g.ResourceLimits)
	}
	if *g.StopTimeout != 2 || g.RestartPolicy != "no" || g.HealthConfig.Interval != 0 || strings.Join(g.HealthConfig.Test, " ") != "CMD /check it" {
		t.Errorf("stop %d, restart %q, health %+v", *g.StopTimeout, g.RestartPolicy, g.HealthConfig)
	}
	if len(g.Mounts) != 2 || g.Mounts[0].Destination != "/a" || g.Mounts[1].Destination != "/z" || len(g.Volumes) != 1 || g.Volumes[0].Name != "named" {
		t.Errorf("mounts %+v, volumes %+v", g.Mounts, g.Volumes)
	}
	if _, err := s.generator(0); !errors.Is(err, ErrSpec) {
		t.Errorf("index 0: %v", err)
	}
	plain, err := Spec{Service: "web", Image: "nginx", Port: 80}.generator(1)
	if err != nil || plain.HealthConfig.Test[0] != "NONE" || plain.ResourceLimits != nil || plain.StopTimeout != nil {
		t.Errorf("plain %+v, %v", plain, err)
	}
}

func TestOneLine(t *testing.T) {
	t.Parallel()
	id := strings.Repeat("0123456789abcdef", 4)
	for in, want := range map[string]string{
		"":                             "",
		"a\n\tb\r\n  c ":               "a b c",
		"container " + id + " is":      "container 0123456789ab is",
		"/x/libpod-" + id + "/y":       "/x/libpod-0123456789ab/y",
		id + "0":                       id + "0",
		strings.Repeat("ä", 300):       strings.Repeat("ä", 200) + "...",
		"x" + strings.Repeat("ä", 300): "x" + strings.Repeat("ä", 199) + "...",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestStateWords(t *testing.T) {
	t.Parallel()
	for s := Unknown; s <= Removing; s++ {
		if got := stateOf(s.String()); got != s {
			t.Errorf("stateOf(%q) = %v", s, got)
		}
	}
	if stateOf("configured") != Created || stateOf("") != Unknown {
		t.Error("words that are not our own")
	}
	for a := OnCreate; a <= OnRename; a++ {
		if got := actionOf(a.String()); got != a {
			t.Errorf("actionOf(%q) = %v", a, got)
		}
	}
}

func TestDecodeEvents(t *testing.T) {
	t.Parallel()
	const stream = `
{"Type":"container","Action":"died","Actor":{"ID":"1","Attributes":{"containerExitCode":"2","name":"sluice-a-1","sluice.service":"a","sluice.index":"1"}},"time":1795244816,"timeNano":1795244816347667397}
{"Type":"container","Action":"exec_died","Actor":{"ID":"1","Attributes":{"name":"sluice-a-1","sluice.service":"a"}},"timeNano":1795244816347667398}
{"Type":"container","Action":"start","Actor":{"ID":"2","Attributes":{"name":"other"}},"timeNano":1795244816347667398}
{"Type":"container","Action":"start","Actor":{"ID":"0","Attributes":{"name":"sluice-a-1","sluice.service":"a"}},"timeNano":1795244816347667396}
{"Type":"image","Action":"remove","Actor":{"ID":"3","Attributes":{"sluice.service":"a"}},"time":1795244817}
{"Type":"container","Action":"remove","Actor":{"ID":"1","Attributes":{"name":"sluice-a-1","sluice.service":"a","sluice.index":"x"}},"time":1795244817}
`
	var got []Event
	since := time.Unix(0, 1795244816347667396)
	err := decodeEvents(strings.NewReader(stream), since, func(e Event) { got = append(got, e) })
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("end of stream: %v", err)
	}
	want := []Event{
		{Action: OnDeath, ID: "1", Name: "sluice-a-1", Service: "a", Index: 1, ExitCode: 2, Time: time.Unix(0, 1795244816347667397)},
		{Action: OnRemove, ID: "1", Name: "sluice-a-1", Service: "a", Time: time.Unix(1795244817, 0)},
	}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func FuzzDemux(f *testing.F) {
	frame := func(channel byte, text string) []byte {
		b := []byte{channel, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint32(b[4:], uint32(len(text)))
		return append(b, text...)
	}
	f.Add(append(frame(1, "out"), frame(2, "err")...))
	f.Add(frame(3, "podman's words"))
	f.Add(frame(1, "cut short")[:12])
	f.Add([]byte{9, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, in []byte) {
		total := 0
		err := demux(bytes.NewReader(in), func(b []byte) { total += len(b) })
		if total > len(in) {
			t.Errorf("%d bytes out of %d", total, len(in))
		}
		if err == nil && len(in) > 0 && len(in) < 8 {
			t.Error("a cut header is not an error")
		}
	})
}

func TestDemux(t *testing.T) {
	t.Parallel()
	in := []byte{1, 0, 0, 0, 0, 0, 0, 2, 'a', 'b', 2, 0, 0, 0, 0, 0, 0, 1, 'c', 3, 0, 0, 0, 0, 0, 0, 4, 'f', '\n', 'o', 'o'}
	var out []byte
	err := demux(bytes.NewReader(in), func(b []byte) { out = append(out, b...) })
	if string(out) != "abc" || err == nil || err.Error() != "f oo" {
		t.Errorf("%q, %v", out, err)
	}
	if err := demux(bytes.NewReader(in[:9]), func([]byte) {}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut frame: %v", err)
	}
}

func TestLanes(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	l := newLanes(3)
	var leave []func()
	enter := func(f func(context.Context) (func(), error)) {
		t.Helper()
		done, err := f(ctx)
		if err != nil {
			t.Fatal(err)
		}
		leave = append(leave, done)
	}
	enter(l.init)
	enter(l.init)
	// The third lane is not for inits: another waits, and gives up with its
	// context, while a start passes by.
	waited := make(chan error, 1)
	third, stop := context.WithCancel(ctx)
	go func() {
		_, err := l.init(third)
		waited <- err
	}()
	enter(l.start)
	select {
	case err := <-waited:
		t.Fatalf("third init: %v", err)
	default:
	}
	stop()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("third init: %v", err)
	}
	// All taken: a start waits until one leaves.
	started := make(chan error, 1)
	go func() {
		done, err := l.start(ctx)
		if err == nil {
			done()
		}
		started <- err
	}()
	leave[0]()
	if err := <-started; err != nil {
		t.Errorf("start after an init left: %v", err)
	}
	enter(l.init)
	leave[2]()
	leave[1]()
	leave[3]()
	if len(l.all) != 0 || len(l.inits) != 0 {
		t.Errorf("lanes not given back: %d, %d", len(l.all), len(l.inits))
	}
	cancel()
	if n := newLanes(0); cap(n.all) != 4 || cap(n.inits) != 3 {
		t.Errorf("default %d, %d", cap(n.all), cap(n.inits))
	}
	if n := newLanes(1); cap(n.all) != 1 || cap(n.inits) != 1 {
		t.Errorf("one %d, %d", cap(n.all), cap(n.inits))
	}
}
