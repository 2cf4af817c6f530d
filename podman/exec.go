package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containers/podman/v5/libpod/define"
	"github.com/containers/podman/v5/pkg/api/handlers"
	"github.com/containers/podman/v5/pkg/bindings"
	"github.com/containers/podman/v5/pkg/bindings/containers"
	"golang.org/x/sys/unix"
)

// probeLimit is what Podman is told about the duration of a health command.
// Probe's own timeout is the one that counts; 4.3 does not enforce this one.
const probeLimit = 30 * time.Second

// maxOutput bounds what is kept of a command's output, in bytes.
const maxOutput = 64 << 10

// Exec runs a command inside a running replica and returns its exit code and
// the beginning of its output, standard output and error mixed. After timeout
// the command is killed, and the error wraps context.DeadlineExceeded.
//
// It is meant for what happens now and then: for five minutes after each
// command that came through its API, Podman 4 keeps two processes of about 3 MB
// in all. A health check that runs every few seconds is Spec.Health and Probe.
func (c *Client) Exec(ctx context.Context, name string, argv []string, timeout time.Duration) (code int, output string, err error) {
	verb := "exec in container " + name
	if len(argv) == 0 {
		return 0, "", fmt.Errorf("%s: no command", verb)
	}
	soon, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var session string
	err = c.do(soon, verb, func(ctx context.Context) error {
		config := new(handlers.ExecCreateConfig)
		config.Cmd = argv
		config.AttachStdout = true
		config.AttachStderr = true
		if session, err = containers.ExecCreate(ctx, name, config); err != nil {
			return err
		}
		if output, err = attach(ctx, session); err != nil {
			return err
		}
		s, err := containers.ExecInspect(ctx, session, nil)
		if err != nil {
			return err
		}
		code = s.ExitCode
		return nil
	})
	if session == "" {
		return 0, "", err
	}
	// The caller's deadline is over, if that is what ended the command.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	if err != nil {
		c.killExec(ctx, verb, session)
		return 0, output, err
	}
	// Podman 4.8 and newer need not keep the session.
	rerr := c.do(ctx, verb, func(ctx context.Context) error { return containers.ExecRemove(ctx, session, nil) })
	var old *bindings.APIVersionError
	if rerr != nil && !errors.As(rerr, &old) {
		c.warn(fmt.Errorf("%s: remove session: %w", verb, rerr))
	}
	return code, output, nil
}

// attach starts a session and reads its output to the end. The bindings' own
// version would put this process's terminal into raw mode.
func attach(ctx context.Context, session string) (string, error) {
	conn, err := bindings.GetClient(ctx)
	if err != nil {
		return "", err
	}
	res, err := conn.DoRequest(ctx, strings.NewReader(`{"Detach":false,"Tty":false}`), http.MethodPost,
		"/exec/%s/start", nil, http.Header{"Content-Type": {"application/json"}}, session)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if !res.IsSuccess() {
		return "", res.Process(nil)
	}
	var b strings.Builder
	err = demux(res.Body, func(frame []byte) {
		if room := maxOutput - b.Len(); room > 0 {
			b.Write(frame[:min(room, len(frame))])
		}
	})
	return b.String(), err
}

// demux calls f for every piece of a stream that has standard output and error
// in frames: one byte for which, three of nothing, four for the length. The
// frame is f's until it returns.
func demux(stream io.Reader, f func(frame []byte)) error {
	buf := make([]byte, 32<<10)
	for {
		channel, left, err := containers.DemuxHeader(stream, buf)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var message []byte
		for left > 0 {
			n, err := io.ReadFull(stream, buf[:min(left, len(buf))])
			if err != nil {
				return err
			}
			left -= n
			if channel != 3 {
				f(buf[:n])
			} else if len(message) < maxOutput {
				message = append(message, buf[:n]...)
			}
		}
		if channel == 3 { // Podman's own words
			return errors.New(oneLine(string(message)))
		}
	}
}

// Probe runs Spec.Health inside a running replica and reports whether it ended
// with 0. It takes 50 to 80 ms, most of them in the runtime. A command that is
// not done within timeout is killed, for hung ones would pile up, and the error
// wraps context.DeadlineExceeded.
func (c *Client) Probe(ctx context.Context, name string, timeout time.Duration) (healthy bool, err error) {
	verb := "probe container " + name
	soon, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err = c.do(soon, verb, func(ctx context.Context) error {
		result, err := containers.RunHealthCheck(ctx, name, nil)
		if err != nil {
			return err
		}
		healthy = result.Status == define.HealthCheckHealthy
		return nil
	})
	if soon.Err() == nil || err == nil {
		return healthy, err
	}
	ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), c.timeout)
	defer cancel()
	c.killProbes(ctx, verb, name)
	return false, err
}

// killProbes ends the health commands that run in a container.
func (c *Client) killProbes(ctx context.Context, verb, name string) {
	data, err := c.inspect(ctx, name)
	switch {
	case errors.Is(err, ErrGone):
		return
	case err != nil:
		c.warn(fmt.Errorf("%s: end overdue command: %w", verb, err))
		return
	case data.Config == nil || data.Config.Healthcheck == nil:
		return
	}
	for _, id := range data.ExecIDs {
		s, err := c.session(ctx, id)
		if err != nil || s.ProcessConfig == nil {
			continue // it ended meanwhile
		}
		argv := append([]string{s.ProcessConfig.Entrypoint}, s.ProcessConfig.Arguments...)
		if test := data.Config.Healthcheck.Test; len(test) == 0 || !slices.Equal(test[1:], argv) {
			continue // a session of somebody else's
		}
		if err := c.kill(data.StaticDir, id, s.Pid); err != nil {
			c.warn(fmt.Errorf("%s: end overdue command: %w", verb, err))
		}
	}
}

// killExec ends the command of a session.
func (c *Client) killExec(ctx context.Context, verb, id string) {
	s, err := c.session(ctx, id)
	if err == nil && s.Running {
		err = c.kill("", id, s.Pid)
	}
	if err != nil && !errors.Is(err, ErrGone) {
		c.warn(fmt.Errorf("%s: end overdue command: %w", verb, err))
	}
}

// session asks for the state of an exec session.
func (c *Client) session(ctx context.Context, id string) (s *define.InspectExecSession, err error) {
	err = c.do(ctx, "inspect exec session", func(ctx context.Context) error {
		s, err = containers.ExecInspect(ctx, id, nil)
		return err
	})
	return s, err
}

// kill ends the process of a session, which Podman has no call for. Nor does it
// tell the process number of a health command (4.3 says 0); then conmon's pid
// file below dir, the container's static directory, does.
func (c *Client) kill(dir, session string, pid int) error {
	if !c.local {
		return errors.New("podman is in another PID namespace")
	}
	if pid <= 0 {
		text, err := os.ReadFile(filepath.Join(dir, session, "exec_pid"))
		if errors.Is(err, os.ErrNotExist) {
			return nil // ended, or not begun
		}
		if err != nil {
			return err
		}
		if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
			return err
		}
	}
	process, err := openProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer process.Close()
	// From here on the number cannot change hands. The process is the session's
	// if its parent is the conmon that was started for it.
	conmon, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", parent(pid)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !slices.Contains(strings.Split(string(conmon), "\x00"), session) {
		return nil // reused: it ended
	}
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) })
	if cerr != nil {
		return cerr
	}
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return os.NewSyscallError("pidfd_send_signal", err)
}
