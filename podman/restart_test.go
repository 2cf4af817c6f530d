package podman_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"sluice/podman"
)

// TestRestart loses the service under a client: what is under way fails at
// once, deaths are noticed all the same, and the same client works again when
// the service is back.
func TestRestart(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	ctx := bounded(t)
	var rs []podman.Replica
	for i := 1; i <= 2; i++ {
		made(t, "create")(h.c.Create(ctx, spec("restart"), i))
		rs = append(rs, made(t, "start")(h.c.Start(ctx, podman.Name("restart", i))))
	}
	watched := make(chan error, 1)
	seen := make(chan podman.Event, 64)
	since := time.Now()
	go func() { watched <- h.c.Watch(ctx, since, func(e podman.Event) { seen <- e }) }()
	ok(t, h.c.Pause(ctx, rs[1].Name))
	ok(t, h.c.Unpause(ctx, rs[1].Name))
	next := func(want podman.Action) podman.Event {
		t.Helper()
		for {
			select {
			case e := <-seen:
				if e.Action == want {
					return e
				}
			case <-time.After(patience):
				t.Fatalf("no event %v", want)
			}
		}
	}
	last := next(podman.OnUnpause)

	h.pod.KillService(t)
	select {
	case err := <-watched:
		line(t, err, podman.ErrUnreachable)
	case <-time.After(patience):
		t.Fatal("watch outlives the service")
	}
	begun := time.Now()
	for range 10 {
		_, err := h.c.Start(ctx, rs[0].Name)
		line(t, err, podman.ErrUnreachable, rs[0].Name, h.pod.Socket(), "systemctl enable --now podman.socket")
	}
	// The bindings by themselves take 0.6 s for each.
	if d := time.Since(begun); d > 3*time.Second {
		t.Errorf("ten refusals took %v", d)
	}
	if _, err := h.c.List(ctx); !errors.Is(err, podman.ErrUnreachable) {
		t.Errorf("list: %v", err)
	}
	if err := h.c.Pull(ctx, spec("restart")); !errors.Is(err, podman.ErrUnreachable) || errors.Is(err, podman.ErrImage) {
		t.Errorf("pull: %v", err)
	}
	h.serves(t, rs[0])

	died := make(chan error, 1)
	go func() { died <- h.c.Exited(ctx, rs[0]) }()
	p, err := os.FindProcess(rs[0].PID)
	ok(t, err)
	ok(t, p.Kill())
	select {
	case err := <-died:
		ok(t, err)
	case <-time.After(patience):
		t.Fatal("death not noticed without the service")
	}

	h.pod.StartService(t)
	if now := made(t, "inspect")(h.c.Ended(ctx, rs[0])); now.State.Live() || now.ExitCode != 137 {
		t.Errorf("died meanwhile: %+v", now)
	}
	if now := made(t, "inspect")(h.c.Inspect(ctx, rs[1].Name)); now.State != podman.Running || now.PID != rs[1].PID || now.Addr() != rs[1].Addr() {
		t.Errorf("lived on: %+v", now)
	}
	h.serves(t, rs[1])
	h.serves(t, made(t, "start")(h.c.Start(ctx, rs[0].Name)))

	// The new stream tells what was missed.
	go func() { watched <- h.c.Watch(ctx, last.Time, func(e podman.Event) { seen <- e }) }()
	if e := next(podman.OnDeath); e.ID != rs[0].ID || e.ExitCode != 137 {
		t.Errorf("death told late: %+v", e)
	}
	if e := next(podman.OnStart); e.ID != rs[0].ID {
		t.Errorf("start told after it: %+v", e)
	}
}

// TestSilent has a service that takes connections and, after the first answer,
// says nothing.
func TestSilent(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	socket := filepath.Join(t.TempDir(), "podman.sock")
	l, err := net.Listen("unix", socket)
	ok(t, err)
	var asked atomic.Int32
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			w.Header().Set("Libpod-API-Version", "4.3.1")
			return
		}
		<-r.Context().Done()
	})}
	go server.Serve(l)
	defer server.Close()

	o := podman.Options{Timeout: 200 * time.Millisecond}
	c, err := podman.Open(ctx, "unix://"+socket, o)
	ok(t, err)
	defer c.Close()
	line(t, c.Ping(ctx), podman.ErrUnreachable, socket, "no answer in time")
	_, err = podman.Open(ctx, "unix://"+socket, o)
	line(t, err, podman.ErrUnreachable, socket, "no answer in time")
	brief, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
	defer cancel()
	_, err = c.Start(brief, "sluice-x-1")
	line(t, err, context.DeadlineExceeded)
	if errors.Is(err, podman.ErrUnreachable) {
		t.Errorf("podman blamed: %v", err)
	}
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	absent := filepath.Join(t.TempDir(), "podman.sock")
	_, err := podman.Open(ctx, "unix://"+absent, podman.Options{})
	line(t, err, podman.ErrUnreachable, absent, "systemctl enable --now podman.socket")
	for _, uri := range []string{"tcp://127.0.0.1:1", "ssh://root@host/run/podman.sock", "unix://relative/path", "/run/podman/podman.sock", "unix:", "%"} {
		_, err := podman.Open(ctx, uri, podman.Options{})
		line(t, err, nil, strings.TrimPrefix(uri, "unix:"))
		if errors.Is(err, podman.ErrUnreachable) {
			t.Errorf("%s: %v", uri, err)
		}
	}
}
