package podman

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/containers/podman/v5/libpod/define"
	"github.com/containers/podman/v5/pkg/errorhandling"
)

var (
	// ErrUnreachable: the Podman service did not answer, or stopped answering.
	// What a call was to do may have been done.
	ErrUnreachable = errors.New("podman unreachable")

	// ErrGone: there is no such container.
	ErrGone = errors.New("no such container")

	// ErrImage: the image is neither at hand nor to be had. Trying again at
	// once will not help.
	ErrImage = errors.New("image cannot be had")

	// ErrSpec: a replica cannot be made as it is described: a bad volume, an
	// unknown network, a command that the image lacks, a name that another
	// program's container has. It stays so until the service's configuration
	// or the host is changed.
	ErrSpec = errors.New("replica cannot be made as configured")

	// ErrNoPidfd: the death of this replica cannot be watched by pidfd; events
	// (Watch) still tell.
	ErrNoPidfd = errors.New("process cannot be watched")

	// errSilent is the cause of a call ended by Options.Timeout.
	errSilent = errors.New("no answer in time")

	// The states of affairs that the package itself acts upon.
	errTaken     = errors.New("name is in use")
	errState     = errors.New("container is in another state")
	errNoImage   = errors.New("image is not in local storage")
	errNoNetwork = errors.New("no such network")
)

// hint is what to do about a socket nobody listens on.
const hint = "is podman.socket running? systemctl enable --now podman.socket"

// explain turns the outcome of a use of the bindings into one line that starts
// with verb, and into the sentinel that fits. lost is why there was no answer.
func (c *Client) explain(ctx context.Context, verb string, lost, err error) error {
	var model *errorhandling.ErrorModel
	switch {
	case lost != nil:
		return fmt.Errorf("%s: %w", verb, c.unreachable(ctx, lost))
	case err == nil:
		return nil
	case errors.As(err, &model):
		if kind := kindOf(model); kind != nil {
			return fmt.Errorf("%s: %w: %s", verb, kind, oneLine(model.Message))
		}
		return fmt.Errorf("%s: %s", verb, oneLine(model.Message))
	case ctx.Err() != nil, broken(err):
		return fmt.Errorf("%s: %w", verb, c.unreachable(ctx, err))
	}
	return fmt.Errorf("%s: %w", verb, err)
}

// unreachable says why there was no answer: the caller gave up, or Podman is to
// blame.
func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		if errors.Is(context.Cause(ctx), errSilent) {
			return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.uri, errSilent)
		}
		return ctx.Err()
	}
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%w at %s: %w (%s)", ErrUnreachable, c.uri, err, hint)
	}
	return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.uri, err)
}

// broken reports whether err says that an answer ended early.
func broken(err error) bool {
	var op *net.OpError
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &op)
}

// kindOf reads the sentinel out of Podman's answer. The cause field is the text
// of an error of libpod's own and the same since 4.0; the code is not to be
// relied upon (4.3 says 500 for a taken name, an unknown image and an unknown
// network alike).
func kindOf(m *errorhandling.ErrorModel) error {
	switch m.Because {
	case define.ErrNoSuchCtr.Error():
		return ErrGone
	case define.ErrCtrStateInvalid.Error(), define.ErrCtrStopped.Error():
		return errState
	case "image not known", "no such image": // of containers/storage; of libpod since 5.0
		return errNoImage
	case define.ErrCtrExists.Error():
		return errTaken
	case "invalid reference format": // of distribution: not the name of an image
		return ErrImage
	case define.ErrNoSuchNetwork.Error():
		return errNoNetwork
	case define.ErrOCIRuntimeNotFound.Error(), define.ErrOCIRuntimePermissionDenied.Error(),
		define.ErrInvalidArg.Error(), syscall.ENOENT.Error():
		return ErrSpec
	}
	switch {
	case strings.Contains(m.Message, "already in use"): // the cause differs between storage's and libpod's names
		return errTaken
	case m.ResponseCode == http.StatusBadRequest:
		return ErrSpec
	}
	return nil
}

// oneLine makes Podman's words fit for a log line: no line breaks, container
// IDs in short form, an end in sight.
func oneLine(s string) string {
	words := strings.Fields(s)
	for i, w := range words {
		words[i] = shortIDs(w)
	}
	s = strings.Join(words, " ")
	const limit = 400
	if len(s) <= limit {
		return s
	}
	cut := limit
	for !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "..."
}

// shortIDs cuts every run of exactly 64 hexadecimal digits in s to 12.
func shortIDs(s string) string {
	hex := func(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' }
	var b strings.Builder
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && hex(s[j]) {
			j++
		}
		switch {
		case j == i:
			b.WriteByte(s[i])
			i++
		case j-i == 64:
			b.WriteString(s[i : i+12])
			i = j
		default:
			b.WriteString(s[i:j])
			i = j
		}
	}
	return b.String()
}
