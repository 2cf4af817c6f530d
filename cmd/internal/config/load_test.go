package config

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// write makes files in a directory of its own and returns that directory.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// loadText loads one file and returns its errors without the directory.
func loadText(t *testing.T, files map[string]string) (*Config, string) {
	t.Helper()
	dir := write(t, files)
	c, err := Load(filepath.Join(dir, "sluice.toml"))
	if err == nil {
		return c, ""
	}
	var errs Errors
	if !errors.As(err, &errs) || c != nil {
		t.Fatalf("Load = %v, %T, want nil and Errors", c, err)
	}
	return nil, strings.ReplaceAll(err.Error(), dir+"/", "")
}

// mustLoad loads one good file.
func mustLoad(t *testing.T, text string) *Config {
	t.Helper()
	c, errs := loadText(t, map[string]string{"sluice.toml": text})
	if errs != "" {
		t.Fatalf("refused:\n%s", errs)
	}
	return c
}

// shipped loads a copy of a file of this package, whoever owns the original.
func shipped(t *testing.T, name string) *Config {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return mustLoad(t, string(text))
}

func TestMinimal(t *testing.T) {
	t.Parallel()
	c := shipped(t, "minimal.toml")
	want := defaultService("web")
	want.Listen = []Listen{{netip.MustParseAddr("192.0.2.10"), 80, TCP}}
	container := defaultContainer()
	container.Image, container.Port = "localhost/web:1", 80
	want.Container = &container
	if !reflect.DeepEqual(c, &Config{Daemon: defaultDaemon(), Services: []Service{want}}) {
		t.Errorf("Load(minimal.toml) = %+v", c)
	}
}

// The reference holds the defaults: with them written out, the result is the
// same as without.
func TestReferenceHoldsDefaults(t *testing.T) {
	t.Parallel()
	minimal, reference := shipped(t, "minimal.toml"), shipped(t, "reference.toml")
	if !reflect.DeepEqual(reference, minimal) {
		t.Errorf("reference.toml is not the defaults:\n got %+v\nwant %+v", reference, minimal)
	}
}

// inForce returns reference.toml with all that stands behind "#" put in
// force, and the setting it is an alternative to removed. forward = "proxy" is
// left out: it excludes others.
func inForce(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("reference.toml")
	if err != nil {
		t.Fatal(err)
	}
	key := func(line string) string {
		k, _, _ := strings.Cut(line, "=")
		return strings.TrimSpace(k)
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#forward = ") {
			continue
		}
		if len(line) > 1 && line[0] == '#' && line[1] != ' ' && line[1] != '\n' {
			line = line[1:]
			if last := len(out) - 1; line[0] != '[' && key(out[last]) == key(line) {
				out = out[:last]
			}
		}
		out = append(out, line)
	}
	return strings.Join(out, "")
}

// Every key that the decoder asks for stands in the reference.
func TestReferenceIsComplete(t *testing.T) {
	t.Parallel()
	root, err := parse("reference.toml", []byte(inForce(t)))
	if err != nil {
		t.Fatal(err)
	}
	r := &report{}
	top := &table{r: r, file: "reference.toml", n: root}
	decodeDaemon(top.sub("daemon"), &Daemon{})
	s := defaultService("web")
	decodeService(top.sub("service").sub("web"), &s)

	sameAsContainer := "service.web.canary.container"
	seen := map[string]bool{}
	var walk func(*table)
	walk = func(tb *table) {
		if tb.path == sameAsContainer || tb.names {
			return
		}
		for _, key := range tb.known {
			if tb.has(key) {
				seen[dot(tb.path, key)] = true
			} else if !strings.Contains(tb.path, "backend[") {
				t.Errorf("reference.toml lacks %s", dot(tb.path, key))
			}
		}
		for _, sub := range tb.subs {
			walk(sub)
		}
	}
	walk(top)
	for _, key := range []string{"backend[0].address", "backend[0].weight", "backend[0].priority", "backend[1].srv", "scale.utilization"} {
		if !seen["service.web."+key] {
			t.Errorf("reference.toml lacks %s", key)
		}
	}
	if len(r.errs) > 0 {
		t.Errorf("reference.toml with everything in force: %v", r.errs)
	}
}

// What stands behind "#" in the reference is valid.
func TestReferenceInForce(t *testing.T) {
	t.Parallel()
	s := mustLoad(t, inForce(t)).Services[0]
	if s.Canary == nil || s.Canary.Percent != 10 || s.Canary.Container.Port != 80 || len(s.Backends) != 2 || len(s.Listen) != 3 || !s.Listen[2].Wildcard() ||
		s.Scale.StopAfter != time.Hour || s.Allow[0] != netip.MustParsePrefix("198.51.100.0/24") ||
		s.Backends[0].Addr != netip.MustParseAddrPort("10.1.2.3:5432") || s.Backends[1].SRV != "_pg._tcp.example.org" {
		t.Errorf("%+v", s)
	}
}

func TestEverythingSet(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, `
service.b.listen = ["127.0.0.1:1/tcp"]
service.b.container = { image = "registry.example.org:5000/team/b@sha256:`+strings.Repeat("a", 64)+`", port = 1 }

[daemon]
podman = "unix:///tmp/p.sock"
admin = "/tmp/a.sock"
metrics = ""
state = "/tmp/state"
log_level = "debug"
log_format = "json"

[service.a]
listen = [
  "192.0.2.10:80/tcp",   # one
  "192.0.2.10:443/tcp",
]
handover = "relay"
[service.a.container]
image = "localhost/a"
port = 0x1F90
command = ["serve", "-v", ""]
env = { A = "1", "discovery.type" = "single-node" }
volumes = ["/srv:/data:ro,Z", "cache:/var/cache"]
network = "web_net"
memory = "1.5g"
cpus = 0.5
pull = "never"
stop_timeout = "0s"
[service.a.scale]
min = 1
max = 1
flows_per_replica = 0
rate_per_replica = 2.5
utilization = 0.7
stable_window = "10s"
panic_window = "10s"
idle = "100ms"
sleep = "prepared"
[service.a.start]
timeout = "1m"
backlog = 65535
[service.a.health]
type = "exec"
command = ["/check", "now"]
interval = "100ms"
timeout = "1s"
rise = 2
fall = 1
[service.a.drain]
timeout = "0s"
`)
	if c.Daemon != (Daemon{"unix:///tmp/p.sock", "/tmp/a.sock", "", "/tmp/state", LogDebug, LogJSON}) {
		t.Errorf("daemon = %+v", c.Daemon)
	}
	if len(c.Services) != 2 || c.Services[0].Name != "a" || c.Services[1].Name != "b" {
		t.Fatalf("services = %+v", c.Services)
	}
	want := defaultService("a")
	want.Listen = []Listen{{netip.MustParseAddr("192.0.2.10"), 80, TCP}, {netip.MustParseAddr("192.0.2.10"), 443, TCP}}
	want.Handover = HandoverRelay
	want.Container = &Container{
		Image: "localhost/a", Port: 8080, Command: []string{"serve", "-v", ""},
		Env:     map[string]string{"A": "1", "discovery.type": "single-node"},
		Volumes: []Volume{{"/srv", "/data", []string{"ro", "Z"}}, {"cache", "/var/cache", nil}},
		Network: "web_net", Memory: 3 << 29, CPUs: 0.5, Pull: PullNever,
	}
	want.Scale = Scale{
		Min: 1, Max: 1, RatePerReplica: 2.5, Utilization: 0.7, StableWindow: 10 * time.Second, PanicWindow: 10 * time.Second,
		Idle: 100 * time.Millisecond, IdleCounts: IdleFlows, Sleep: SleepPrepared,
	}
	want.Start = Start{time.Minute, 65535}
	want.Health = Health{HealthExec, "/", []string{"/check", "now"}, 100 * time.Millisecond, time.Second, 2, 1}
	want.Drain = Drain{}
	if !reflect.DeepEqual(c.Services[0], want) {
		t.Errorf("service a:\n got %+v\nwant %+v", c.Services[0], want)
	}
}

func TestEmpty(t *testing.T) {
	t.Parallel()
	c := mustLoad(t, "")
	if !reflect.DeepEqual(c, &Config{Daemon: defaultDaemon()}) {
		t.Errorf("Load of an empty file = %+v", c)
	}
}

func service(name, addr string) string {
	return fmt.Sprintf("[service.%s]\nlisten = [%q]\ncontainer = { image = \"localhost/%s\", port = 80 }\n", name, addr, name)
}

func TestConfD(t *testing.T) {
	t.Parallel()
	c, errs := loadText(t, map[string]string{
		"sluice.toml":        "[daemon]\nlog_level = \"warn\"\n" + service("m", "192.0.2.1:80/tcp"),
		"conf.d/20-b.toml":   service("a", "192.0.2.2:80/tcp"),
		"conf.d/10-a.toml":   service("z", "192.0.2.3:80/tcp") + "[daemon]\nmetrics = \"\"\n",
		"conf.d/.swap.toml":  "not TOML",
		"conf.d/README":      "not TOML",
		"conf.d/b.toml.save": "not TOML",
	})
	if errs != "" {
		t.Fatal(errs)
	}
	var names []string
	for _, s := range c.Services {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"a", "m", "z"}) {
		t.Errorf("services %v, want sorted by name", names)
	}
	if c.Daemon.LogLevel != LogWarn || c.Daemon.Metrics != "" {
		t.Errorf("daemon = %+v", c.Daemon)
	}
}

// Problems are reported in the order of loading, all in one pass.
func TestConfDErrors(t *testing.T) {
	t.Parallel()
	_, got := loadText(t, map[string]string{
		"sluice.toml":      service("m", "192.0.2.1:80/tcp") + "[daemon]\nmetrics = \"\"\n",
		"conf.d/20-b.toml": "[daemon]\nadmin = \"x\"\nmetrics = \"\"\n" + service("a", "192.0.2.1:80/tcp") + service("m", "192.0.2.9:80/tcp"),
		"conf.d/10-a.toml": "\nnot TOML",
		"conf.d/30-c.toml": service("c", "192.0.2.1:80/tcp"),
	})
	want := `conf.d/10-a.toml:2: not valid TOML: expected '=' after key
conf.d/20-b.toml:2: daemon.admin: must be an absolute path, got "x"
conf.d/20-b.toml:3: daemon.metrics: is already set in sluice.toml:5: keep one of them
conf.d/20-b.toml:5: service.a.listen: "192.0.2.1:80/tcp" clashes with "192.0.2.1:80/tcp" of service.m (sluice.toml:2): change the address or the port of one
conf.d/20-b.toml:7: service.m: is already defined in sluice.toml:1: keep one of them
conf.d/30-c.toml:2: service.c.listen: "192.0.2.1:80/tcp" clashes with "192.0.2.1:80/tcp" of service.m (sluice.toml:2): change the address or the port of one`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

func TestFiles(t *testing.T) {
	t.Parallel()
	dir := write(t, map[string]string{
		"open/sluice.toml":     "",
		"opendir/sluice.toml":  "",
		"opendir/conf.d/x":     "",
		"notdir/sluice.toml":   "",
		"notdir/conf.d":        "",
		"isdir/sluice.toml/x":  "",
		"huge/sluice.toml":     "",
		"partly/sluice.toml":   "x",
		"partly/conf.d/a.toml": "",
		"all/sluice.toml":      "",
		"sticky/sluice.toml":   "",
		"theirs/sluice.toml":   "",
		"theirs/conf.d/a.toml": "",
		"home/sluice.toml":     "",
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.Chmod(at("open/sluice.toml"), 0o666),
		os.Chmod(at("opendir/conf.d"), 0o777|os.ModeSticky),
		os.Truncate(at("huge/sluice.toml"), maxFileSize+1),
		os.Chmod(at("partly/conf.d/a.toml"), 0o602),
		os.Chmod(at("all"), 0o777),
		os.Chmod(at("sticky"), 0o777|os.ModeSticky),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := map[string]string{
		"none/sluice.toml":    "none/sluice.toml: open: no such file or directory",
		"open/sluice.toml":    "open/sluice.toml: may be written by every user (mode 0666): run chmod o-w open/sluice.toml",
		"opendir/sluice.toml": "opendir/conf.d: may be written by every user (mode 0777): run chmod o-w opendir/conf.d",
		"notdir/sluice.toml":  "notdir/conf.d: open: not a directory",
		"isdir/sluice.toml":   "isdir/sluice.toml: read: is a directory",
		"huge/sluice.toml":    "huge/sluice.toml: is larger than 64 MiB",
		"partly/sluice.toml": "partly/sluice.toml:1: not valid TOML: expected '=' after key\n" +
			"partly/conf.d/a.toml: may be written by every user (mode 0602): run chmod o-w partly/conf.d/a.toml",
		"all/sluice.toml": "all: may be written by every user (mode 0777): run chmod o-w all",
	}
	if os.Geteuid() == 0 { // nobody else can give files away
		for _, name := range []string{"theirs/sluice.toml", "theirs/conf.d", "home"} {
			if err := os.Chown(at(name), 1234, 0); err != nil {
				t.Fatal(err)
			}
		}
		tests["home/sluice.toml"] = "home: belongs to user 1234, who may change it: run chown root home"
		tests["theirs/sluice.toml"] = "theirs/sluice.toml: belongs to user 1234, who may change it: run chown root theirs/sluice.toml\n" +
			"theirs/conf.d: belongs to user 1234, who may change it: run chown root theirs/conf.d"
	}
	if _, err := Load(at("sticky/sluice.toml")); err != nil {
		t.Errorf("a file of one's own in a directory such as /tmp: %v", err)
	}
	for name, want := range tests {
		_, err := Load(at(name))
		var errs Errors
		if !errors.As(err, &errs) {
			t.Errorf("%s: %v, want Errors", name, err)
			continue
		}
		if got := strings.ReplaceAll(err.Error(), dir+"/", ""); got != want {
			t.Errorf("%s:\n got %s\nwant %s", name, got, want)
		}
	}
}

// A large configuration is loaded whole; BenchmarkLoad10000 tells how fast.
func TestMany(t *testing.T) {
	t.Parallel()
	const n = 10_000
	var b strings.Builder
	for i := range n {
		b.WriteString(service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.%d.%d.1:80/tcp", i>>8, i&255)))
	}
	if c := mustLoad(t, b.String()); len(c.Services) != n {
		t.Errorf("%d services, want %d", len(c.Services), n)
	}
}

func BenchmarkLoad10000(b *testing.B) {
	var text strings.Builder
	for i := range 10_000 {
		text.WriteString(service(fmt.Sprintf("s%d", i), fmt.Sprintf("10.%d.%d.1:80/tcp", i>>8, i&255)))
	}
	path := filepath.Join(write(b, map[string]string{"sluice.toml": text.String()}), "sluice.toml")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Load(path); err != nil {
			b.Fatal(err)
		}
	}
}

func TestListenString(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"192.0.2.10:80/tcp", "[2001:db8::10]:80/udp", ":80/tcp"} {
		l, err := parseListen(s)
		if err != nil || l.String() != s {
			t.Errorf("parseListen(%q) = %v, %v", s, l, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for _, name := range []string{"minimal.toml", "reference.toml"} {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	for _, w := range slices.Sorted(maps.Keys(wrong())) {
		f.Add([]byte(wrong()[w].text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		lines := strings.Count(string(data), "\n") + 1
		l := loader{report: report{order: map[string]int{}}}
		l.parse("f.toml", data)
		c, err := decode(&l.report, l.files)
		if err == nil {
			if c == nil {
				t.Fatal("neither a configuration nor an error")
			}
			return
		}
		var errs Errors
		if !errors.As(err, &errs) || len(errs) == 0 {
			t.Fatalf("error of type %T", err)
		}
		for _, e := range errs {
			if e.Line < 1 || e.Line > lines || e.Msg == "" || strings.ContainsAny(e.Error(), "\n") {
				t.Errorf("%d lines, error %+v", lines, e)
			}
		}
	})
}
