package podman

import (
	"bufio"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
)

// TestSamePIDs listens in this PID namespace and, as a child process, in
// another.
func TestSamePIDs(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root for a PID namespace")
	}
	same := func(path string) bool {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return samePIDs(conn.(*net.UnixConn))
	}
	ours := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", ours)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !same(ours) {
		t.Error("our own listener is in another PID namespace")
	}

	theirs := filepath.Join(t.TempDir(), "s")
	child := exec.Command(os.Args[0], "-test.run=^TestListenElsewhere$")
	child.Env = append(os.Environ(), "LISTEN_ELSEWHERE="+theirs)
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		stdin.Close()
		if err := child.Wait(); err != nil {
			t.Errorf("child: %v", err)
		}
	}()
	if word, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || word != "listening\n" {
		t.Fatalf("child says %q, %v", word, err)
	}
	if same(theirs) {
		t.Error("a listener in another PID namespace passes for one in ours")
	}
}

// TestListenElsewhere is the child of TestSamePIDs.
func TestListenElsewhere(t *testing.T) {
	path := os.Getenv("LISTEN_ELSEWHERE")
	if path == "" {
		t.Skip("only as a child of TestSamePIDs")
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	os.Stdout.WriteString("listening\n")
	bufio.NewReader(os.Stdin).ReadString('\n')
}

func TestExitedElsewhere(t *testing.T) {
	t.Parallel()
	err := new(Client).Exited(t.Context(), Replica{Name: "sluice-a-1", PID: os.Getpid()})
	if !errors.Is(err, ErrNoPidfd) {
		t.Errorf("watching a process of another namespace: %v", err)
	}
}
