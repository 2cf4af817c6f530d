package layout

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"sluice/cmd/internal/config"
)

var (
	block = regexp.MustCompile("(?s)```toml\n(.*?)```")
	entry = regexp.MustCompile(`(?m)^(?:\[([a-z.]+)\]|([a-z_]+) *=)`)
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

// keys finds the keys of a configuration, with their tables.
func keys(toml []byte) map[string]bool {
	found, table := map[string]bool{}, ""
	for _, m := range entry.FindAllSubmatch(toml, -1) {
		if len(m[1]) > 0 {
			table = string(m[1]) + "."
			continue
		}
		found[table+string(m[2])] = true
	}
	return found
}
