package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/fsnotify/fsnotify"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// services waits until the daemon has exactly these.
func (d *proc) services(t *testing.T, names ...string) {
	t.Helper()
	testenv.Eventually(t, patient, func() (bool, string) {
		st, err := admin.Dial(d.admin()).Status(context.Background())
		if err != nil {
			return false, err.Error()
		}
		var got []string
		for _, s := range st.Services {
			got = append(got, s.Name)
		}
		return fmt.Sprint(got) == fmt.Sprint(names), fmt.Sprintf("services %v, want %v", got, names)
	})
}

// named is a second service like web, on another port.
func named(name string, port int, scale string) string {
	s := web(scale, "", "")
	s = strings.ReplaceAll(s, "service.web", "service."+name)
	return strings.Replace(s, ":80/tcp", fmt.Sprintf(":%d/tcp", port), 1)
}

// TestReload: a saved file is in force, a bad one changes nothing and says
// why, a removed service drains without harm to its flows, and one that stays
// is not touched.
func TestReload(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	d := h.awake(t)
	conn := h.hold(t)
	table := func() string { return h.Host.Run(t, "nft", "-a", "list", "map", "inet", "sluice", "first4") }
	before := table()

	h.configure(t, web(`idle = "5m"`, "", "")+named("more", 81, "")) // saved: nothing else is done
	d.services(t, "more", "web")
	testenv.WhoAnswered(t, h.Client, address+":81")
	from := d.mark()
	h.configure(t, strings.Replace(web("", "", ""), `"192.0.2.10:80/tcp"`, "7", 1))
	l := d.waitFrom(t, from, func(l line) bool { return strings.Contains(l.field("message"), "not reloaded") })
	if !strings.Contains(l.field("error"), "service.web.listen") {
		t.Errorf("the log does not say why: %s", l.text)
	}
	st, err := admin.Dial(d.admin()).Status(context.Background())
	if err != nil || !strings.Contains(st.ConfigError, "service.web.listen") || len(st.Services) != 2 {
		t.Errorf("status after a bad file: %+v, %v", st, err)
	}
	if _, errOut, code := h.sluice(t, "reload"); code == 0 || !strings.Contains(errOut, "service.web.listen") {
		t.Errorf("reload of a bad file: exit %d: %s", code, errOut)
	}
	if v, ok := h.metrics(t)["sluice_config_last_reload_successful"]; !ok || v != 0 {
		t.Error("the metric says that the bad file is in force")
	}

	// The address of one service moves to another, and one goes.
	h.configure(t, named("other", 81, ""))
	h.must(t, "reload")
	if got := testenv.WhoAnswered(t, h.Client, address+":81"); got.Name == "" {
		t.Error("nobody answers at the moved address")
	}
	if err := h.knock(t); err == nil {
		t.Error("the removed service still accepts")
	}
	if _, err := io.ReadFull(conn, make([]byte, 16)); err != nil {
		t.Errorf("the flow of the removed service was cut: %v", err)
	}
	_ = conn.Close()
	d.services(t, "other")

	h.configure(t, web(`idle = "5m"`, "", "")+named("other", 81, ""))
	h.must(t, "reload")
	if before == "" {
		t.Error("no map")
	}
	testenv.WhoAnswered(t, h.Client, address+":80")
	after := table()
	h.must(t, "reload")
	if got := table(); got != after {
		t.Errorf("a reload of the same file has changed the table:\n%s\nbefore:\n%s", got, after)
	}
}

// TestManyReloads: five hundred reloads that add, remove and change services,
// under traffic, harm no request and leave nothing behind.
func TestManyReloads(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	base := web("min = 2\nmax = 2\nidle = \"5m\"", "", "")
	d := h.start(t, h.configure(t, base))
	d.until(t, "two replicas", func(st control.ServiceStatus) bool { return st.Ready == 2 })
	variant := func(i int) string {
		text := base
		for j := range 5 {
			if (i>>j)&1 != 0 {
				text += named(fmt.Sprintf("s%d", j), 100+j+(i/32)%2, fmt.Sprintf("idle = \"%ds\"", 1+i%7))
			}
		}
		return text
	}
	usage := func() (fds int, goroutines float64, elements string) {
		h.configure(t, base)
		h.must(t, "reload")
		d.services(t, "web")
		e, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		words := strings.FieldsFunc(h.Host.Run(t, "nft", "list", "table", "inet", "sluice"), func(r rune) bool { return strings.ContainsRune(" ,\t\n", r) })
		slices.Sort(words) // elements come in no order
		return len(e), h.metrics(t)["go_goroutines"], strings.Join(words, " ")
	}
	fds, goroutines, elements := usage()

	var requests, stop atomic.Int64
	failed := make(chan error, 1)
	go func() {
		for stop.Load() == 0 {
			if _, err := h.tryGet("/who"); err != nil {
				failed <- err
				return
			}
			requests.Add(1)
		}
		failed <- nil
	}()
	client := admin.Dial(d.admin())
	for i := range 500 {
		h.configure(t, variant(i))
		ctx, cancel := context.WithTimeout(context.Background(), patient)
		if err := client.Reload(ctx); err != nil {
			t.Fatalf("reload %d: %v", i, err)
		}
		cancel()
	}
	stop.Store(1)
	if err := <-failed; err != nil {
		t.Errorf("a request failed: %v", err)
	}
	t.Logf("%d requests during 500 reloads", requests.Load())
	testenv.Eventually(t, patient, func() (bool, string) {
		fds2, goroutines2, elements2 := usage()
		return fds2 <= fds && elements2 == elements && goroutines2 <= goroutines+5,
			fmt.Sprintf("%d descriptors, were %d; %.0f goroutines, were %.0f; table\n%s\nwas\n%s", fds2, fds, goroutines2, goroutines, elements2, elements)
	})
}

// TestReloadTruncated: a file that is cut off and not written yet does not end
// the services it had; what is written then is put in force, and so is an empty
// file if a reload is asked for.
func TestReloadTruncated(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, web("idle = \"5m\"", "", ""))
	d := h.start(t, config)
	h.get(t, "/who")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	from := d.mark()
	if err := os.Truncate(config, 0); err != nil {
		t.Fatal(err)
	}
	d.waitFrom(t, from, func(l line) bool { return strings.Contains(l.field("error"), "the file is empty") })
	if out := h.must(t, "status"); !strings.Contains(out, "the file is empty") || !strings.Contains(out, "warm") {
		t.Errorf("status: %s", out)
	}
	h.get(t, "/who")
	if err := os.WriteFile(config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	d.waitFrom(t, from, func(l line) bool { return l.field("message") == "configuration reloaded" && l.field("services") == "1" })
	if out := h.must(t, "status"); strings.Contains(out, "the file is empty") {
		t.Errorf("status: %s", out)
	}
	if err := os.Truncate(config, 0); err != nil {
		t.Fatal(err)
	}
	h.must(t, "reload")
	d.waitFrom(t, from, func(l line) bool { return l.field("message") == "configuration reloaded" && l.field("services") == "0" })
}

// TestReloadAdmin: --admin goes before daemon.admin in what is read again too,
// and is no change of [daemon].
func TestReloadAdmin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	config := h.configure(t, "")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, bytes.Replace(text, []byte(h.admin()), []byte("/nowhere/admin.sock"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	d := h.launchCommand(t, h.command(t, "--config", config, "--admin", h.admin(), "run"))
	d.wait(t, func(l line) bool { return l.field("message") == "ready" })
	h.must(t, "reload")
	d.wait(t, func(l line) bool { return l.field("message") == "configuration reloaded" })
	if d.has(0, func(l line) bool { return strings.Contains(l.field("message"), "changes in [daemon]") }) {
		t.Error("said that [daemon] has changed")
	}
}

// TestConfigurationFiles: what an editor leaves beside a file is no part of the
// configuration: neither is it looked at when it is saved, nor missed when it is
// cut off.
func TestConfigurationFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	r := &reloader{source: source{path: filepath.Join(dir, "sluice.toml")}}
	var want []string
	for name, counts := range map[string]bool{
		"sluice.toml": true, "conf.d/a.toml": true, "conf.d/.a.toml": false, "conf.d/a.toml~": false, "other.toml": false,
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if counts {
			want = append(want, path)
		}
		if got := r.concerns(fsnotify.Event{Name: path, Op: fsnotify.Write}); got != counts {
			t.Errorf("%s concerns: %v, want %v", name, got, counts)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "conf.d/empty.toml"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got := r.full()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files with content: %v, want %v", got, want)
	}
}
