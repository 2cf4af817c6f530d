package metrics

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"testing"
	"time"

	"sluice/cmd/internal/control"
)

// fleet is many services of two backends each.
type fleet struct{ st control.Status }

func newFleet(n int) *fleet {
	f := &fleet{}
	for i := range n {
		s := control.ServiceStatus{Name: fmt.Sprintf("service-%d", i), Phase: "warm"}
		for j := range 2 {
			s.Backends = append(s.Backends, control.BackendStatus{Name: fmt.Sprintf("10.%d.%d.%d:8080", j, i>>8, i&255), State: "ready"})
		}
		f.st.Services = append(f.st.Services, s)
	}
	return f
}

func (f *fleet) Status(context.Context, ...string) (control.Status, error) { return f.st, nil }
func (f *fleet) Refresh(context.Context, time.Duration) error              { return nil }
func (f *fleet) Resyncs() uint64                                           { return 0 }

type discard struct {
	io.Writer
	n int
}

func (d *discard) Header() http.Header { return http.Header{} }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// BenchmarkScrape scrapes 10,000 services of two backends each.
func BenchmarkScrape(b *testing.B) {
	r := New("v", "go")
	f := newFleet(10_000)
	h := r.Handler(f, f)
	b.ReportAllocs()
	var size int
	var peak runtime.MemStats
	for b.Loop() {
		d := &discard{}
		h.ServeHTTP(d, httptest.NewRequest("GET", "/metrics", nil))
		size = d.n
	}
	runtime.ReadMemStats(&peak)
	b.ReportMetric(float64(size)/1e6, "MB")
	b.ReportMetric(float64(peak.HeapSys)/(1<<20), "MiB-heap")
}
