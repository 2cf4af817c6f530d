// Package layout holds the repository to its import rules.
package layout

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "sluice"

// parts are the packages that import none of each other.
var parts = []string{"sluice/nft", "sluice/conntrack", "sluice/podman", "sluice/policy", "sluice/testenv"}

type pkg struct {
	ImportPath                         string
	Standard                           bool
	Deps                               []string
	Imports, TestImports, XTestImports []string
}

// list asks the go tool. The tags matter to Podman's bindings only, which no
// rule is about, but without them their dependencies cannot be listed.
func list(t *testing.T, args ...string) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=ImportPath,Standard,Deps,Imports,TestImports,XTestImports",
		"-tags=remote,containers_image_openpgp,exclude_graphdriver_btrfs"}, args...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	found := map[string]pkg{}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return found
		} else if err != nil {
			t.Fatal(err)
		}
		found[p.ImportPath] = p
	}
}

func ours(path string) bool { return path == module || strings.HasPrefix(path, module+"/") }

func TestPartsImportNoneOfEachOther(t *testing.T) {
	t.Parallel()
	found := list(t, parts...)
	for _, name := range parts {
		p, ok := found[name]
		if !ok || len(p.Deps) == 0 {
			t.Fatalf("go list does not know %s", name)
		}
		for _, d := range p.Deps {
			if ours(d) {
				t.Errorf("%s depends on %s", name, d)
			}
		}
		for _, d := range slices.Concat(p.TestImports, p.XTestImports) {
			if ours(d) && d != name && d != "sluice/testenv" {
				t.Errorf("a test of %s imports %s", name, d)
			}
		}
	}
}

func TestPolicyIsPure(t *testing.T) {
	t.Parallel()
	for path, p := range list(t, "-deps", "sluice/policy") {
		if !p.Standard && path != "sluice/policy" {
			t.Errorf("policy depends on %s", path)
		}
	}
	// What a pure function has no use for. (time is for instants that are
	// passed in; that none is asked for is a matter of review.)
	for _, d := range list(t, "sluice/policy")["sluice/policy"].Imports {
		if slices.Contains([]string{"os", "net", "net/http", "sync", "context", "syscall", "os/exec", "io"}, d) {
			t.Errorf("policy imports %s", d)
		}
	}
}

// TestLogOnlyInCommands: parts return errors, commands log.
func TestLogOnlyInCommands(t *testing.T) {
	t.Parallel()
	for path, p := range list(t, module+"/...") {
		if strings.HasPrefix(path, module+"/cmd/") {
			continue
		}
		if slices.Contains(p.Imports, "github.com/rs/zerolog") {
			t.Errorf("%s logs", path)
		}
	}
}
