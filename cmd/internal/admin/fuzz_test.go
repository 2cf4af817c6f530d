package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/verdict"
	"sluice/policy"
)

// told is a daemon that notes what it is told. It knows one service.
type told struct {
	orders []policy.Event
	drains int
	judged int
	loads  int
}

func (d *told) Status(_ context.Context, services ...string) (control.Status, error) {
	if slices.ContainsFunc(services, func(s string) bool { return s != "web" }) {
		return control.Status{}, control.ErrUnknown
	}
	return control.Status{}, nil
}

func (d *told) Do(_ context.Context, service string, ev policy.Event) error {
	if service != "web" {
		return control.ErrUnknown
	}
	d.orders = append(d.orders, ev)
	return nil
}

func (d *told) Drain(_ context.Context, service, _ string) error {
	if service != "web" {
		return control.ErrUnknown
	}
	d.drains++
	return nil
}

func (d *told) Judge(_ context.Context, service string, _ verdict.Word) error {
	if service != "web" {
		return control.ErrUnknown
	}
	d.judged++
	return nil
}

func (d *told) Follow() (<-chan control.Event, func()) { return nil, func() {} }

func (d *told) Reload(context.Context) error {
	d.loads++
	return errors.New("no\nsuch file")
}

// FuzzHandler: whatever is sent to the socket, only a POST to an order's own path
// is an order, and each error is JSON that says something.
func FuzzHandler(f *testing.F) {
	for _, s := range []string{
		"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/status?service=web&service=db HTTP/1.1\r\nHost: x\r\n\r\n",
		"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/services/web/wake HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/services/web/scale?n=3 HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/services/web/scale HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 4\r\n\r\nn=-1",
		"POST /v1/services/web/scale HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 60\r\n\r\n--b\r\nContent-Disposition: form-data; name=\"n\"\r\n\r\n2\r\n--b--",
		"POST /v1/services/web/canary?verdict=aborted HTTP/1.1\r\nHost: x\r\n\r\n",
		"POST /v1/services/%2e%2e/drain?backend=sluice-web-1 HTTP/1.1\r\nHost: x\r\n\r\n",
		"PUT /v1//services/web/wake HTTP/1.0\r\n\r\n",
		"CONNECT /v1/reload HTTP/1.1\r\nHost: x\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		req, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // or events would be followed for ever
		d, w := &told{}, httptest.NewRecorder()
		Handler(d, d).ServeHTTP(w, req.WithContext(ctx))
		if n := len(d.orders) + d.drains + d.judged + d.loads; n > 1 || n == 1 && req.Method != http.MethodPost {
			t.Fatalf("%s %s: %d orders: %+v", req.Method, req.URL, n, d)
		}
		for _, o := range d.orders {
			if _, wake := o.(policy.Wake); wake != strings.HasSuffix(req.URL.Path, "/wake") {
				t.Fatalf("%s leads to %T", req.URL, o)
			}
		}
		if w.Header().Get("Content-Type") != "application/json" {
			return // the mux's own: not found, not allowed, moved; or events
		}
		var e struct{ Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || (w.Code != http.StatusOK) != (e.Error != "") {
			t.Fatalf("%s %s: %d: %q", req.Method, req.URL, w.Code, w.Body)
		}
	})
}

// FuzzReply: whatever the other end of the socket says, the client answers with
// a status or an error that says something.
func FuzzReply(f *testing.F) {
	f.Add(200, []byte(`{"services":[{"name":"web","listen":["192.0.2.10:80/tcp"],"backends":[{}]}]}`))
	f.Add(404, []byte(`{"error":"no service \"x\""}`))
	f.Add(500, []byte("<html>"))
	f.Add(400, []byte(`{"error":"two\nlines"}`))
	f.Fuzz(func(t *testing.T, code int, body []byte) {
		if code < 100 || code > 999 {
			return
		}
		c := Dial("/nowhere")
		c.http = &http.Client{Transport: answers(func() *http.Response {
			return &http.Response{StatusCode: code, Status: http.StatusText(code), Body: io.NopCloser(bytes.NewReader(body)), Header: http.Header{}}
		})}
		if _, err := c.Status(context.Background(), "web"); err != nil && strings.TrimSpace(err.Error()) == "" {
			t.Fatalf("%d %q: an error that says nothing", code, body)
		}
		if err := c.Follow(context.Background(), func(control.Event) error { return nil }); err == nil {
			t.Fatalf("%d %q: events go on for ever", code, body)
		}
		err := c.Order(context.Background(), "web", "wake")
		if (err == nil) != (code == http.StatusOK) {
			t.Fatalf("%d %q: %v", code, body, err)
		}
	})
}

type answers func() *http.Response

func (a answers) RoundTrip(*http.Request) (*http.Response, error) { return a(), nil }
