package conntrack

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// Change is a kernel setting that Tune has changed.
type Change struct {
	Key      string // as sysctl(8) names it
	Old, New string
}

func (c Change) String() string { return fmt.Sprintf("%s: %s -> %s", c.Key, c.Old, c.New) }

// Tune sets what the counting of flows needs in the calling thread's network
// namespace, and returns what it had to change, nothing if it ran before. It is
// to run before the first flow: both settings act on flows that begin later.
//
//   - net.netfilter.nf_conntrack_events = 1. With 2, the default, a flow that
//     begins while nobody listens never announces its end.
//   - net.netfilter.nf_conntrack_acct = 1, for bytes and packets.
//
// The error is fs.ErrNotExist if the kernel has no conntrack (nf_conntrack is
// not loaded), fs.ErrPermission if it may not be changed from here. What was
// changed before an error is returned with it.
func Tune() ([]Change, error) { return tune("/proc/sys") }

func tune(root string) ([]Change, error) {
	var done []Change
	for _, key := range []string{"net.netfilter.nf_conntrack_events", "net.netfilter.nf_conntrack_acct"} {
		c, err := set(root, key, "1")
		if err != nil {
			return done, err
		}
		if c.Old != c.New {
			done = append(done, c)
		}
	}
	return done, nil
}

func set(root, key, value string) (Change, error) {
	path := root + "/" + strings.ReplaceAll(key, ".", "/")
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Change{}, fmt.Errorf("read %s: kernel has no conntrack, load nf_conntrack: %w", key, err)
	}
	if err != nil {
		return Change{}, fmt.Errorf("read %s: %w", key, err)
	}
	c := Change{Key: key, Old: strings.TrimSpace(string(b)), New: value}
	if c.Old == c.New {
		return c, nil
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return Change{}, fmt.Errorf("set %s=%s: %w", key, value, err)
	}
	return c, nil
}
