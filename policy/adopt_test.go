package policy

import (
	"testing"
	"time"
)

// TestAdoptDraining: a replica that an earlier run was draining carries flows
// although no slot names it. Whether it is not wanted, does not become healthy,
// or the wake that it takes part in fails: it is counted before it is stopped.
func TestAdoptDraining(t *testing.T) {
	t.Parallel()
	draining := Replica{Index: 1, Running: true, Hash: "a"}
	serving := Replica{Index: 2, Running: true, Mapped: true, Hash: "a"}
	for name, run := range map[string]func(w *world){
		"not wanted":  func(w *world) { w.pass(10 * time.Second) },
		"not healthy": func(w *world) { w.pass(2 * testSpec().StartTimeout) },
		"wake fails": func(w *world) {
			w.accept()
			w.pass(2 * testSpec().StartTimeout)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			replicas := []Replica{draining}
			if name == "not wanted" {
				replicas = append(replicas, serving)
			}
			w := newWorld(t, testSpec(), replicas...)
			w.flows[1] = 5
			run(w)
			if !w.up[1] {
				t.Error("stopped with flows")
			}
		})
	}
}
