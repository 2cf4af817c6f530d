package metrics

import (
	"bufio"
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"sluice/cmd/internal/control"
)

// Source tells the state of all services.
type Source interface {
	Status(ctx context.Context, services ...string) (control.Status, error)
}

// Flows counts the flows of the kernel.
type Flows interface {
	// Refresh brings the counts up to date by a dump, if they are older.
	Refresh(ctx context.Context, age time.Duration) error
	Resyncs() uint64 // how often events were lost
}

const (
	gatherTimeout  = 5 * time.Second
	refreshTimeout = time.Second
	freshness      = time.Second
)

// Handler answers scrapes, in Prometheus' text format, with what the Recorder was
// told and with the state of all services at that moment. It is to be made once.
//
// Bytes and packets of open flows are known by dumps alone, so that a scrape makes
// one, unless there was one a moment ago.
func (r *Recorder) Handler(src Source, flows Flows) http.Handler {
	r.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "sluice_conntrack_resyncs_total", Help: "Times the flows had to be counted anew because events were lost.",
	}, func() float64 { return float64(flows.Resyncs()) }))
	// Text alone, and as it is, for the services' part is added to it.
	recorded := promhttp.HandlerFor(r.registry, promhttp.HandlerOpts{DisableCompression: true})
	all := families()
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), gatherTimeout)
		defer cancel()
		limit, done := context.WithTimeout(ctx, refreshTimeout)
		_ = flows.Refresh(limit, freshness) // if it fails the counts are those of the last dump
		done()
		st, err := src.Status(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		var body io.Writer = w
		if strings.Contains(req.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z, _ := gzip.NewWriterLevel(w, gzip.BestSpeed) // which is a level
			defer z.Close()
			body = z
		}
		plain := req.Clone(ctx)
		plain.Header.Del("Accept")
		recorded.ServeHTTP(response{w, body}, plain)
		out := bufio.NewWriterSize(body, 32<<10)
		for _, f := range all {
			f.write(out, st.Services)
		}
		_ = out.Flush() // the scraper has gone
	})
}

// response is a response whose body takes another way.
type response struct {
	http.ResponseWriter
	body io.Writer
}

func (r response) Write(p []byte) (int, error) { return r.body.Write(p) }
