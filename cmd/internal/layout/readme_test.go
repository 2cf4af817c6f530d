package layout

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sluice/cmd/internal/config"
)

var (
	block = regexp.MustCompile("(?s)```toml\n(.*?)```")
	// A "#" stands before what is shown but not in force, and no space after it.
	entry = regexp.MustCompile(`(?m)^#?(?:\[\[?([a-z.]+)\]|([a-z_]+) *=)`)
	named = regexp.MustCompile(`^service\.[a-z]+`)
)

// TestReadmeConfiguration: what the README shows is a configuration that works,
// and its reference has every key.
func TestReadmeConfiguration(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	blocks := block.FindAllSubmatch(readme, -1)
	if len(blocks) < 2 {
		t.Fatalf("%d configurations in the README, want an example and the reference", len(blocks))
	}
	for _, b := range blocks {
		path := filepath.Join(t.TempDir(), "sluice.toml")
		if err := os.WriteFile(path, b[1], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := config.Load(path); err != nil {
			t.Errorf("the README's configuration is refused: %v\n%s", err, b[1])
		}
		maps.Copy(shown, keys(b[1]))
	}
	reference, err := os.ReadFile(filepath.Join(root, "cmd", "internal", "config", "reference.toml"))
	if err != nil {
		t.Fatal(err)
	}
	want := keys(reference)
	for k := range want {
		if !shown[k] {
			t.Errorf("the README does not show %s", k)
		}
	}
	for k := range shown {
		if !want[k] {
			t.Errorf("the README shows %s, which the reference does not have", k)
		}
	}
}

// TestReadmePackages: the README tells where all code is, and of none that has
// gone.
func TestReadmePackages(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	readme, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := bytes.Cut(readme, []byte("\n## The code\n"))
	shown := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z/]+)/`").FindAllSubmatch(text, -1) {
		shown[string(m[1])] = true
	}
	delete(shown, "cmd/internal")
	for dir, in := range map[string]string{".": "", "cmd": "cmd/", "cmd/internal": ""} {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			name := in + e.Name()
			files, err := filepath.Glob(filepath.Join(root, dir, e.Name(), "*.go"))
			if err != nil {
				t.Fatal(err)
			}
			if len(files) > 0 && !shown[name] {
				t.Errorf("the README does not tell of %s/", name)
			}
			if len(files) > 0 {
				delete(shown, name)
			}
		}
	}
	for name := range shown {
		t.Errorf("the README tells of %s/, which there is not", name)
	}
}

// keys finds the keys of a configuration, with their tables. All services are
// one.
func keys(toml []byte) map[string]bool {
	found, table := map[string]bool{}, ""
	for _, m := range entry.FindAllSubmatch(toml, -1) {
		if len(m[1]) > 0 {
			table = named.ReplaceAllString(string(m[1]), "service.web") + "."
			continue
		}
		found[table+string(m[2])] = true
	}
	return found
}
