package control

import (
	"errors"
	"testing"

	"github.com/rs/zerolog"

	"sluice/policy"
)

// TestFailedAgain: what fails again in the same way is told once, until it has
// gone well or goes wrong in another way.
func TestFailedAgain(t *testing.T) {
	t.Parallel()
	s := &service{}
	down, full := errors.New("podman is down"), errors.New("no space")
	for i, x := range []struct {
		index int
		kind  policy.Kind
		err   error
		want  zerolog.Level
	}{
		{1, policy.NoteRetry, down, zerolog.WarnLevel},
		{1, policy.NoteRetry, down, zerolog.DebugLevel},
		{2, policy.NoteRetry, down, zerolog.WarnLevel},
		{1, policy.NoteRetry, full, zerolog.WarnLevel},
		{1, policy.NoteRetry, full, zerolog.DebugLevel},
		{1, policy.NoteStopFail, full, zerolog.WarnLevel},
		{2, policy.NoteRetry, down, zerolog.DebugLevel},
		{3, policy.NoteRetry, errors.New("write tmp123: no space"), zerolog.WarnLevel},
		{3, policy.NoteRetry, errors.New("write tmp4: no space"), zerolog.DebugLevel},
	} {
		if got := s.failed(policy.Note{Kind: x.kind, Index: x.index, Err: x.err}); got != x.want {
			t.Errorf("attempt %d: told at level %s, want %s", i, got, x.want)
		}
	}
}
