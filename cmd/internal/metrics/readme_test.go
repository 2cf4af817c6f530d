package metrics

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

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

// TestEscape: a label's value may hold anything.
func TestEscape(t *testing.T) {
	t.Parallel()
	if got, want := string(escape(nil, "a\"b\\c\nd\u00e9")), `a\"b\\c\nd\u00e9`; got != strings.ReplaceAll(want, `\u00e9`, "\u00e9") {
		t.Errorf("%s, want %s", got, want)
	}
}

// TestGzip: whoever asks for it is answered in gzip, with the same text.
func TestGzip(t *testing.T) {
	t.Parallel()
	f := newFleet(300)
	r := New("v", "go")
	h := r.Handler(f, f)
	told := func(encoding string) string {
		req := httptest.NewRequest(http.MethodGet, "/metrics", nil)
		req.Header.Set("Accept-Encoding", encoding)
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, req)
		var body io.Reader = rec.Body
		if rec.Header().Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(rec.Body)
			if err != nil {
				t.Fatal(err)
			}
			body = z
		}
		b, err := io.ReadAll(body)
		if err != nil {
			t.Fatal(err)
		}
		if typ := rec.Header().Get("Content-Type"); !strings.HasPrefix(typ, "text/plain; version=0.0.4") {
			t.Errorf("content type %q", typ)
		}
		_, services, ok := strings.Cut(string(b), "# HELP sluice_service_phase ")
		if !ok || rec.Header().Get("Content-Encoding") != encoding {
			t.Errorf("%q: encoding %q, services %v", encoding, rec.Header().Get("Content-Encoding"), ok)
		}
		return services
	}
	if plain := told(""); plain != told("gzip") || strings.Count(plain, `service="service-299"`) < 30 {
		t.Errorf("gzip tells something else, or %d values of a service", strings.Count(plain, `service="service-299"`))
	}
}

// TestReadme: the table in the README and the real output name the same
// metrics.
func TestReadme(t *testing.T) {
	t.Parallel()
	r := New("v", "go")
	h := r.Handler(source{}, source{})
	for _, f := range []func(){
		func() { r.ColdStart("start", 1) }, func() { r.Decision("load") }, func() { r.Handover("handover") },
	} {
		f() // a vector without values is not exported
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := rec.Body.String()
	problems, err := promlint.New(strings.NewReader(body)).Lint()
	if err != nil || rec.Code != http.StatusOK {
		t.Fatal(rec.Code, err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "sluice_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	real, values := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(body) {
		if name, ok := strings.CutPrefix(line, "# TYPE sluice_"); ok {
			real["sluice_"+strings.Fields(name)[0]] = true
		}
		key := line[:strings.LastIndexByte(line, ' ')]
		if values[key] && line[0] != '#' {
			t.Errorf("%s is told twice", key)
		}
		values[key] = true
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
