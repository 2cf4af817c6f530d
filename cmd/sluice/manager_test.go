package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// manager is a service manager that speaks the protocol of systemd, as in
// sd_notify(3) and sd_listen_fds(3): it keeps descriptors that the daemon sends
// and gives them to the next one.
type manager struct {
	path     string
	conn     *net.UnixConn
	watchdog time.Duration

	mu       sync.Mutex
	store    []stored
	messages []string
	grown    chan struct{}
}

type stored struct {
	name string
	file *os.File
}

func newManager(t *testing.T, h *host) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(h.dir, "notify.sock"), grown: make(chan struct{})}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); m.run(t) }()
	t.Cleanup(func() {
		_ = m.conn.SetReadDeadline(time.Unix(1, 0))
		<-done
		_ = m.conn.Close()
		for _, s := range m.store {
			_ = s.file.Close()
		}
	})
	return m
}

func (m *manager) run(t *testing.T) {
	b, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, on, _, _, err := m.conn.ReadMsgUnix(b, oob)
		if err != nil {
			return // the deadline of the end
		}
		var files []*os.File
		msgs, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil {
			t.Errorf("control message: %v", err)
		}
		for _, c := range msgs {
			fds, err := unix.ParseUnixRights(&c)
			if err != nil {
				t.Errorf("control message: %v", err)
			}
			for _, fd := range fds {
				unix.CloseOnExec(fd)
				files = append(files, os.NewFile(uintptr(fd), "stored"))
			}
		}
		m.take(string(b[:n]), files)
	}
}

func (m *manager) take(text string, files []*os.File) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vars := map[string]string{}
	for _, l := range strings.Split(text, "\n") {
		k, v, _ := strings.Cut(l, "=")
		vars[k] = v
	}
	name := vars["FDNAME"]
	if vars["FDSTORE"] == "1" {
		for _, f := range files {
			if slices.ContainsFunc(m.store, func(s stored) bool { return inode(s.file) == inode(f) }) {
				_ = f.Close()
				continue
			}
			m.store = append(m.store, stored{name, f})
		}
	} else {
		for _, f := range files {
			_ = f.Close()
		}
	}
	if vars["FDSTOREREMOVE"] == "1" {
		m.drop(func(s stored) bool { return s.name == name })
	}
	m.messages = append(m.messages, text)
	close(m.grown)
	m.grown = make(chan struct{})
}

func (m *manager) drop(f func(stored) bool) {
	m.store = slices.DeleteFunc(m.store, func(s stored) bool {
		if f(s) {
			_ = s.file.Close()
			return true
		}
		return false
	})
}

// inode and over use Fd, which is why the files are in blocking mode for Go. The
// mode of the socket itself is not touched by it: they were not made pollable.
func inode(f *os.File) uint64 {
	st, err := f.Stat()
	if err != nil {
		return 0
	}
	return inodeOf(st)
}

// over says whether systemd would have dropped a descriptor by itself.
func over(s stored) bool {
	p := []unix.PollFd{{Fd: int32(s.file.Fd())}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// names are those of what is stored.
func (m *manager) names() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(over)
	for _, s := range m.store {
		list = append(list, s.name)
	}
	slices.Sort(list)
	return list
}

// wait returns the first message from number from on that is ok.
func (m *manager) wait(t *testing.T, from int, ok func(string) bool) string {
	t.Helper()
	limit := time.After(patient)
	for {
		m.mu.Lock()
		for ; from < len(m.messages); from++ {
			if ok(m.messages[from]) {
				text := m.messages[from]
				m.mu.Unlock()
				return text
			}
		}
		grown := m.grown
		m.mu.Unlock()
		select {
		case <-grown:
		case <-limit:
			t.Fatal("the daemon does not tell the service manager what is awaited")
		}
	}
}

func (m *manager) mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.messages)
}

func says(word string) func(string) bool {
	return func(text string) bool { return slices.Contains(strings.Split(text, "\n"), word) }
}

// start runs the daemon as the main process of a unit with Type=notify and waits
// until it says that it is ready.
func (m *manager) start(t *testing.T, h *host, config string) *proc {
	t.Helper()
	from := m.mark()
	d := h.launchCommand(t, m.command(t, h, "--config", config, "run"))
	m.wait(t, from, says("READY=1"))
	return d
}

// command gives the process what systemd gives it. Only the process itself knows
// its number before it begins, so a shell that becomes it sets that.
func (m *manager) command(t *testing.T, h *host, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := h.Host.Command(context.Background(), "sh", append([]string{"-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" "$@"`, exe}, args...)...)
	cmd.Env = append(os.Environ(), asSluice+"=1", "GORACE=halt_on_error=0", "NOTIFY_SOCKET="+m.path, "FDSTORE=1000")
	if m.watchdog > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("WATCHDOG_USEC=%d", m.watchdog.Microseconds()))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(over)
	var names []string
	for _, s := range m.store {
		names = append(names, s.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.file)
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	return cmd
}

// untilNames waits until what is stored is what is wanted.
func (m *manager) untilNames(t *testing.T, what string, ok func([]string) bool) {
	t.Helper()
	testenv.Eventually(t, patient, func() (bool, string) {
		names := m.names()
		return ok(names), fmt.Sprintf("waiting for %s, stored: %v", what, names)
	})
}
