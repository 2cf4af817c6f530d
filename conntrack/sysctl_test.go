package conntrack

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"sluice/testenv"
)

func TestTune(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "tune")
	ns.Sysctl(t, "net.netfilter.nf_conntrack_events", "2")
	ns.Sysctl(t, "net.netfilter.nf_conntrack_acct", "0")
	for round, want := range []int{2, 0} {
		err := ns.Do(func() error {
			changes, err := Tune()
			if len(changes) != want {
				t.Errorf("round %d changed %v", round, changes)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_acct"} {
		if v := ns.GetSysctl(t, key); v != "1" {
			t.Errorf("%s is %s", key, v)
		}
	}
}

func TestTuneErrors(t *testing.T) {
	t.Parallel()
	if _, err := tune(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without conntrack: %v", err)
	}
	root := t.TempDir()
	dir := filepath.Join(root, "net/netfilter")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "nf_conntrack_events"), []byte("2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	changes, err := tune(root)
	if !errors.Is(err, fs.ErrNotExist) || len(changes) != 1 || changes[0] != (Change{"net.netfilter.nf_conntrack_events", "2", "1"}) {
		t.Errorf("%v, %v", changes, err)
	}
}
