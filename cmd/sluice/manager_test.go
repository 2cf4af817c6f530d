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

	messages testenv.Log[string]

	mu    sync.Mutex
	store []stored
}

// stored is a descriptor and not a file: one of Go's would make the socket blocking
// for the daemon too.
type stored struct {
	name string
	fd   int
}

func newManager(t *testing.T, h *host) *manager {
	t.Helper()
	m := &manager{path: filepath.Join(h.dir, "notify.sock")}
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
			_ = unix.Close(s.fd)
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
		var files []int
		msgs, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil {
			t.Errorf("control message: %v", err)
		}
		for _, c := range msgs {
			fds, err := unix.ParseUnixRights(&c)
			if err != nil {
				t.Errorf("control message: %v", err)
			}
			files = append(files, fds...)
		}
		m.take(string(b[:n]), files)
	}
}

func (m *manager) take(text string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	vars := map[string]string{}
	for _, l := range strings.Split(text, "\n") {
		k, v, _ := strings.Cut(l, "=")
		vars[k] = v
	}
	name := vars["FDNAME"]
	if vars["FDSTORE"] == "1" {
		for _, fd := range fds {
			if slices.ContainsFunc(m.store, func(s stored) bool { return inode(s.fd) == inode(fd) }) {
				_ = unix.Close(fd)
				continue
			}
			m.store = append(m.store, stored{name, fd})
		}
	} else {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
	}
	if vars["FDSTOREREMOVE"] == "1" {
		m.drop(func(s stored) bool { return s.name == name })
	}
	m.messages.Add(text)
}

func (m *manager) drop(f func(stored) bool) {
	m.store = slices.DeleteFunc(m.store, func(s stored) bool {
		if f(s) {
			_ = unix.Close(s.fd)
			return true
		}
		return false
	})
}

func inode(fd int) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	return st.Ino
}

// over says whether systemd would have dropped a descriptor by itself.
func over(s stored) bool {
	p := []unix.PollFd{{Fd: int32(s.fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n > 0 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// discard is what systemd does once a unit is stopped, and not to be restarted.
func (m *manager) discard() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drop(func(stored) bool { return true })
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
	return m.messages.Wait(t, patient, from, "the awaited message to the service manager", nil, ok)
}

func (m *manager) mark() int { return m.messages.Mark() }

func says(word string) func(string) bool {
	return func(text string) bool { return slices.Contains(strings.Split(text, "\n"), word) }
}

// start runs the daemon as the main process of a unit with Type=notify and waits
// until it says that it is ready.
func (m *manager) start(t *testing.T, h *host, config string) *proc {
	t.Helper()
	from := m.mark()
	cmd := m.command(t, h, "--config", config, "run")
	d := h.launchCommand(t, cmd)
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
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
	argv := slices.Concat([]string{"-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" "$@"`}, h.by, []string{exe}, args)
	cmd := h.Host.Command(context.Background(), "sh", argv...)
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
		fd, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), s.name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
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
