package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestPage: what it says of services, whatever the words of others in it.
func TestPage(t *testing.T) {
	t.Parallel()
	st := control.Status{
		ConfigError: `a.toml:1: "<b>"`,
		Services: []control.ServiceStatus{
			{
				Name: "web", Listen: []string{"192.0.2.10:80/tcp", "[2001:db8::10]:80/tcp"}, Phase: "warm", Ready: 1, Desired: 2, Flows: 17, Held: 3,
				LastError: `exec: <script>alert("x")</script>`,
				Backends:  []control.BackendStatus{{Name: "<i>sluice-web-1", Address: "10.88.0.5:80", State: "ready", Flows: 17, Canary: true}},
				Canary:    &control.CanaryStatus{},
			},
			{Name: "db", Phase: "cold"},
		},
	}
	ask := func(status control.Status, err error) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h := pageHandler(func(context.Context, ...string) (control.Status, error) { return status, err })
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		return w
	}
	w := ask(st, nil)
	body := w.Body.String()
	for _, want := range []string{
		`<html lang="en">`, `<meta http-equiv="refresh" content="5">`, `<a href="/metrics">`,
		"a.toml:1: &#34;&lt;b&gt;&#34;",
		"<h2>web</h2>", "warm, 1 of 2 replicas ready, 17 connections, 3 held, 0 relayed; at 192.0.2.10:80/tcp [2001:db8::10]:80/tcp<",
		"Last error: exec: &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;",
		`<th scope="row">&lt;i&gt;sluice-web-1</th><td>10.88.0.5:80</td><td>ready (canary)</td><td>17</td>`,
		"<h2>db</h2>", "cold, 0 of 0 replicas ready",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("no %s in\n%s", want, body)
		}
	}
	if strings.Contains(body, "<script") || strings.Contains(body, "<i>") {
		t.Errorf("not escaped:\n%s", body)
	}
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/html; charset=utf-8" {
		t.Errorf("%d, %v", w.Code, w.Header())
	}
	if body := ask(control.Status{}, nil).Body.String(); !strings.Contains(body, "No services.") {
		t.Errorf("without services:\n%s", body)
	}
	if w := ask(st, errors.New("busy")); w.Code != http.StatusServiceUnavailable || strings.Contains(w.Body.String(), "web") {
		t.Errorf("of nobody who answers: %d, %s", w.Code, w.Body)
	}
}

// TestPageServed: the daemon shows it at the metrics address, and nothing at
// places that it does not have.
func TestPageServed(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start(t, h.configure(t, "[service.db]\nlisten = [\""+address+":80/tcp\"]\n[[service.db.backend]]\naddress = \"10.1.2.3:5432\"\n"))
	c := h.Host.HTTPClient(testenv.HTTPOptions{Timeout: patient})
	for path, code := range map[string]int{"/": 200, "/metrics": 200, "/healthz": 200, "/readyz": 200, "/index.html": 404, "/metrics/x": 404} {
		resp, err := c.Get("http://127.0.0.1:9464" + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != code {
			t.Errorf("%s: %d, %v, want %d", path, resp.StatusCode, err, code)
		}
		if path == "/" && !strings.Contains(string(b), "<h2>db</h2>") {
			t.Errorf("%s", b)
		}
	}
}
