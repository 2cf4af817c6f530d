package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func command(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
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
	if out, errOut, code := command(t, "--config", path, "check"); code != 0 || !strings.Contains(out, "1 services") {
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
