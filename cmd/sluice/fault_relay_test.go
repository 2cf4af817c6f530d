package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sluice/testenv"
)

// podmanRelay stands between the daemon and Podman and makes it slow, deaf or
// full, at will.
type podmanRelay struct {
	path string
	to   *http.Transport

	mu      sync.Mutex
	delay   time.Duration
	full    bool
	listing chan func() // gets what lets a question for all containers pass; nil: they pass
	streams map[*http.Request]context.CancelFunc
	stops   []string // what was asked with each stop of a container

	starting, most int // starts that go on, and how many did at a time
}

func newPodmanRelay(t *testing.T, pod *testenv.Podman, dir string) *podmanRelay {
	t.Helper()
	r := &podmanRelay{
		path: filepath.Join(dir, "relay.sock"),
		to: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", pod.Socket())
		}},
		streams: map[*http.Request]context.CancelFunc{},
	}
	ln, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: "podman"})
		},
		FlushInterval: -1,
		Transport:     r,
		// Whoever asked finds the connection gone, as when Podman goes.
		ErrorHandler: func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
	}
	srv := &http.Server{ReadHeaderTimeout: patient, Handler: http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		ctx, cancel := context.WithCancel(q.Context())
		defer cancel()
		q = q.WithContext(ctx)
		r.mu.Lock()
		delay, full, listing := r.delay, r.full, r.listing
		if strings.HasSuffix(q.URL.Path, "/events") {
			r.streams[q] = cancel
		}
		if strings.HasSuffix(q.URL.Path, "/stop") {
			r.stops = append(r.stops, q.URL.RawQuery)
		}
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			delete(r.streams, q)
			r.mu.Unlock()
		}()
		pause(ctx, delay)
		if listing != nil && strings.HasSuffix(q.URL.Path, "/containers/json") {
			pass, stop := context.WithCancel(ctx)
			select {
			case listing <- stop:
			case <-ctx.Done():
			}
			<-pass.Done()
			stop()
		}
		if full && q.Method == http.MethodPost {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusInternalServerError)
			_ = json.NewEncoder(w).Encode(map[string]any{
				"cause": "no space left on device", "message": "creating container storage: no space left on device", "response": 500,
			})
			return
		}
		proxy.ServeHTTP(w, q)
	})}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	return r
}

func (r *podmanRelay) set(delay time.Duration, full bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.delay, r.full = delay, full
}

// RoundTrip passes a question on to Podman, and counts while it starts something.
func (r *podmanRelay) RoundTrip(q *http.Request) (*http.Response, error) {
	if strings.HasSuffix(q.URL.Path, "/start") || strings.HasSuffix(q.URL.Path, "/init") {
		r.mu.Lock()
		r.starting++
		r.most = max(r.most, r.starting)
		r.mu.Unlock()
		defer func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.starting--
		}()
	}
	return r.to.RoundTrip(q)
}

// cut ends the streams of events and tells how many there were.
func (r *podmanRelay) cut() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, cancel := range r.streams {
		cancel()
	}
	return len(r.streams)
}
