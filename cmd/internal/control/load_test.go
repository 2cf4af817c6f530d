package control

import (
	"testing"
	"time"

	"sluice/cmd/internal/config"
)

// TestSyncs: flows whose end no event tells in time are looked for within a
// quarter of the time that makes their service idle.
func TestSyncs(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		proto  config.Proto
		counts config.IdleCounts
		idle   time.Duration
		want   time.Duration
	}{
		{config.TCP, config.IdleFlows, 4 * time.Second, syncEvery},
		{config.TCP, config.IdleBytes, 20 * time.Second, 5 * time.Second},
		{config.UDP, config.IdleFlows, 20 * time.Second, 5 * time.Second},
		{config.UDP, config.IdleFlows, time.Second, loadEvery},
		{config.UDP, config.IdleBytes, time.Hour, syncEvery},
	} {
		cfg := config.Service{
			Listen: []config.Listen{{Proto: config.TCP}, {Proto: c.proto}},
			Scale:  config.Scale{Idle: c.idle, IdleCounts: c.counts},
		}
		if got := syncs(cfg); got != c.want {
			t.Errorf("%v, %v, idle after %v: every %v, want %v", c.proto, c.counts, c.idle, got, c.want)
		}
	}
}
