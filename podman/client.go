// Package podman makes, starts, stops and watches the replicas of services
// through Podman's REST API on a local unix socket.
//
// A replica is a container named sluice-SERVICE-N with the labels
// sluice.service, sluice.index, sluice.port and sluice.spec; everything this
// package does is confined to containers that carry the first of them. No state
// is kept beside Podman's own: a new Client finds the replicas of an earlier
// one with List.
//
// Podman is on the same machine and its bridges are in the caller's network
// namespace; a remote one could neither be dialled at its container's
// addresses nor be watched by pidfd.
package podman

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containers/podman/v5/pkg/bindings"
	"github.com/containers/podman/v5/pkg/bindings/system"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"
)

// DefaultURI is the socket of the system's own podman.socket unit.
const DefaultURI = "unix:///run/podman/podman.sock"

// Options tune a Client. The zero value is ready for use.
type Options struct {
	// Starts bounds how many starts and inits Podman works on at once; others
	// wait for their turn. 0 means 4: Podman serialises the larger part of a
	// start, so that more at once only makes all of them late.
	Starts int

	// Timeout bounds the calls that only ask (Inspect, List, Ping, Network,
	// ...), so that a Podman that hangs is noticed. 0 means 10 seconds. Calls
	// that do something are bounded by their context alone.
	Timeout time.Duration

	// Warn, if set, is told what went wrong without failing a call: a
	// neighbour entry that could not be refreshed, an overdue probe that could
	// not be ended. It is called from the goroutine of the call.
	Warn func(error)
}

// A Client talks to one Podman service. Its methods may be called by several
// goroutines at once. A Client survives restarts of the service: calls made
// meanwhile fail with ErrUnreachable, later ones connect anew.
type Client struct {
	uri     string
	conn    context.Context // carries the bindings' connection, and nothing else
	http    *http.Transport
	timeout time.Duration
	warn    func(error)
	local   bool // Podman's process numbers are ours
	lanes   *lanes
	neigh   *neighbours
	pulls   singleflight.Group
	life    context.Context // of what outlives a call: pulls
	end     context.CancelFunc
}

// Open connects to the Podman service at uri (unix:///path; "" means
// DefaultURI), which must speak the libpod API 4.0 or newer. Nobody listening
// is ErrUnreachable, found at once.
//
// The network namespace of the calling thread is the one whose neighbour
// entries are kept right. The caller must Close the client.
func Open(ctx context.Context, uri string, o Options) (*Client, error) {
	if uri == "" {
		uri = DefaultURI
	}
	path, err := socketPath(uri)
	if err != nil {
		return nil, fmt.Errorf("open podman: %w", err)
	}
	c := &Client{
		uri:     uri,
		timeout: o.Timeout,
		warn:    o.Warn,
		lanes:   newLanes(o.Starts),
		http: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", path)
			},
			DisableCompression: true,
			// One connection for every call that may be under way at once; the
			// default of two would dial anew in every burst.
			MaxIdleConnsPerHost: 32,
			IdleConnTimeout:     5 * time.Minute,
		},
	}
	if c.timeout <= 0 {
		c.timeout = 10 * time.Second
	}
	if c.warn == nil {
		c.warn = func(error) {}
	}
	c.life, c.end = context.WithCancel(context.Background())

	if err := c.dial(ctx, path); err != nil {
		c.end()
		return nil, fmt.Errorf("open podman: %w", err)
	}
	if c.neigh, err = openNeighbours(); err != nil {
		return nil, errors.Join(fmt.Errorf("open podman: %w", err), c.Close())
	}
	return c, nil
}

// socketPath is the path in a unix:///path address.
func socketPath(uri string) (string, error) {
	u, err := url.Parse(uri)
	if err != nil {
		return "", err
	}
	if u.Scheme != "unix" || u.Host != "" || !filepath.IsAbs(u.Path) {
		return "", fmt.Errorf("address %q is not of the form unix:///path/to/podman.sock", uri)
	}
	return u.Path, nil
}

// dial makes the bindings' connection and puts our own transport under it.
func (c *Client) dial(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, c.timeout, errSilent)
	defer cancel()

	// The bindings try a dead socket three times within 0.6 s; this is the
	// 0.1 ms answer. It also tells whose process numbers Podman speaks of.
	probe, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return c.unreachable(ctx, err)
	}
	c.local = samePIDs(probe.(*net.UnixConn))
	probe.Close()

	conn, err := bindings.NewConnection(ctx, c.uri)
	if err != nil {
		var refused bindings.ConnectError
		if errors.As(err, &refused) {
			err = refused.Err
		}
		return c.unreachable(ctx, err)
	}
	inner, err := bindings.GetClient(conn)
	if err != nil {
		return err
	}
	inner.Client.CloseIdleConnections()
	inner.Client.Transport = &transport{base: c.http}
	c.conn = context.WithoutCancel(conn)
	return nil
}

// samePIDs reports whether the process that listens at the other end lives in
// our PID namespace, so that the process numbers Podman reports mean the same
// to us. For a socket that systemd opened this is systemd itself, whose
// namespace Podman's service inherits.
func samePIDs(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if cerr != nil || err != nil || cred.Pid <= 0 {
		return false // 0: the peer's namespace is not one of ours
	}
	return outermost("self") && outermost(strconv.Itoa(int(cred.Pid)))
}

// outermost reports whether a process lives in the PID namespace that /proc
// shows, by its numbers in that one and each below it: NSpid in proc_pid_status(5),
// Linux 4.1. Unlike /proc/PID/ns it may be read without CAP_SYS_PTRACE.
func outermost(pid string) bool {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(status)) {
		if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(numbers)) == 1
		}
	}
	return false
}

// Close ends pulls under way and frees the connections. Other calls must have
// returned.
func (c *Client) Close() error {
	c.end()
	c.http.CloseIdleConnections()
	if c.neigh == nil {
		return nil
	}
	return c.neigh.close()
}

// Ping asks whether the service answers.
func (c *Client) Ping(ctx context.Context) error {
	return c.ask(ctx, "ping podman", func(ctx context.Context) error {
		conn, err := bindings.GetClient(ctx)
		if err != nil {
			return err
		}
		res, err := conn.DoRequest(ctx, nil, http.MethodGet, "/_ping", nil, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		return res.Process(nil)
	})
}

// Version is the version of the Podman service, such as "5.4.2".
func (c *Client) Version(ctx context.Context) (string, error) {
	var version string
	err := c.ask(ctx, "ask podman's version", func(ctx context.Context) error {
		report, err := system.Version(ctx, nil)
		if err != nil {
			return err
		}
		if report.Server == nil {
			return errors.New("answer names no server")
		}
		version = strings.TrimSpace(report.Server.Version)
		return nil
	})
	return version, err
}
