package control

import (
	"testing"
	"time"
)

// TestStepped: only a wall clock that has lost time against the steady one was
// set back; one set forward asks for nothing.
func TestStepped(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		wall, steady time.Duration
		want         bool
	}{
		{5 * time.Second, 5 * time.Second, false},
		{5*time.Second - 500*time.Millisecond, 5 * time.Second, false}, // slewed
		{-time.Hour, 5 * time.Second, true},
		{3 * time.Second, 5 * time.Second, true},
		{time.Hour, 5 * time.Second, false},
	} {
		if got := stepped(c.wall, c.steady); got != c.want {
			t.Errorf("wall %s, steady %s: %v", c.wall, c.steady, got)
		}
	}
}
