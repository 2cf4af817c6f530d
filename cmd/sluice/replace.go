package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/control"
	"sluice/cmd/internal/inherit"
)

const (
	replacePath  = "/v1/replace"
	replaceProto = "sluice-sockets"
)

// predecessor gives way to another daemon that asks for it at the admin socket.
type predecessor struct {
	ctl     *control.Control
	managed bool // by a service manager
	daemon  config.Daemon
	admin   net.Listener
	metrics net.Listener // nil: none
	restore func()       // looks after the table again
	log     zerolog.Logger
}

func (p *predecessor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := p.replace(w, r); err != nil {
		p.log.Warn().Err(err).Msg("not replaced")
	}
}

func (p *predecessor) replace(w http.ResponseWriter, r *http.Request) error {
	if p.managed {
		err := errors.New("the running daemon belongs to a service manager: restart its unit instead, which leaves no gap either")
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusConflict)
		return errors.Join(err, json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}))
	}
	hijacked, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return err
	}
	defer hijacked.Close()
	conn, ok := hijacked.(*net.UnixConn)
	if !ok {
		return fmt.Errorf("asked over %s", hijacked.LocalAddr().Network())
	}
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+replaceProto+"\r\n\r\n"); err != nil {
		return err
	}
	// When this daemon is told to stop the other either has committed or cannot
	// any more.
	defer context.AfterFunc(r.Context(), func() { _ = conn.CloseRead() })()
	if err := inherit.Await(conn); err != nil {
		return err
	}
	err = p.ctl.Cede(r.Context(), func(socks []inherit.Socket) error {
		more, err := p.own()
		if err != nil {
			return err
		}
		p.log.Info().Int("sockets", len(socks)+len(more)).Msg("another daemon takes over")
		if err := inherit.Give(conn, append(socks, more...)); err != nil {
			return err
		}
		if ln, ok := p.admin.(*net.UnixListener); ok {
			ln.SetUnlinkOnClose(false) // the path is the other's
		}
		return nil
	})
	if err != nil && !p.ctl.Ceding() {
		p.restore()
	}
	return err
}

// own are the sockets that are not the control's.
func (p *predecessor) own() (socks []inherit.Socket, err error) {
	add := func(name string, ln net.Listener) error {
		c, ok := ln.(syscall.Conn)
		if !ok {
			return nil
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) { socks = append(socks, inherit.Socket{Name: name, FD: int(fd)}) })
	}
	err = errors.Join(
		add(inherit.Of(inherit.Admin, p.daemon.Admin), p.admin),
		add(inherit.Of(inherit.Metrics, p.daemon.Metrics), p.metrics))
	return socks, err
}

// successor takes over from a running daemon.
type successor struct {
	conn *net.UnixConn // nil: there was none, or it is done
	done chan struct{} // closed when this daemon is the one; nil: it is from the start
}

const dialTimeout = time.Second

// succeed asks the daemon at the admin socket for all that it has. If there is
// none, it returns left, what an earlier one has left elsewhere.
func succeed(ctx context.Context, path string, left *inherit.Set) (*successor, *inherit.Set, error) {
	s := &successor{}
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, "unix", path)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
		return s, left, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("replace: %w", err)
	}
	s.conn, s.done = conn.(*net.UnixConn), make(chan struct{})
	set, err := s.take(path)
	if err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("replace the daemon at %s: %w", path, err)
	}
	for _, sock := range left.Rest() { // of no use beside those that are in use
		_ = sock.Close()
	}
	return s, set, nil
}

func (s *successor) take(path string) (*inherit.Set, error) {
	if err := s.conn.SetDeadline(time.Now().Add(inherit.CommitTimeout)); err != nil {
		return nil, err
	}
	req, err := http.NewRequest(http.MethodPost, "http://sluice"+replacePath, http.NoBody) //nolint:noctx // bound by the deadline
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", replaceProto)
	if err := req.Write(s.conn); err != nil {
		return nil, err
	}
	// The other says nothing after the header until it is asked to.
	resp, err := http.ReadResponse(bufio.NewReader(s.conn), req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusSwitchingProtocols {
		var e struct {
			Error string `json:"error"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&e); err == nil && e.Error != "" {
			return nil, errors.New(e.Error)
		}
		return nil, fmt.Errorf("it answers %s: stop it instead", resp.Status)
	}
	return inherit.Take(s.conn)
}

// commit makes this daemon the one.
func (s *successor) commit(admin net.Listener) error {
	if s.conn == nil {
		return nil
	}
	if err := inherit.Commit(s.conn); err != nil {
		return err
	}
	if ln, ok := admin.(*net.UnixListener); ok {
		ln.SetUnlinkOnClose(true) // as one that this process has made
	}
	close(s.done)
	return s.Close()
}

// Close gives all back, unless it is committed.
func (s *successor) Close() error {
	if s.conn == nil {
		return nil
	}
	conn := s.conn
	s.conn = nil
	return conn.Close()
}

// wait says whether this daemon is the one, as soon as it is, or that ctx has
// ended.
func (s *successor) wait(ctx context.Context) bool {
	if s.done == nil {
		return true
	}
	select {
	case <-s.done:
		return true
	case <-ctx.Done():
		return false
	}
}

// inherited makes a listener of a socket, nil if there is none of that name.
func inherited(left *inherit.Set, name string) (net.Listener, error) {
	sock, ok := left.Named(name)
	if !ok {
		return nil, nil
	}
	f := os.NewFile(uintptr(sock.FD), name)
	ln, err := net.FileListener(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("inherit %s: %w", name, err)
	}
	return ln, nil
}

// listeners opens those of the daemon itself, or takes them over. The second is
// nil if there are to be no metrics.
func listeners(left *inherit.Set, cfg config.Daemon) (adminLn, metricsLn net.Listener, err error) {
	if adminLn, err = inherited(left, inherit.Of(inherit.Admin, cfg.Admin)); adminLn == nil && err == nil {
		adminLn, err = admin.Listen(cfg.Admin)
	}
	if err != nil || cfg.Metrics == "" {
		return adminLn, nil, err
	}
	metricsLn, err = inherited(left, inherit.Of(inherit.Metrics, cfg.Metrics))
	if metricsLn == nil && err == nil {
		if metricsLn, err = net.Listen("tcp", cfg.Metrics); err != nil {
			err = fmt.Errorf("daemon.metrics: %w: set another address, or \"\" for none", err)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, adminLn.Close())
	}
	return adminLn, metricsLn, nil
}
