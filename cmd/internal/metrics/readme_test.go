package metrics

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"sluice/cmd/internal/control"
)

type source struct{}

func (source) Status(context.Context, ...string) (control.Status, error) {
	return control.Status{Services: []control.ServiceStatus{{
		Name: "web", Phase: "warm", Backends: []control.BackendStatus{{Name: "sluice-web-1", State: "ready"}},
	}}}, nil
}

func (source) Refresh(context.Context, time.Duration) error { return nil }
func (source) Resyncs() uint64                              { return 0 }

// TestReadme: the table in the README and the real output name the same
// metrics.
func TestReadme(t *testing.T) {
	t.Parallel()
	r := New("v", "go")
	r.Watch(source{}, source{})
	for _, f := range []func(){
		func() { r.ColdStart("start", 1) }, func() { r.Decision("load") }, func() { r.Handover("handover") },
	} {
		f() // a vector without values is not exported
	}
	families, err := prometheus.Gatherer(r.Registry()).Gather()
	if err != nil {
		t.Fatal(err)
	}
	real := map[string]bool{}
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "sluice_") {
			real[f.GetName()] = true
		}
	}
	text, err := os.ReadFile("../../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "| `sluice_") {
			for _, name := range regexp.MustCompile("`(sluice_[a-z_]+)").FindAllStringSubmatch(line, -1) {
				told[name[1]] = true
			}
		}
	}
	for name := range real {
		if !told[name] {
			t.Errorf("the README does not tell of %s", name)
		}
	}
	for name := range told {
		if !real[name] {
			t.Errorf("the README tells of %s, which is not exported", name)
		}
	}
}
