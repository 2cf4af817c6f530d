// Package admin is the daemon's API: HTTP with JSON over a unix socket, for
// the sluice command and for scripts. Who may open the socket may do all that
// the daemon can; its mode is 0660.
//
//	GET  /v1/status?service=NAME     control.Status
//	GET  /v1/events                  control.Event, one JSON object a line
//	POST /v1/reload
//	POST /v1/services/NAME/wake
//	POST /v1/services/NAME/scale?n=N
//	POST /v1/services/NAME/drain?backend=NAME
//	POST /v1/services/NAME/canary?verdict=VERDICT  promoted, aborted or none
//	POST /v1/replace                 from here on package inherit's protocol
//
// An error is {"error": "one line"} with a status of 4xx or 5xx.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/verdict"
	"sluice/policy"
)

// Daemon is what the API acts on.
type Daemon interface {
	Status(ctx context.Context, services ...string) (control.Status, error)
	Do(ctx context.Context, service string, ev policy.Event) error
	Drain(ctx context.Context, service, backend string) error
	Judge(ctx context.Context, service string, canary verdict.Word) error
	Follow() (events <-chan control.Event, stop func())
}

// Reloader reads the configuration again.
type Reloader interface {
	Reload(ctx context.Context) error
}

// Handler serves the API.
func Handler(d Daemon, r Reloader) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, req *http.Request) {
		reply(w, struct{}{}, r.Reload(req.Context()))
	})
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		st, err := d.Status(r.Context(), r.URL.Query()["service"]...)
		reply(w, st, err)
	})
	mux.HandleFunc("GET /v1/events", func(w http.ResponseWriter, r *http.Request) { events(w, r, d) })
	order := func(parse func(r *http.Request) (policy.Event, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			ev, err := parse(r)
			if err == nil {
				err = d.Do(r.Context(), r.PathValue("service"), ev)
			}
			reply(w, struct{}{}, err)
		}
	}
	mux.HandleFunc("POST /v1/services/{service}/wake", order(func(*http.Request) (policy.Event, error) {
		return policy.Wake{}, nil
	}))
	mux.HandleFunc("POST /v1/services/{service}/scale", order(func(r *http.Request) (policy.Event, error) {
		n, err := strconv.Atoi(r.FormValue("n"))
		if err != nil {
			return nil, fmt.Errorf("n is not a number: %q", r.FormValue("n"))
		}
		return policy.Scale{N: n}, nil
	}))
	mux.HandleFunc("POST /v1/services/{service}/drain", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, d.Drain(r.Context(), r.PathValue("service"), r.FormValue("backend")))
	})
	mux.HandleFunc("POST /v1/services/{service}/canary", func(w http.ResponseWriter, r *http.Request) {
		var err error
		switch v := r.FormValue("verdict"); v {
		case string(verdict.Promoted), string(verdict.Aborted):
			err = d.Judge(r.Context(), r.PathValue("service"), verdict.Word(v))
		case "none":
			err = d.Judge(r.Context(), r.PathValue("service"), "")
		default:
			err = fmt.Errorf("verdict is not promoted, aborted or none: %q", v)
		}
		reply(w, struct{}{}, err)
	})
	return mux
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code := http.StatusBadRequest
		switch {
		case errors.Is(err, control.ErrUnknown):
			code = http.StatusNotFound
		case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
			code = http.StatusServiceUnavailable
		}
		w.WriteHeader(code)
		v = struct {
			Error string `json:"error"`
		}{err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client has gone
}

func events(w http.ResponseWriter, r *http.Request, d Daemon) {
	ch, stop := d.Follow()
	defer stop()
	w.Header().Set("Content-Type", "application/x-ndjson")
	flush := http.NewResponseController(w)
	enc := json.NewEncoder(w)
	for {
		if err := flush.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case ev := <-ch:
			if err := enc.Encode(ev); err != nil {
				return
			}
		}
	}
}

const socketMode = 0o660

// Listen opens the admin socket. A socket that another daemon answers on is
// an error; one that nobody answers on is left over and replaced.
func Listen(path string) (net.Listener, error) {
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen on %s: another sluice answers there: stop it, replace it by 'sluice run --replace', or set daemon.admin", path)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // the socket has its own mode
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Chmod(path, socketMode); err != nil {
		_ = ln.Close()
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return ln, nil
}

// Serve answers on ln until ctx ends.
func Serve(ctx context.Context, ln net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", ln.Addr(), err)
	}
	return nil
}

// Client talks to the daemon.
type Client struct {
	path string
	hint string
	http *http.Client
}

// Dial returns a client of the socket at path. It does not connect yet.
func Dial(path string) *Client {
	return &Client{path: path, hint: "is 'sluice run' running, and is --admin right", http: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}}
}

// Hint makes text what is said if nobody answers at the socket.
func (c *Client) Hint(text string) *Client {
	c.hint = text
	return c
}

func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://sluice"+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var op *net.OpError
		if errors.As(err, &op) {
			hint := c.hint
			if errors.Is(err, os.ErrPermission) {
				hint = "run this as root"
			}
			return nil, fmt.Errorf("daemon not reached at %s (%w): %s", c.path, op.Err, hint)
		}
		return nil, fmt.Errorf("daemon at %s: %w", c.path, err)
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		var e struct {
			Error string `json:"error"`
		}
		if err := json.NewDecoder(resp.Body).Decode(&e); err != nil || e.Error == "" {
			return nil, fmt.Errorf("daemon at %s: %s", c.path, resp.Status)
		}
		return nil, errors.New(strings.TrimSpace(e.Error))
	}
	return resp, nil
}

// Status asks for the status of all or the named services.
func (c *Client) Status(ctx context.Context, services ...string) (control.Status, error) {
	q := make([]string, 0, len(services))
	for _, s := range services {
		q = append(q, "service="+s)
	}
	resp, err := c.do(ctx, http.MethodGet, "/v1/status?"+strings.Join(q, "&"))
	if err != nil {
		return control.Status{}, err
	}
	defer resp.Body.Close()
	var st control.Status
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return control.Status{}, fmt.Errorf("read status: %w", err)
	}
	return st, nil
}

// Order sends an order, as "wake" or "scale?n=2", to a service.
func (c *Client) Order(ctx context.Context, service, order string) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/services/"+service+"/"+order)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Reload asks the daemon to read its configuration again.
func (c *Client) Reload(ctx context.Context) error {
	resp, err := c.do(ctx, http.MethodPost, "/v1/reload")
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// Follow calls f with each event until ctx or the daemon ends.
func (c *Client) Follow(ctx context.Context, f func(control.Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/v1/events")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var ev control.Event
		if err := dec.Decode(&ev); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("the daemon has ended: %w", err)
		}
		if err := f(ev); err != nil {
			return err
		}
	}
}
