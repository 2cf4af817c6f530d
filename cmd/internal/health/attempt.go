package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// attempt tries the backend once. A connection that is not there within dial
// is given up; all else has the time-out of the check.
func (b *Prober) attempt(ctx context.Context, dial time.Duration) error {
	switch b.check.Type {
	case TCP:
		return b.connect(ctx, dial)
	case HTTP:
		return b.http(ctx, dial)
	case Exec:
		return b.exec(ctx)
	default:
		return fmt.Errorf("unknown type of check %q", b.check.Type)
	}
}

// dial connects to the backend.
func (b *Prober) dial(ctx context.Context, timeout time.Duration) (*net.TCPConn, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	// Other socket options than TCP's do not work on an MPTCP socket, and one
	// attempt needs no second path.
	d.SetMultipathTCP(false)
	d.Control = func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) { err = abrupt(int(fd)) }); cerr != nil {
			return cerr
		}
		return err
	}
	c, err := d.DialContext(ctx, "tcp", b.target.Addr.String())
	if err != nil {
		return nil, b.explain("dial", err)
	}
	return c.(*net.TCPConn), nil
}

const (
	maxAnswer = 1 << 20  // bytes of an answer that are read at all
	maxBody   = 64 << 10 // bytes of a body that are read
)

// http sends one request on a connection of its own. It speaks for itself
// instead of using http.Transport, which would cost two goroutines per attempt
// and ten times the memory, for redirects, pools and proxies not wanted here.
func (b *Prober) http(ctx context.Context, timeout time.Duration) error {
	deadline := time.Now().Add(b.check.Timeout)
	c, err := b.dial(ctx, timeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(deadline); err != nil {
		return b.explain("set deadline", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	host := b.check.Host
	if host == "" {
		host = b.target.Addr.String()
	}
	// In one segment with the header: an application that reads only what it
	// expects of a proxy is not to wait for the rest.
	_, err = fmt.Fprintf(c, "%sGET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: sluice-health\r\nAccept: */*\r\nConnection: close\r\n\r\n",
		b.check.Header, b.check.Path, host)
	if err != nil {
		return b.explain("write", err)
	}
	limit := &io.LimitedReader{R: c, N: maxAnswer}
	r := bufio.NewReader(limit)
	for {
		answer, err := http.ReadResponse(r, nil) //nolint:bodyclose // see drain
		if err != nil && limit.N == 0 {
			return fmt.Errorf("read tcp %s: answer without end", b.target.Addr)
		}
		if err != nil {
			return b.explain("read", err)
		}
		if answer.StatusCode < 200 && answer.StatusCode != http.StatusSwitchingProtocols {
			continue // 100 Continue, 103 Early Hints: the answer is to come
		}
		drain(c, answer.Body)
		if answer.StatusCode < 200 || answer.StatusCode > 399 {
			return fmt.Errorf("HTTP %d", answer.StatusCode)
		}
		return nil
	}
}

// drain lets the application finish its answer: some log a reset in the midst
// of it. But the status is known, and nobody shall wait for a long body. It
// does not close body, which would read to the end.
func drain(c net.Conn, body io.Reader) {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	_, _ = io.CopyN(io.Discard, body, maxBody)
}

func (b *Prober) exec(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.check.Timeout)
	defer cancel()
	code, out, err := b.target.Exec(ctx, b.check.Command)
	switch {
	case err == nil && code == 0:
		return nil
	case errors.Is(err, ErrUntried):
		return fmt.Errorf("exec: %w", err)
	case ctx.Err() != nil:
		return fmt.Errorf("exec timed out after %s", b.check.Timeout)
	case err != nil:
		return fmt.Errorf("exec: %w", err)
	}
	if line := lastLine(out); line != "" {
		return fmt.Errorf("exec exited %d: %s", code, line)
	}
	return fmt.Errorf("exec exited %d", code)
}

// lastLine returns the last line of what a command wrote, for most put there
// why they fail, cut to what fits a report.
func lastLine(out string) string {
	out = strings.TrimSpace(out)
	out = out[strings.LastIndexByte(out, '\n')+1:]
	if len(out) > 200 {
		out = out[:200] + "…"
	}
	return strings.ToValidUTF8(out, "?")
}

// short says that this host or process has run short of something.
func short(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EADDRNOTAVAIL:
		return true
	}
	return false
}

// explain words an error of the network. The words do not change from attempt
// to attempt, as those of package net do with their source ports.
func (b *Prober) explain(op string, err error) error {
	if err == nil {
		return nil
	}
	var ne net.Error
	var errno syscall.Errno
	var oe *net.OpError
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		err = os.ErrDeadlineExceeded
	case errors.As(err, &errno):
		err = errno
		if short(errno) {
			err = fmt.Errorf("%w: %w", ErrUntried, errno)
		}
	case errors.As(err, &oe):
		err = oe.Err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		err = fmt.Errorf("connection closed without an answer: %w", err)
	}
	return fmt.Errorf("%s tcp %s: %w", op, b.target.Addr, err)
}
