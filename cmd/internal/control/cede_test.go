package control

import (
	"context"
	"testing"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/inherit"
)

// TestCedeAtTheEnd: what another daemon has taken over stays its own, also if
// this one is told to stop at that very moment.
func TestCedeAtTheEnd(t *testing.T) {
	t.Parallel()
	for range 50 {
		c := New(Options{Table: &refusing{}, Record: unrecorded{}, Log: zerolog.Nop()})
		c.adopted = true
		run, stop := context.WithCancel(t.Context())
		answer := make(chan error, 1)
		go func() {
			answer <- c.Cede(t.Context(), func([]inherit.Socket) error { stop(); return nil })
		}()
		c.until(t, "the request", func() bool { return c.ceding != nil })
		ceded := c.cede(run)
		close(c.finished)
		if err := <-answer; err != nil || !ceded {
			t.Fatalf("the other was told %v, ceded: %v", err, ceded)
		}
	}
}
