package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containers/podman/v5/pkg/systemd/parser"
	"github.com/containers/podman/v5/pkg/systemd/quadlet"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestPrivileges: the daemon does all its work with the capabilities of its
// systemd unit, and nothing to write to where that says so, and with one
// capability less it does not.
func TestPrivileges(t *testing.T) {
	t.Parallel()
	caps := unit(t, "sluice.service").LookupAllStrv("Service", "CapabilityBoundingSet")
	if in := unit(t, "sluice.container").LookupAllStrv("Container", "AddCapability"); !slices.Equal(in, caps) {
		t.Errorf("the Quadlet has %v, the service %v", in, caps)
	}
	h := newHost(t)
	config := h.configure(t, everything(h, t))
	h.by = slices.Concat(readOnly(unit(t, "sluice.service").LookupAllStrv("Service", "ReadOnlyPaths")), confine(caps))
	d := h.start(t, config)
	d.all(t)
	d.signal(t, 15)
	d.end(t)
	h.must(t, "cleanup", "--containers")

	for _, c := range caps {
		t.Run("without "+c, func(t *testing.T) {
			h.by = confine(slices.DeleteFunc(slices.Clone(caps), func(s string) bool { return s == c }))
			out, errOut, code := h.sluice(t, "run")
			if lines := strings.Split(strings.TrimSpace(errOut), "\n"); code != 1 || !strings.Contains(lines[len(lines)-1], c) {
				t.Errorf("exit %d, want 1 and a last line about %s: %s%s", code, c, out, errOut)
			}
		})
	}
}

// TestQuadlet: the daemon does all its work inside a container that is made as
// its Quadlet says: read-only, three capabilities, its own seccomp profile.
func TestQuadlet(t *testing.T) {
	t.Parallel()
	profile, err := filepath.Abs("seccomp.json")
	if err != nil {
		t.Fatal(err)
	}
	contained(t, profile)
}

// contained runs the daemon as the Quadlet says, but for the seccomp profile.
func contained(t *testing.T, profile string) {
	t.Helper()
	h := newHost(t)
	etc, state := shortDir(t), shortDir(t)
	config := filepath.Join(etc, "sluice.toml")
	if err := os.Rename(h.configure(t, everything(h, t)), config); err != nil {
		t.Fatal(err)
	}
	u := unit(t, "sluice.container")
	name, err := quadlet.GetUnitServiceName(u)
	if err != nil {
		t.Fatal(err)
	}
	info := map[string]*quadlet.UnitInfo{u.Filename: {ServiceName: name, ResourceName: quadlet.GetContainerResourceName(u)}}
	service, warnings, err := quadlet.ConvertContainer(u, info, false)
	if err != nil || warnings != nil {
		t.Fatal(err, warnings)
	}
	line, ok := service.LookupLast("Service", "ExecStart")
	if !ok {
		t.Fatal("no ExecStart")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// What differs here: where files are, the program (this one, and what it
	// is linked with), no systemd above, and perhaps lower limits.
	sockets := filepath.Dir(strings.TrimPrefix(h.pod.URI(), "unix://"))
	place := map[string]string{
		"/etc/sluice:/etc/sluice:ro":                      etc + ":" + etc + ":ro",
		"/run/sluice:/run/sluice":                         h.dir + ":" + h.dir,
		"/var/lib/sluice:/var/lib/sluice":                 state + ":" + h.state(),
		"/run/podman/podman.sock:/run/podman/podman.sock": sockets + ":" + sockets,
		"seccomp=/etc/sluice/seccomp.json":                "seccomp=" + profile,
	}
	args := []string{"run", "-d", "--entrypoint", `["/sluice","--config","` + config + `"]`, "-e", asSluice + "=1",
		"-v", exe + ":/sluice:ro", "-v", "/lib:/lib:ro", "-v", "/lib64:/lib64:ro", "-v", "/usr/lib:/usr/lib:ro"}
	words := strings.Fields(line)
	for i := 2; i < len(words); i++ { // after "podman run"
		w := words[i]
		switch {
		case w == "-d", w == "--replace", w == "--rm", strings.HasPrefix(w, "--cgroups="), strings.HasPrefix(w, "--sdnotify="):
			continue
		case w == "--ulimit":
			i++
			continue
		case w == "localhost/sluice:latest":
			w = testenv.Image
		case place[w] != "":
			w = place[w]
			delete(place, words[i])
		}
		args = append(args, w)
	}
	if len(place) > 0 {
		t.Errorf("the Quadlet does not have %v", place)
	}
	h.pod.CLI(t, args...)
	testenv.Eventually(t, patient, func() (bool, string) {
		_, err := admin.Dial(h.admin()).Status(t.Context())
		return err == nil, fmt.Sprintf("%v: %s", err, containerLog(t, h.pod, "sluice"))
	})
	h.cover(t)
	log := containerLog(t, h.pod, "sluice")
	for _, bad := range []string{`"level":"warn"`, `"level":"error"`, "epoll"} {
		if strings.Contains(log, bad) {
			t.Errorf("the log has %s:\n%s", bad, log)
		}
	}
	h.pod.CLI(t, "stop", "sluice")
}

// containerLog is what a container has written to either stream.
func containerLog(t *testing.T, pod *testenv.Podman, name string) string {
	t.Helper()
	path := strings.TrimSpace(pod.CLI(t, "inspect", "--format", "{{.HostConfig.LogConfig.Path}}", name))
	b, err := pod.Command(t.Context(), "cat", path).Output() // it lives in the instance's memory
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// unit reads a unit file of this folder.
func unit(t *testing.T, name string) *parser.UnitFile {
	t.Helper()
	u, err := parser.ParseUnitFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// readOnly is a program that runs another which cannot write to these paths.
func readOnly(paths []string) []string {
	return slices.Concat([]string{"unshare", "--mount", "--propagation", "private", "sh", "-ec",
		`for p in $0; do mount --rbind "$p" "$p"; mount -o remount,bind,ro "$p"; done; exec "$@"`, strings.Join(paths, " ")})
}

// confine is a program that runs another with these capabilities at most.
func confine(caps []string) []string {
	set := "-all"
	for _, c := range caps {
		set += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return []string{"setpriv", "--no-new-privs", "--bounding-set", set, "--inh-caps", "-all"}
}

// everything configures services that need each of the daemon's powers.
func everything(h *host, t *testing.T) string {
	t.Helper()
	h.pod.CLI(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "dual")
	var b strings.Builder
	one := func(name, listen, keys, env, scale string) {
		fmt.Fprintf(&b, "[service.%s]\nlisten = [%q]\n%s\n[service.%s.container]\nimage = %q\nport = 8080\npull = \"never\"\n"+
			"stop_timeout = \"2s\"\nnetwork = \"dual\"\nenv = { %s }\n[service.%s.scale]\n%s\n", name, listen, keys, name, testenv.Image, env, name, scale)
	}
	one("stop", ":80/tcp", "", "", "")
	one("pause", ":81/tcp", "", "", "idle = \"1s\"\nsleep = \"pause\"")
	one("relay", ":82/tcp", "handover = \"relay\"", "", "")
	one("prepared", ":83/tcp", "forward = \"proxy\"", "", "idle = \"1s\"\nsleep = \"prepared\"")
	one("datagram", address+":80/udp", "", `PORT = "0", UDP_PORT = "8080"`, "")
	return b.String()
}

// all has the daemon do everything, and looks for complaints in its log.
func (d *proc) all(t *testing.T) {
	t.Helper()
	d.cover(t)
	for _, l := range d.log.Since(0) {
		if lv := l.field("level"); lv == "warn" || lv == "error" || strings.Contains(l.text, "cannot be watched") {
			t.Errorf("the log has: %s", l.text)
		}
	}
}

func (h *host) cover(t *testing.T) {
	t.Helper()
	for _, port := range []string{"80", "81", "82", "83"} {
		for _, from := range []struct {
			ns   *testenv.NS
			addr string
		}{{h.Client, address}, {h.Client, "[" + h.HostAddr6.String() + "]"}, {h.Host, "127.0.0.1"}, {h.Host, "[::1]"}} {
			testenv.WhoAnswered(t, from.ns, from.addr+":"+port)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	conn, err := h.Client.Dial(ctx, "udp", address+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := exchange(t, conn, "hello"); !strings.HasSuffix(strings.TrimSpace(got), "hello") {
		t.Errorf("answer by UDP: %q", got)
	}
	testenv.Eventually(t, patient, func() (bool, string) {
		st := h.service(t, "stop")
		return st.HandedOver == 1 && st.Relayed == 1, fmt.Sprintf("held connections: %+v", st) // one by [::1]
	})
	testenv.Eventually(t, patient, func() (bool, string) {
		st := h.service(t, "pause")
		return pausedOne(st), fmt.Sprintf("%+v", st)
	})
	testenv.WhoAnswered(t, h.Client, address+":81")
}

func (h *host) service(t *testing.T, name string) control.ServiceStatus {
	t.Helper()
	st, err := admin.Dial(h.admin()).Status(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Services[0]
}
