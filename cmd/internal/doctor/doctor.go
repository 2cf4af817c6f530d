// Package doctor looks for what keeps sluice from working on this host, and
// says what to do about it. It changes nothing.
package doctor

import (
	"context"
	"fmt"

	"sluice/cmd/internal/config"
)

// Levels of a finding.
const (
	OK   = "ok"
	Warn = "warn" // something does not work, or not well
	Fail = "fail" // nothing works, or a service does not
)

// A Finding is the outcome of one look.
type Finding struct {
	Level  string `json:"level"`
	Check  string `json:"check"`            // one word
	Text   string `json:"text"`             // what was seen
	Remedy string `json:"remedy,omitempty"` // what to do; never with OK
}

// A Host is what is examined: this machine, in the calling thread's network
// namespace, for a configuration.
type Host struct {
	Config  *config.Config
	Running bool // the daemon is: its addresses and its table are in use by itself
}

// Examine looks at everything, in the order in which it should be put right.
// That something cannot be looked at is a finding too, so it never fails.
func (h *Host) Examine(ctx context.Context) []Finding {
	r := &report{}
	h.kernel(r)
	h.tracking(r)
	h.limits(r)
	h.forwarding(r)
	h.chains(r)
	h.addresses(r)
	h.podman(ctx, r)
	return r.list
}

// Worst is the gravest level among findings.
func Worst(list []Finding) string {
	worst := OK
	for _, f := range list {
		if f.Level == Fail || f.Level == Warn && worst == OK {
			worst = f.Level
		}
	}
	return worst
}

type report struct{ list []Finding }

func (r *report) ok(check, format string, args ...any) {
	r.list = append(r.list, Finding{Level: OK, Check: check, Text: fmt.Sprintf(format, args...)})
}

func (r *report) warn(check, remedy, format string, args ...any) {
	r.list = append(r.list, Finding{Level: Warn, Check: check, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}

func (r *report) fail(check, remedy, format string, args ...any) {
	r.list = append(r.list, Finding{Level: Fail, Check: check, Text: fmt.Sprintf(format, args...), Remedy: remedy})
}
