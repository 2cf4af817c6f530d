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
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"

	"sluice/cmd/internal/admin"
	"sluice/nft"
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
// and change weights, harm no connection and leave nothing behind: neither one
// of a service that stays as it is nor one of the service whose weights change.
func TestManyReloads(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	n := testenv.NewBackendNet(t, h.Host, 3)
	for _, b := range n.Backends {
		testenv.StartServer(t, b.NS)
	}
	variant := func(some int, weights [3]int) string {
		text := web("min = 2\nmax = 2\nidle = \"5m\"", "", "")
		text += fmt.Sprintf("[service.fixed]\nlisten = [\"%s:81/tcp\"]\n", address)
		for i, b := range n.Backends {
			text += fmt.Sprintf("[[service.fixed.backend]]\naddress = \"%s:8080\"\nweight = %d\n", b.Addr4, weights[i])
		}
		for j := range 5 {
			if (some>>j)&1 != 0 {
				text += named(fmt.Sprintf("s%d", j), 100+j+(some/32)%2, fmt.Sprintf("idle = \"%ds\"", 1+some%7))
			}
		}
		return text
	}
	last := [3]int{1, 2, 1}
	d := h.start(t, h.configure(t, variant(0, last)))
	d.untilReady(t, "web", 2)
	d.untilReady(t, "fixed", 3)

	clients := newCrowd(h.Client, map[string]string{"web": address + ":80", "fixed": address + ":81"})
	client := admin.Dial(d.admin())
	reload := func(text string) {
		t.Helper()
		h.configure(t, text)
		ctx, cancel := context.WithTimeout(t.Context(), patient)
		defer cancel()
		if err := client.Reload(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// many reloads so often, under traffic, and tells what is left afterwards.
	many := func(from, to int) (footing, int64, []testenv.Element) {
		t.Helper()
		began := time.Now()
		var all []*callers
		for _, name := range []string{"web", "fixed"} {
			all = append(all, clients.visit(name, 2, 2, 10*time.Millisecond))
		}
		for i := from; i < to; i++ {
			reload(variant(i, [3]int{1 + i%3, 3 - i%3, i % 2 * 2}))
		}
		for _, c := range all {
			c.end()
		}
		t.Logf("%d reloads in %s", to-from, time.Since(began).Round(time.Millisecond))
		reload(variant(0, last))
		d.services(t, "fixed", "web")
		testenv.Eventually(t, patient, func() (bool, string) {
			st, err := client.Status(t.Context())
			return err == nil && st.Services[0].Flows+st.Services[1].Flows == 0, "connections are left"
		})
		_, resident := d.usage(t)
		elements := slices.DeleteFunc(testenv.Elements(t, h.Host, nft.Name), func(e testenv.Element) bool { return e.Timeout })
		return d.footing(t), resident, elements
	}
	before, memory, elements := many(0, 100)               // the first fill what is kept
	testenv.Eventually(t, patient, func() (bool, string) { // whole rounds, once the kernel has the weights
		var got [3]int
		for range 40 {
			who := testenv.WhoAnswered(t, h.Client, address+":81").Name
			got[slices.IndexFunc(n.Backends, func(b *testenv.Backend) bool { return b.Name == who })]++
		}
		return got == [3]int{10, 20, 10}, fmt.Sprintf("%v of 40 connections for weights %v", got, last)
	})
	after, resident, elements2 := many(100, 500)
	t.Logf("after 100 reloads: %v, %d KiB resident; after 500: %v, %d KiB", before, memory>>10, after, resident>>10)
	if after.descriptors > before.descriptors+4 || after.goroutines > before.goroutines+8 || after.heap > before.heap+4<<20 || resident > memory+16<<20 {
		t.Error("something has grown")
	}
	if !slices.Equal(elements, elements2) {
		t.Errorf("the table has\n%v\nand had\n%v", elements2, elements)
	}
	made := map[string]int{}
	for _, c := range clients.since(time.Time{}) {
		made[c.service+", "+c.kind]++
		if c.err != nil {
			t.Error(c)
		}
	}
	t.Log(made)
	for _, name := range []string{"web, short", "web, long", "web, bulk", "fixed, short", "fixed, long", "fixed, bulk"} {
		if made[name] == 0 {
			t.Errorf("no connections: %s", name)
		}
	}
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
