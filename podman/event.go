package podman

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/containers/podman/v5/pkg/bindings"
)

// Action is what happened to a replica.
type Action uint8

// The actions, with Podman's own words for them.
const (
	_         Action = iota
	OnCreate         // create
	OnInit           // init
	OnStart          // start
	OnDeath          // died
	OnPause          // pause
	OnUnpause        // unpause
	OnRemove         // remove
	OnRename         // rename; the name is the new one
)

// actions are Podman's words, in the order of the constants.
func actions() []string {
	return []string{"create", "init", "start", "died", "pause", "unpause", "remove", "rename"}
}

// String is Podman's word for the action.
func (a Action) String() string {
	if words := actions(); a > 0 && int(a) <= len(words) {
		return words[a-1]
	}
	return "unknown"
}

// actionOf is the action that Podman has this word for; 0 for all others.
func actionOf(word string) Action {
	for i, w := range actions() {
		if w == word {
			return Action(i + 1)
		}
	}
	return 0
}

// An Event says that something happened to a replica, whoever did it.
type Event struct {
	Action   Action
	Name     string
	ID       string
	Service  string
	Index    int
	ExitCode int // of OnDeath
	Time     time.Time
}

// Watch calls f for every event of a replica later than since, in order, from
// its own goroutine, and returns when the stream ends: ctx's error, or
// ErrUnreachable when the service went away. The caller then lists the replicas
// and watches again.
//
// A caller that notes the time, starts to watch since then, and lists after
// that misses nothing; what it sees twice is up to it. Events come 90 to 250 ms
// late (Podman tails a file) and are hints: see Exited for deaths. While it
// runs, a socket-activated service does not go to sleep.
func (c *Client) Watch(ctx context.Context, since time.Time, f func(Event)) error {
	const verb = "watch podman's events"
	// Not the bindings' Events: its goroutine never ends if nobody drains it.
	return c.do(ctx, verb, func(ctx context.Context) error {
		conn, err := bindings.GetClient(ctx)
		if err != nil {
			return err
		}
		filters, err := json.Marshal(map[string][]string{"type": {"container"}, "event": actions()})
		if err != nil {
			return err
		}
		// 4.3 sends no header before the first event: this may return late.
		res, err := conn.DoRequest(ctx, nil, http.MethodGet, "/events", url.Values{
			"stream":  {"true"},
			"since":   {since.Format(time.RFC3339Nano)},
			"filters": {string(filters)},
		}, nil)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if !res.IsSuccess() {
			return res.Process(nil)
		}
		return decodeEvents(res.Body, since, f)
	})
}

// decodeEvents calls f for every event of ours in the stream. It never returns
// nil: the end of the stream is io.ErrUnexpectedEOF.
func decodeEvents(stream io.Reader, since time.Time, f func(Event)) error {
	for d := json.NewDecoder(stream); ; {
		var raw rawEvent
		err := d.Decode(&raw)
		switch {
		case errors.Is(err, io.EOF):
			return io.ErrUnexpectedEOF
		case err != nil:
			return fmt.Errorf("decode event: %w", err)
		}
		if e, ok := raw.event(); ok && e.Time.After(since) {
			f(e)
		}
	}
}

// rawEvent is the part of Podman's event that we use.
type rawEvent struct {
	Type   string
	Action string
	Actor  struct {
		ID         string
		Attributes map[string]string
	}
	Time     int64 `json:"time"`
	TimeNano int64 `json:"timeNano"`
}

// event converts an event of a replica. The filter for labels is here: 4.3
// passes nothing at all if asked for a label without a value.
func (r rawEvent) event() (Event, bool) {
	at := r.Actor.Attributes
	e := Event{
		Action:  actionOf(r.Action),
		ID:      r.Actor.ID,
		Name:    at["name"],
		Service: at[LabelService],
		Time:    time.Unix(0, r.TimeNano),
	}
	if r.TimeNano == 0 {
		e.Time = time.Unix(r.Time, 0)
	}
	if r.Type != "container" || e.Action == 0 || e.Service == "" {
		return Event{}, false
	}
	e.Index, _ = strconv.Atoi(at[LabelIndex])
	if e.Action == OnDeath {
		e.ExitCode, _ = strconv.Atoi(at["containerExitCode"])
	}
	return e, true
}
