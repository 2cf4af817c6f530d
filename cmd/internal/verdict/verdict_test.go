package verdict

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestKeep(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state", "sluice")
	if all, err := Load(dir); err != nil || len(all) != 0 {
		t.Fatalf("without a directory: %v, %v", all, err)
	}
	want := map[string]Verdict{"web": {"c0ffee", Promoted}, "db": {"decade", Aborted}}
	for range 2 {
		if err := Save(dir, want); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(dir); err != nil || !maps.Equal(got, want) {
			t.Fatalf("got %v, %v, want %v", got, err, want)
		}
		delete(want, "db")
	}
	if e, err := os.ReadDir(dir); err != nil || len(e) != 1 {
		t.Errorf("left in the directory: %v, %v", e, err)
	}
	for range 2 {
		if err := Remove(dir); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := Load(dir); err != nil || len(got) != 0 {
		t.Errorf("after Remove: %v, %v", got, err)
	}
}

// TestBroken: a file that says nothing certain says nothing, with a reason.
func TestBroken(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, text := range []string{"", "{", `{"services":{"web":{"canary":"a","verdict":"perhaps"}}}`, `{"services":{"web":{"verdict":"aborted"}}}`, `[]`} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(dir); len(got) != 0 || err == nil || !strings.Contains(err.Error(), filepath.Join(dir, file)) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	// A directory that cannot be made.
	if err := Save(filepath.Join(dir, file, "state"), nil); err == nil {
		t.Error("saved below a file")
	}
}
