package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// No configuration is that long; /dev/zero is.
const maxFileSize = 64 << 20

// Load reads path and the files conf.d/*.toml beside it. Any error is of type
// [Errors] and holds all problems found.
func Load(path string) (*Config, error) {
	l := loader{report: report{order: map[string]int{}}}
	l.read(path)
	l.home(filepath.Dir(path))
	l.readDir(filepath.Join(filepath.Dir(path), "conf.d"))
	return decode(&l.report, l.files)
}

type loader struct {
	report
	files []source
}

// source is one parsed file.
type source struct {
	name string
	root *node
}

// read reads and parses one file.
func (l *loader) read(name string) {
	l.order[name] = len(l.order)
	data, err := readFile(name)
	if err != nil {
		l.fileError(name, err)
		return
	}
	l.parse(name, data)
}

func (l *loader) parse(name string, data []byte) {
	root, err := parse(name, data)
	var e Error
	if errors.As(err, &e) {
		l.errs = append(l.errs, e)
		return
	}
	l.files = append(l.files, source{name, root})
}

func (l *loader) fileError(name string, err error) {
	// The name is in front of the message already.
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = fmt.Errorf("%s: %w", pe.Op, pe.Err)
	}
	l.add(name, 0, "", err.Error())
}

// home looks at the directory of the main file: who may write there can put
// another file in its place, unless it is sticky. That there is none is said of
// the file.
func (l *loader) home(dir string) {
	l.order[dir] = len(l.order)
	info, err := os.Stat(dir)
	if err != nil {
		return
	}
	check := trusted
	if info.Mode()&os.ModeSticky != 0 {
		check = owned
	}
	if err := check(dir, info); err != nil {
		l.fileError(dir, err)
	}
}

// readDir reads the files of a conf.d in the order of their names. There need
// not be one.
func (l *loader) readDir(dir string) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	l.order[dir] = len(l.order)
	if err != nil {
		l.fileError(dir, err)
		return
	}
	info, err := os.Stat(dir)
	if err == nil {
		err = trusted(dir, info)
	}
	if err != nil {
		l.fileError(dir, err)
		return
	}
	for _, e := range entries {
		if Counts(e.Name()) {
			l.read(filepath.Join(dir, e.Name()))
		}
	}
}

// Counts says whether a file of that name in conf.d is read. Editors leave their
// swap and lock files as .NAME.
func Counts(name string) bool {
	return strings.HasSuffix(name, ".toml") && !strings.HasPrefix(name, ".")
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name) //nolint:gosec // the operator names the file
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := trusted(name, info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFileSize {
		return nil, fmt.Errorf("is larger than %d MiB", maxFileSize>>20)
	}
	return data, nil
}

// trusted refuses what others than root and the user who runs this may change:
// the daemon runs as root what the file says.
func trusted(name string, info fs.FileInfo) error {
	if info.Mode().Perm()&0o002 != 0 {
		return fmt.Errorf("may be written by every user (mode %04o): run chmod o-w %s", info.Mode().Perm(), name)
	}
	return owned(name, info)
}

func owned(name string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, who may change it: run chown root %s", st.Uid, name)
	}
	return nil
}
