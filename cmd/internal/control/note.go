package control

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/rs/zerolog"

	"sluice/podman"
	"sluice/policy"
)

const refusedEvery = 10 * time.Second

// note tells people what happens: log, event stream, metrics.
func (c *Control) note(s *service, now time.Time, n policy.Note) {
	level, text := zerolog.InfoLevel, ""
	switch n.Kind {
	case policy.NoteWaking:
		text = fmt.Sprintf("waking, %d wanted", n.N)
		clear(s.failing)
		s.wake = wake{accepted: s.wake.accepted} // without what replicas that came while it was warm have left
		c.opt.Record.Decision("wake")
	case policy.NoteWarm:
		c.warm(s, now)
		return
	case policy.NoteFailed:
		level, text = zerolog.ErrorLevel, fmt.Sprintf("start failed, %s reset, next attempt on a connection after %s", count(n.N, "held connection"), n.For)
		s.wake = wake{}
	case policy.NoteAsleep:
		text = "asleep"
		s.wake = wake{}
		c.opt.Record.Decision("sleep")
	case policy.NoteReady:
		delete(s.failing, n.Index)
		text = fmt.Sprintf("ready after %s", n.For.Round(100*time.Microsecond))
	case policy.NoteHealthy:
		text = "healthy again"
	case policy.NoteUnhealthy:
		level, text = zerolog.WarnLevel, "unhealthy, taken out"
	case policy.NoteDied:
		level, text = zerolog.WarnLevel, fmt.Sprintf("died with %s, taken out", count(n.N, "connection"))
	case policy.NoteRetry:
		level, text = s.failed(n), fmt.Sprintf("not started, next attempt in %s", n.For)
		if level == zerolog.WarnLevel {
			c.lastWords(s, n.Index)
		}
	case policy.NoteScale:
		text = fmt.Sprintf("%s wanted", count(n.N, "replica"))
		c.opt.Record.Decision("load")
	case policy.NoteDrain:
		text = "draining, " + count(n.N, "connection")
		c.opt.Record.Decision("drain")
	case policy.NoteUndrain:
		text = "needed again, drain cancelled"
		c.opt.Record.Decision("drain-cancel")
	case policy.NoteDrained:
		text = fmt.Sprintf("drained in %s", n.For.Round(time.Millisecond))
		if n.N > 0 {
			level, text = zerolog.WarnLevel, fmt.Sprintf("drain deadline reached after %s, %s cut", n.For.Round(time.Millisecond), count(n.N, "connection"))
		}
		c.opt.Record.Drained(n.For, n.N)
	case policy.NotePaused:
		text = fmt.Sprintf("paused with %s open", count(n.N, "connection"))
	case policy.NoteOutdated:
		text = "made from another configuration, will be replaced"
	case policy.NoteRefused:
		s.refused++
		if now.Sub(s.lastRef) < refusedEvery {
			return
		}
		s.lastRef = now
		level, text = zerolog.WarnLevel, fmt.Sprintf("%s reset: the last start has failed", count(s.refused, "connection"))
		s.refused = 0
	case policy.NoteStopFail:
		level, text = s.failed(n), fmt.Sprintf("not removed, next attempt in %s", n.For)
	}
	if c.starting() && n.Index >= policy.FirstMember && level == zerolog.InfoLevel {
		level = zerolog.DebugLevel // one line tells of them all, see settled
	}
	c.say(s, now, level, n.Kind, n.Index, n.Err, text)
}

// failed is at which level an attempt is told that has failed: what goes wrong
// again in the same way is for those who look closely.
func (s *service) failed(n policy.Note) zerolog.Level {
	how := strings.Map(func(r rune) rune { // Podman names temporary files by numbers
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, fmt.Sprint(n.Kind, n.Err))
	if s.failing[n.Index] == how {
		return zerolog.DebugLevel
	}
	if s.failing == nil {
		s.failing = map[int]string{}
	}
	s.failing[n.Index] = how
	return zerolog.WarnLevel
}

// say writes one line to the log and one event to whoever follows.
func (c *Control) say(s *service, now time.Time, level zerolog.Level, kind policy.Kind, index int, err error, text string) {
	e := s.log.WithLevel(level).Str("event", string(kind))
	ev := Event{Time: now, Service: s.name, Event: string(kind), Text: text}
	if index != 0 {
		ev.Backend = s.backendName(index)
		e = e.Str("backend", ev.Backend)
	}
	if err != nil {
		ev.Error = err.Error()
		e = e.Err(err)
	}
	e.Msg(text)
	c.hub.publish(ev)
}

// warm reports the steps of a cold start: from the first connection, or from
// the order to wake, to the backend's slots in the kernel.
func (c *Control) warm(s *service, now time.Time) {
	w := s.wake
	s.wake = wake{}
	if w.start.IsZero() || w.started.IsZero() || w.ready.IsZero() {
		level := zerolog.InfoLevel
		if c.starting() && s.cfg.Container == nil {
			level = zerolog.DebugLevel
		}
		c.say(s, now, level, policy.NoteWarm, 0, nil, "awake")
		return
	}
	begin := w.start
	if !w.accepted.IsZero() && w.accepted.Before(begin) {
		begin = w.accepted
		c.opt.Record.ColdStart("accept", w.start.Sub(w.accepted))
	}
	steps := []struct {
		name string
		took time.Duration
	}{
		{"start", w.started.Sub(w.start)},
		{"ready", w.ready.Sub(w.started)},
		{"map", now.Sub(w.ready)},
	}
	text := fmt.Sprintf("awake after %s: accept %s", ms(now.Sub(begin)), ms(w.start.Sub(begin)))
	for _, st := range steps {
		c.opt.Record.ColdStart(st.name, st.took)
		text += fmt.Sprintf(", %s %s", st.name, ms(st.took))
	}
	c.say(s, now, zerolog.InfoLevel, policy.NoteWarm, 0, nil, text)
}

// count says how many there are of something.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond)) }

// lastWords logs what a replica that did not start has printed.
func (c *Control) lastWords(s *service, index int) {
	if s.replicas[index] == nil || index >= policy.FirstMember {
		return
	}
	name := podman.Name(s.name, index)
	c.work.Go(func() {
		lines, err := c.opt.Replicas.Logs(c.ctx, name, 5)
		if err != nil || len(lines) == 0 {
			if err != nil && !errors.Is(err, podman.ErrGone) {
				s.log.Debug().Err(err).Str("backend", name).Msg("no container log")
			}
			return
		}
		s.log.Warn().Str("backend", name).Strs("lines", lines).Msg("last lines of the container")
	})
}
