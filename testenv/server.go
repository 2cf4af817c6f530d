package testenv

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Server is the test image's program running in a plain namespace.
type Server struct {
	cmd  *exec.Cmd
	done chan struct{} // closed after the program's end

	mu  sync.Mutex
	log strings.Builder
	err error
}

// StartServer runs the program in ns with the given KEY=value settings and
// returns once its ports are open (at once with NEVER_LISTEN). It is named
// after the namespace unless NAME is set, and is killed when t ends.
func StartServer(t TB, ns *NS, env ...string) *Server {
	t.Helper()
	cmd := ns.Command(context.Background(), ServerBinary(t))
	cmd.Env = append([]string{"NAME=" + ns.Name}, env...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatalf("start server: %v", err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		t.Fatalf("start server: %v", err)
	}
	s := &Server{cmd: cmd, done: make(chan struct{})}
	listening := make(chan struct{})
	go s.follow(out, listening)
	t.Cleanup(func() { s.Kill(t) })
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "NEVER_LISTEN=") }) {
		return s
	}
	select {
	case <-listening:
	case <-s.done:
		t.Fatalf("server in %s ended: %v\n%s", ns.Name, s.err, s.Log())
	case <-time.After(patience):
		t.Fatalf("server in %s opens no port\n%s", ns.Name, s.Log())
	}
	return s
}

func (s *Server) follow(out io.Reader, listening chan<- struct{}) {
	defer close(s.done)
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		s.mu.Lock()
		fmt.Fprintln(&s.log, lines.Text())
		s.mu.Unlock()
		if lines.Text() == "listening" && listening != nil {
			close(listening)
			listening = nil
		}
	}
	s.err = s.cmd.Wait()
}

// PID is the process id of the program.
func (s *Server) PID() int { return s.cmd.Process.Pid }

// Log is what the program has written so far: "listening", then a line
// "conn PORT REMOTE" per accepted connection.
func (s *Server) Log() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

// Done is closed when the program has ended.
func (s *Server) Done() <-chan struct{} { return s.done }

// Kill ends the program and waits for it. To do so again is no error.
func (s *Server) Kill(t TB) {
	t.Helper()
	_ = s.cmd.Process.Kill() // fails when the program has ended
	select {
	case <-s.done:
	case <-time.After(patience):
		t.Fatalf("server %d outlives SIGKILL", s.PID())
	}
}
