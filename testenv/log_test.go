package testenv

import (
	"slices"
	"testing"
	"time"
)

// TestLogWait: what stands there already is found, and what comes while
// somebody waits; what was the last before the end too.
func TestLogWait(t *testing.T) {
	t.Parallel()
	for range 100 {
		var l Log[string]
		l.Add("first")
		l.Add("second")
		done := make(chan struct{})
		got := l.Wait(t, time.Minute, 1, "the last", done, func(s string) bool {
			switch s {
			case "first":
				t.Error("it stands before the mark")
			case "second":
				l.Add("last")
				close(done)
			}
			return s == "last"
		})
		if got != "last" {
			t.Errorf("got %q", got)
		}
		if got := l.Since(l.Mark() - 2); !slices.Equal(got, []string{"second", "last"}) {
			t.Errorf("the last two are %v", got)
		}
		if got := l.Since(l.Mark() + 1); len(got) != 0 {
			t.Errorf("past the end: %v", got)
		}
	}
}
