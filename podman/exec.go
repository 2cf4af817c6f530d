package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
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
		c.kill(ctx, verb, session)
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
	data, ierr := c.inspect(ctx, name)
	if ierr != nil || data.Config == nil || data.Config.Healthcheck == nil || len(data.Config.Healthcheck.Test) < 2 {
		return false, err
	}
	for _, session := range data.ExecIDs {
		c.kill(ctx, verb, session, data.Config.Healthcheck.Test[1:]...)
	}
	return false, err
}

// kill ends the process of a session, if it still runs and, given one, if argv
// is its command. Podman has no call for it.
func (c *Client) kill(ctx context.Context, verb, session string, argv ...string) {
	if err := c.killSession(ctx, session, argv); err != nil {
		c.warn(fmt.Errorf("%s: end overdue command: %w", verb, err))
	}
}

func (c *Client) killSession(ctx context.Context, session string, argv []string) error {
	running := func() (pid int, err error) {
		err = c.do(ctx, "inspect exec session", func(ctx context.Context) error {
			s, err := containers.ExecInspect(ctx, session, nil)
			if err != nil {
				return err
			}
			ours := argv == nil || s.ProcessConfig != nil &&
				strings.Join(append([]string{s.ProcessConfig.Entrypoint}, s.ProcessConfig.Arguments...), "\x00") == strings.Join(argv, "\x00")
			if s.Running && ours {
				pid = s.Pid
			}
			return nil
		})
		return pid, err
	}
	pid, err := running()
	if err != nil || pid <= 0 {
		return err
	}
	if !c.local {
		return errors.New("podman is in another PID namespace")
	}
	process, err := openProcess(pid)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer process.Close()
	// Now that the number cannot be reused: is it still the session's?
	if now, err := running(); err != nil || now != pid {
		return err
	}
	raw, err := process.SyscallConn()
	if err != nil {
		return err
	}
	var kerr error
	if err := raw.Control(func(fd uintptr) { kerr = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(kerr, unix.ESRCH) {
		return nil
	}
	return kerr
}
