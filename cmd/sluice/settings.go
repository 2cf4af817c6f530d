package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/rs/zerolog"

	"sluice/conntrack"
)

const (
	settingsEvery = 2 * time.Second
	againEvery    = 10 * time.Minute // between two words about the same setting
)

// settings keeps the kernel's settings as they have to be while the daemon
// runs: what conntrack.Tune sets, and forwarding once Podman has turned it on.
type settings struct {
	log  zerolog.Logger
	root string                      // /proc/sys
	sync func(context.Context) error // counts anew

	forwards map[string]bool // those that were on
	told     map[string]time.Time
}

func newSettings(log zerolog.Logger, sync func(context.Context) error) *settings {
	return &settings{log: log, root: "/proc/sys", sync: sync, forwards: map[string]bool{}, told: map[string]time.Time{}}
}

func (s *settings) run(ctx context.Context) error {
	tick := time.NewTicker(settingsEvery)
	defer tick.Stop()
	for now := time.Now(); ; {
		s.check(ctx, now)
		select {
		case <-ctx.Done():
			return nil
		case now = <-tick.C:
		}
	}
}

func (s *settings) check(ctx context.Context, now time.Time) {
	changes, err := conntrack.Tune()
	if err != nil {
		s.say(now, "conntrack", s.log.Error().Err(err), "settings of conntrack cannot be put right")
	}
	if len(changes) > 0 {
		for _, ch := range changes {
			s.say(now, ch.Key, s.log.Warn().Stringer("change", ch), putRight)
		}
		// What began or ended in between was not told.
		if err := s.sync(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn().Err(err).Msg("connections not counted")
		}
	}
	if err := s.full(now); err != nil {
		s.say(now, "full", s.log.Warn().Err(err), "nobody watches for room in conntrack's table")
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if err := s.forward(now, key); err != nil {
			s.say(now, key, s.log.Error().Err(err), "forwarding cannot be turned on: containers are not reached from elsewhere")
		}
	}
}

// full warns while there is hardly room for another entry in conntrack's table,
// or none.
func (s *settings) full(now time.Time) error {
	const of = "net.netfilter.nf_conntrack_"
	var n [2]int
	for i, key := range []string{of + "count", of + "max"} {
		text, err := s.read(key)
		if err != nil {
			return err
		}
		if n[i], err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
	}
	if n[0] < n[1]-n[1]/100 {
		return nil
	}
	s.say(now, of+"max", s.log.Error().Int("entries", n[0]).Int("max", n[1]),
		"conntrack's table is full: the kernel drops packets that begin a connection; raise "+of+"max")
	return nil
}

const putRight = "setting was changed by others and is put right"

// forward turns forwarding on again where it was on since the daemon started.
// Podman does so with every container that it starts.
func (s *settings) forward(now time.Time, key string) error {
	text, err := s.read(key)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no IPv6
	}
	if err != nil {
		return err
	}
	if text != "0" {
		s.forwards[key] = true
		return nil
	}
	if !s.forwards[key] {
		return nil
	}
	if err := os.WriteFile(s.path(key), []byte("1"), 0); err != nil { //nolint:gosec // exists
		return fmt.Errorf("set %s=1: %w", key, err)
	}
	s.say(now, key, s.log.Warn().Str("change", key+": 0 -> 1"), putRight)
	return nil
}

func (s *settings) path(key string) string { return s.root + "/" + strings.ReplaceAll(key, ".", "/") }

func (s *settings) read(key string) (string, error) {
	b, err := os.ReadFile(s.path(key))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return strings.TrimSpace(string(b)), nil
}

// say logs what concerns a key, and not again for a while.
func (s *settings) say(now time.Time, key string, e *zerolog.Event, text string) {
	if last, ok := s.told[key]; ok && now.Sub(last) < againEvery {
		e.Discard()
		return
	}
	s.told[key] = now
	e.Msg(text)
}
