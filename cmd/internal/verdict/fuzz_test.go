package verdict

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// FuzzLoad: whatever stands in the file is refused whole, or is verdicts that are
// kept as they were read.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{
		`{"services":{"web":{"canary":"c0ffee","verdict":"promoted"},"db":{"canary":"decade","verdict":"aborted"}}}`,
		`{"services":{"web":{"canary":"a","verdict":"perhaps"}}}`, `{"services":{"web":{"verdict":"aborted"}}}`,
		`{"services":null}`, `{}`, `null`, `[]`, ``, `{`, `{"services":{"":{"canary":"\ud800","verdict":"aborted"}}} {}`,
	} {
		f.Add([]byte(s))
	}
	dir := f.TempDir() // of this process: it runs one input at a time
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, file), b, 0o600); err != nil {
			t.Fatal(err)
		}
		all, err := Load(dir)
		if err != nil {
			if all != nil {
				t.Fatalf("%q: %v, and %v", b, err, all)
			}
			return
		}
		for name, v := range all {
			if v.Canary == "" || v.Word != Promoted && v.Word != Aborted {
				t.Fatalf("%q: %q has %+v", b, name, v)
			}
		}
		if err := Save(dir, all); err != nil {
			t.Fatal(err)
		}
		if again, err := Load(dir); err != nil || !maps.Equal(again, all) {
			t.Fatalf("%q: %v became %v, %v", b, all, again, err)
		}
	})
}
