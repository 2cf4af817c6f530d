package podman_test

import (
	"context"
	"testing"
	"time"

	"sluice/podman"
	"sluice/testenv"
)

// BenchmarkReplica measures what a wake and a sleep cost through this package:
// b.N rounds of everything, on a bridge that another container keeps up.
// Results are medians of milliseconds per step.
func BenchmarkReplica(b *testing.B) {
	h := newHost(b)
	ctx := context.Background()
	h.pod.CLI(b, "run", "-d", "--name", "anchor", "--env", "NEVER_LISTEN=1", testenv.Image)
	s := spec("bench")
	s.Pull = ""
	name := podman.Name("bench", 1)

	times := map[string][]time.Duration{}
	step := func(what string, f func() (podman.Replica, error)) (r podman.Replica) {
		b.Helper()
		begin := time.Now()
		r = made(b, what)(f())
		times[what] = append(times[what], time.Since(begin))
		return r
	}
	plain := func(f func() error) func() (podman.Replica, error) {
		return func() (podman.Replica, error) { return podman.Replica{}, f() }
	}
	serves := func(r podman.Replica) func() (podman.Replica, error) {
		return plain(func() error { h.serves(b, r); return nil })
	}
	create := func() (podman.Replica, error) { return h.c.Create(ctx, s, 1) }
	start := func() (podman.Replica, error) { return h.c.Start(ctx, name) }
	remove := plain(func() error { return h.c.Remove(ctx, name) })

	for b.Loop() {
		// From nothing.
		wake := time.Now()
		step("create", create)
		r := step("start", start)
		step("http", serves(r))
		times["create-start-http"] = append(times["create-start-http"], time.Since(wake))
		step("inspect", func() (podman.Replica, error) { return h.c.Inspect(ctx, name) })
		step("list-live", plain(func() error { _, err := h.c.List(ctx); return err }))
		step("pause", plain(func() error { return h.c.Pause(ctx, name) }))
		step("unpause", plain(func() error { return h.c.Unpause(ctx, name) }))
		step("stop", plain(func() error { return h.c.Stop(ctx, name, 10*time.Second) }))
		step("remove", remove)
		// From prepared.
		made(b, "create")(create())
		r = step("init", func() (podman.Replica, error) { return h.c.Init(ctx, name) })
		wake = time.Now()
		r = step("start-prepared", func() (podman.Replica, error) { return h.c.StartPrepared(ctx, r) })
		step("http-prepared", serves(r))
		times["prepared-start-http"] = append(times["prepared-start-http"], time.Since(wake))
		step("remove-live", remove)
	}
	for what, d := range times {
		b.ReportMetric(median(d).Seconds()*1e3, what+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}
