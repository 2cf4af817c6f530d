package systemd

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asChild makes of the test binary a process that was started with descriptors.
const asChild = "SLUICE_TEST_INHERITED"

func TestMain(m *testing.M) {
	if os.Getenv(asChild) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}

// child writes what it has inherited to its standard output.
func child() int {
	if os.Getenv("LISTEN_PID") == "" {
		_ = os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())) // nobody else knows it
	}
	list, err := Inherited()
	if again, err2 := Inherited(); len(again) > 0 || err2 != nil || os.Getenv("LISTEN_FDNAMES") != "" {
		err = errors.New("the environment still tells of descriptors")
	}
	var names [][]byte
	for _, f := range list {
		names = append(names, []byte(f.Name))
		var st unix.Stat_t
		if err == nil && f.FD < lowest {
			err = errors.New(strconv.Itoa(f.FD) + " is too low")
		}
		if err == nil {
			err = unix.Fstat(f.FD, &st)
		}
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(names)
	}
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	return 0
}

// inherit starts a child with three descriptors, of which it is told by fds and
// names, and returns the names of those that it has taken.
func inherit(t *testing.T, fds, names, pid string) (list [][]byte) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.ExtraFiles = []*os.File{null, null, null}
	cmd.Env = []string{asChild + "=1", "LISTEN_FDS=" + fds, "LISTEN_FDNAMES=" + names, "LISTEN_PID=" + pid}
	var said strings.Builder
	cmd.Stderr = &said
	b, err := cmd.Output()
	if err == nil {
		err = json.Unmarshal(b, &list)
	}
	if err != nil {
		t.Fatalf("%s descriptors named %q: %v: %s", fds, names, err, said.String())
	}
	return list
}

// TestInherited: nothing is taken that is not meant for this process, or not told
// of in a way that can be read.
func TestInherited(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		fds, pid string
		want     int
	}{{"3", "", 3}, {"1", "", 1}, {"0", "", 0}, {"-1", "", 0}, {"x", "", 0}, {"", "", 0}, {"3", "1", 0}, {"3", "y", 0}} {
		if got := inherit(t, c.fds, "a:b:c", c.pid); len(got) != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}

// FuzzFDNames: each descriptor has the name that its place in the list says, or
// one of its own, however many names there are.
func FuzzFDNames(f *testing.F) {
	for _, s := range []string{"tcp-192.0.2.10-80:stored:x", "", ":", "a", "a:b:c:d", "::c", "a/b:\\x3a:\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, names string) {
		if strings.Contains(names, "\x00") {
			return // no environment can say so
		}
		list := inherit(t, "3", names, "")
		parts := strings.Split(names, ":")
		for i := range 3 {
			want := "LISTEN_FD_" + strconv.Itoa(3+i)
			if i < len(parts) && parts[i] != "" {
				want = parts[i]
			}
			if len(list) != 3 || string(list[i]) != want {
				t.Fatalf("%q: %q, want %q at %d", names, list, want, i)
			}
		}
	})
}
