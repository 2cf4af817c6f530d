// Package verdict keeps what people have decided about canaries, so that a
// restart of the daemon does not forget it: one JSON document, replaced whole.
package verdict

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Word is a decision. The zero value is none.
type Word string

// The decisions.
const (
	Promoted Word = "promoted" // all replicas are made as the canary's
	Aborted  Word = "aborted"  // none is
)

// A Verdict is about one canary of a service and ends with it.
type Verdict struct {
	Canary string `json:"canary"` // digest of its section in the configuration
	Word   Word   `json:"verdict"`
}

// file is where verdicts stand in the state directory.
const file = "canaries.json"

type document struct {
	Services map[string]Verdict `json:"services"`
}

// Load reads the verdicts, by service, from a state directory. There need be
// neither file nor directory. With an error there is no verdict.
func Load(dir string) (map[string]Verdict, error) {
	data, err := os.ReadFile(filepath.Join(dir, file)) //nolint:gosec // the operator names the directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read verdicts: %w", err)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, fmt.Errorf("read verdicts: %s: %w", filepath.Join(dir, file), err)
	}
	for name, v := range d.Services {
		if v.Word != Promoted && v.Word != Aborted || v.Canary == "" {
			return nil, fmt.Errorf("read verdicts: %s: service %q: no verdict: %+v", filepath.Join(dir, file), name, v)
		}
	}
	return d.Services, nil
}

// Save replaces the verdicts in a state directory, which is made if need be.
// When it returns without an error they outlive a crash of the machine.
func Save(dir string, all map[string]Verdict) error {
	if err := save(dir, all); err != nil {
		return fmt.Errorf("keep verdicts: %w", err)
	}
	return nil
}

func save(dir string, all map[string]Verdict) (err error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	data, err := json.MarshalIndent(document{all}, "", "  ")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, file+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, file)); err != nil {
		return err
	}
	return syncDir(dir) // the rename itself
}

func syncDir(dir string) error {
	d, err := os.Open(dir) //nolint:gosec // the operator names the directory
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Remove deletes the verdicts from a state directory.
func Remove(dir string) error {
	if err := os.Remove(filepath.Join(dir, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove verdicts: %w", err)
	}
	return nil
}
