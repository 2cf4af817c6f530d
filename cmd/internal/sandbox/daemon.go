package sandbox

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"sluice/testenv"
)

// Line is a line of the daemon's log.
type Line struct {
	Time    time.Time `json:"time"`
	Level   string    `json:"level"`
	Message string    `json:"message"`
	Event   string    `json:"event"`
	Service string    `json:"service"`
	Backend string    `json:"backend"`
	Error   string    `json:"error"`

	Text string `json:"-"` // as it was written
}

// Daemon is a running sluice daemon.
type Daemon struct {
	cmd  *exec.Cmd
	done chan struct{} // closed once the process has ended
	log  testenv.Log[Line]
}

// Start runs the daemon and waits until it is ready. It ends with ctx, with t,
// or by Stop or Kill.
func (s *Sandbox) Start(ctx context.Context, t testenv.TB) *Daemon {
	t.Helper()
	d := &Daemon{done: make(chan struct{})}
	d.cmd = s.Host.Command(ctx, s.program, "--config", s.config(), "run")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatalf("start daemon: %v", err)
	}
	d.cmd.Stdout, d.cmd.Stderr = w, w
	if err := d.cmd.Start(); err != nil {
		t.Fatalf("start daemon: %v", err)
	}
	_ = w.Close() // the daemon has its own
	go func() {
		d.read(bufio.NewScanner(r))
		_ = r.Close()
		_ = d.cmd.Wait() // the log says how it ended
		close(d.done)
	}()
	t.Cleanup(func() {
		d.Stop(t)
		if t.Failed() {
			d.tell(t)
		}
	})
	d.Wait(t, 0, "ready", func(l Line) bool { return l.Message == "ready" })
	return d
}

func (d *Daemon) read(sc *bufio.Scanner) {
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		l := Line{Text: sc.Text()}
		_ = json.Unmarshal(sc.Bytes(), &l) // what is no JSON keeps its text
		d.log.Add(l)
	}
}

// tell logs the end of the daemon's log.
func (d *Daemon) tell(t testenv.TB) {
	for _, l := range d.log.Since(max(0, d.log.Mark()-200)) {
		t.Logf("daemon: %s", l.Text)
	}
}

// PID is the daemon's process id.
func (d *Daemon) PID() int { return d.cmd.Process.Pid }

// Stop ends the daemon as systemd would, and waits for it. To stop one that has
// ended is no error.
func (d *Daemon) Stop(t testenv.TB) { t.Helper(); d.end(t, syscall.SIGTERM) }

// Kill ends the daemon by SIGKILL.
func (d *Daemon) Kill(t testenv.TB) { t.Helper(); d.end(t, syscall.SIGKILL) }

func (d *Daemon) end(t testenv.TB, sig syscall.Signal) {
	t.Helper()
	select {
	case <-d.done:
		return
	default:
	}
	_ = d.cmd.Process.Signal(sig) // it may end meanwhile
	select {
	case <-d.done:
	case <-time.After(patience):
		_ = d.cmd.Process.Kill()
		t.Errorf("the daemon does not end on signal %v", sig)
	}
}

// Mark is the present length of the log, for Wait.
func (d *Daemon) Mark() int { return d.log.Mark() }

// Since returns the lines of the log from a mark on.
func (d *Daemon) Since(mark int) []Line { return d.log.Since(mark) }

// Wait returns the first line of the log, from a mark on, that is ok.
func (d *Daemon) Wait(t testenv.TB, from int, what string, ok func(Line) bool) Line {
	t.Helper()
	return d.log.Wait(t, patience, from, "a line of the daemon's log: "+what, d.done, ok)
}

// Event is true of the log line of an event of a service.
func Event(service, kind string) func(Line) bool {
	return func(l Line) bool { return l.Service == service && l.Event == kind }
}

// Worked returns the processor time that the daemon has used, to a hundredth of
// a second.
func (d *Daemon) Worked(t testenv.TB) time.Duration {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.PID()))
	var user, system int64
	if err == nil {
		// Behind the name, which may hold anything, utime and stime are the
		// twelfth and thirteenth (proc_pid_stat(5)).
		f := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
		_, err = fmt.Sscan(string(bytes.Join(f[11:13], []byte(" "))), &user, &system)
	}
	if err != nil {
		t.Fatalf("read the daemon's times: %v", err)
	}
	const tick = time.Second / 100 // USER_HZ
	return time.Duration(user+system) * tick
}

// Memory returns the daemon's resident memory in bytes.
func (d *Daemon) Memory(t testenv.TB) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", d.PID()))
	var size, resident int64
	if err == nil {
		_, err = fmt.Sscan(string(text), &size, &resident)
	}
	if err != nil {
		t.Fatalf("read the daemon's memory: %v", err)
	}
	return resident * int64(os.Getpagesize())
}
