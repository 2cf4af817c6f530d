package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/urfave/cli/v2"
)

// one at a time: the flag of --help is one for all of a process.
var one sync.Mutex

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	var out, errOut bytes.Buffer
	code = run(context.Background(), append([]string{"sluice"}, args...), &out, &errOut)
	return out.String(), errOut.String(), code
}

// TestUsage: what is wrong with a call is one line on standard error, exit 2.
func TestUsage(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{
		{"fly"}, {"--fly"}, {"check", "extra"}, {"run", "extra"}, {"scale", "web"}, {"scale", "web", "many"},
		{"scale", "web", "-1"}, {"wake"}, {"drain"}, {"drain", "a", "b", "c"}, {"status", "a", "b"}, {"status", "-o", "xml"},
		{"status", "--fly"}, {"cleanup", "extra"}, {"status", "a", "-o", "xml"}, {"simulate"}, {"simulate", "web", "-o", "xml"},
	} {
		out, errOut, code := command(t, args...)
		if code != 2 || strings.Count(errOut, "\n") != 1 || out != "" {
			t.Errorf("sluice %v: exit %d, stdout %q, stderr %q", args, code, out, errOut)
		}
	}
	if out, _, code := command(t, "version"); code != 0 || !strings.HasPrefix(out, "sluice ") {
		t.Errorf("version: exit %d: %q", code, out)
	}
	if out, _, code := command(t, "--help"); code != 0 || !strings.Contains(out, "cleanup") {
		t.Errorf("--help: exit %d: %q", code, out)
	}
	if _, errOut, code := command(t, "--admin", filepath.Join(t.TempDir(), "none.sock"), "status"); code != 1 || strings.Count(errOut, "\n") != 1 {
		t.Errorf("status without a daemon: exit %d: %q", code, errOut)
	}
}

// TestWords: who has made a mistake reads what it was.
func TestWords(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.toml")
	if err := os.WriteFile(bad, []byte("x = 1\ny = 2\nz = 3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none.toml")
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"canary", "promote"}, "usage: sluice canary promote SERVICE"},
		{[]string{"canary"}, "usage: sluice canary promote|abort|resume SERVICE"},
		{[]string{"scale", "web"}, "usage: sluice scale SERVICE N"},
		{[]string{"status", "-o"}, "flag needs an argument: -o: see 'sluice status --help'"},
		{[]string{"canary", "abort", "--fly", "web"}, "see 'sluice canary --help'"},
		{[]string{"--fly"}, "see 'sluice --help'"},
		{[]string{"wake", "web", "--config", none}, "--config goes before the command"},
		{[]string{"wake", "web", "--admin", none}, "--admin goes before the command"},
		{[]string{"--admin", none, "status"}, "not reached at " + none + " (connect: no such file or directory): is 'sluice run' running"},
		{[]string{"--config", none, "reload"}, "not reached at " + defaultAdmin + " ("},
		{[]string{"--config", none, "reload"}, "the default, for the configuration cannot be read: " + none + ": open"},
		{[]string{"--config", bad, "status"}, "the default, for the configuration cannot be read: " + bad + ":1: x: "},
		{[]string{"--config", bad, "status"}, "(and 2 more: see 'sluice check')"},
	} {
		if c.args[0] == "--config" {
			if _, err := os.Stat(defaultAdmin); err == nil {
				continue // a daemon may be there
			}
		}
		if _, errOut, code := command(t, c.args...); code == 0 || !strings.Contains(errOut, c.want) || strings.Count(errOut, "\n") != 1 {
			t.Errorf("sluice %v: exit %d: %q, want %q", c.args, code, errOut, c.want)
		}
	}
}

// TestReadmeCommands: the README names every command and no other, and only
// flags that there are.
func TestReadmeCommands(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	app := newApp(io.Discard, io.Discard)
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `sluice ([a-z]+)([^`]*)`").FindAllSubmatch(text, -1) {
		name := string(m[1])
		shown[name] = true
		cmd := app.Command(name)
		if cmd == nil {
			t.Errorf("the README tells of the command %s, which there is not", name)
			continue
		}
		for _, sub := range cmd.Subcommands {
			if !strings.Contains(string(m[2]), sub.Name) {
				t.Errorf("the README does not tell of %s %s", name, sub.Name)
			}
		}
	}
	for _, cmd := range app.Commands {
		if !shown[cmd.Name] {
			t.Errorf("the README does not tell of the command %s", cmd.Name)
		}
	}
	for _, m := range regexp.MustCompile("sluice ([a-z]+)([^`\n]* --?[a-z][^`\n]*)").FindAllSubmatch(text, -1) {
		cmd := app.Command(string(m[1]))
		if cmd == nil {
			continue
		}
		for _, flag := range regexp.MustCompile(`[ []--?([a-z][a-z-]*)`).FindAllSubmatch(m[2], -1) {
			if !slices.ContainsFunc(cmd.Flags, func(f cli.Flag) bool { return slices.Contains(f.Names(), string(flag[1])) }) && string(flag[1]) != "help" {
				t.Errorf("the README tells of sluice %s --%s, which there is not", m[1], flag[1])
			}
		}
	}
}

// TestCheck: a good file is ok; a wrong one is refused with file, line and
// key by check and by run alike.
func TestCheck(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "sluice.toml")
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(web("", "", ""))
	if out, errOut, code := command(t, "--config", path, "check"); code != 0 || !strings.Contains(out, "ok, 1 service\n") {
		t.Errorf("check of a good file: exit %d: %s%s", code, out, errOut)
	}
	write(web("max = \"many\"", "", ""))
	for _, verb := range []string{"check", "run"} {
		_, errOut, code := command(t, "--config", path, verb)
		if code != 2 || !strings.HasPrefix(errOut, path+":") || !strings.Contains(errOut, "service.web.scale.max") || strings.Count(errOut, "\n") != 1 {
			t.Errorf("%s of a wrong file: exit %d: %q", verb, code, errOut)
		}
	}
}

// TestAdminMode: nobody but root and the socket's group can open the admin
// socket, or put another in its place, whatever the umask.
func TestAdminMode(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.by = []string{"sh", "-c", `umask 0 && exec "$0" "$@"`}
	path := filepath.Join(h.dir, "run", "admin.sock")
	d := h.launchCommand(t, h.command(t, "--config", h.configure(t, ""), "--admin", path, "run"))
	d.wait(t, func(l line) bool { return l.field("message") == "ready" })
	for of, want := range map[string]os.FileMode{path: os.ModeSocket | 0o660, filepath.Dir(path): os.ModeDir | 0o755} {
		info, err := os.Stat(of)
		if err != nil {
			t.Fatal(err)
		}
		if owner := info.Sys().(*syscall.Stat_t); info.Mode() != want || owner.Uid != 0 || owner.Gid != 0 {
			t.Errorf("%s: %v of %d:%d, want %v of root", of, info.Mode(), owner.Uid, owner.Gid, want)
		}
	}
}
