package health

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// Type is a way of trying a backend. The words are those of the configuration.
type Type string

const (
	TCP  Type = "tcp"  // a connection is established
	HTTP Type = "http" // GET is answered with a status of 200 to 399
	Exec Type = "exec" // a command exits with 0
	None Type = "none" // healthy without being tried
)

// Check is how backends of a service are tried.
type Check struct {
	Type     Type
	Path     string   // for HTTP, from the "/" on, as it goes on the wire
	Host     string   // for HTTP, the Host header; "" = the backend's address
	Command  []string // for Exec
	Header   []byte   // for HTTP, sent before the request: what a proxy tells of itself
	Interval time.Duration
	Timeout  time.Duration // of one attempt
	Rise     int           // successes in a row from unhealthy to healthy
	Fall     int           // failures in a row from healthy to unhealthy
}

// ErrUntried marks what says nothing about a backend: it could not be tried, for
// want of something on this side. Such an attempt counts neither way.
var ErrUntried = errors.New("not tried")

// Execer runs argv where the backend is and returns its exit code and what it
// wrote. It must return soon after ctx is done. err is only for a command that
// could not be run; it wraps [ErrUntried] if that is not the backend's fault.
type Execer func(ctx context.Context, argv []string) (code int, out string, err error)

// Target is the backend to be tried.
type Target struct {
	Addr netip.AddrPort // for TCP and HTTP
	Exec Execer         // for Exec

	// Healthy says that the backend was found running and is believed to be
	// healthy until it fails: a restarted daemon adopts it like this.
	Healthy bool

	// Urgent says that somebody waits for the backend: on its way up no
	// other's turn comes before its own.
	Urgent bool
}

// Result is news about a backend.
type Result struct {
	Healthy bool
	// Err is what the latest failed attempt saw, such as "dial tcp
	// 10.88.0.5:80: connection refused", "HTTP 503" or "exec exited 1: …".
	// It is nil exactly when Healthy is true.
	Err error
}
