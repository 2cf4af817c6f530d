package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/control"
)

func reloadCommand() *cli.Command {
	return &cli.Command{
		Name: "reload", Usage: "read the configuration again; a bad one changes nothing",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			return client(c).Reload(c.Context)
		},
	}
}

// reloader reads the configuration again: on SIGHUP, on request, and when a
// file of it is saved.
type reloader struct {
	source
	daemon config.Daemon // as at the start
	ctl    *control.Control
	log    zerolog.Logger
	told   func(ok bool)

	manager *herald

	mu     sync.Mutex // one at a time
	filled []string   // files of it that had content when it was last put in force
}

// Reload puts the files in force or says why not.
func (r *reloader) Reload(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manager.to.Reloading()
	defer r.manager.ready()
	filled := r.full()
	cfg, err := r.load()
	if err == nil {
		err = r.ctl.Reload(ctx, cfg)
	}
	if err != nil {
		r.refuse(zerolog.ErrorLevel, err)
		return err
	}
	r.told(true)
	r.ctl.ConfigError(nil)
	r.filled = filled
	if cfg.Daemon != r.daemon {
		r.log.Warn().Msg("changes in [daemon] take effect with the next start")
	}
	r.log.Info().Int("services", len(cfg.Services)).Msg("configuration reloaded")
	return nil
}

// refuse says why the files are not in force.
func (r *reloader) refuse(level zerolog.Level, err error) {
	r.told(false)
	r.ctl.ConfigError(err)
	for line := range strings.Lines(err.Error()) {
		r.log.WithLevel(level).Str("error", strings.TrimSpace(line)).Msg("configuration not reloaded, the one in force stays")
	}
}

// settle is how long a burst of file events may go on: editors write a file
// in several steps.
const settle = 300 * time.Millisecond

// run reloads until ctx ends.
func (r *reloader) run(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	var events chan fsnotify.Event
	var lost chan error
	w, err := fsnotify.NewWatcher()
	if err == nil {
		defer w.Close()
		err = r.watch(w)
		events, lost = w.Events, w.Errors
	}
	if err != nil {
		r.log.Warn().Err(err).Msg("configuration files are not watched: use SIGHUP or 'sluice reload'")
	}
	r.mu.Lock()
	r.filled = r.full()
	r.mu.Unlock()
	var saved <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
		case <-saved:
			saved = nil
			if r.halfSaved() {
				continue
			}
		case ev := <-events:
			if r.concerns(ev) {
				saved = time.After(settle)
			}
			continue
		case err := <-lost:
			r.log.Warn().Err(err).Msg("events of configuration files were lost")
			saved = time.After(settle)
			continue
		}
		_ = r.watch(w) // conf.d may be new
		if err := r.Reload(ctx); err != nil && ctx.Err() != nil {
			return nil
		}
	}
}

// full lists the files of the configuration that have content.
func (r *reloader) full() (list []string) {
	all, dir := []string{r.path}, filepath.Join(filepath.Dir(r.path), "conf.d")
	more, _ := os.ReadDir(dir) // there need not be one
	for _, e := range more {
		if config.Counts(e.Name()) {
			all = append(all, filepath.Join(dir, e.Name()))
		}
	}
	for _, path := range all {
		if st, err := os.Stat(path); err == nil && st.Size() > 0 {
			list = append(list, path)
		}
	}
	return list
}

// halfSaved says whether a file that had content is empty: whoever writes it in
// place cuts it off first, and may be held up between that and the writing. To
// take it as it is would end all services it had. It is not meant, unless a
// reload is asked for.
func (r *reloader) halfSaved() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, path := range r.filled {
		if st, err := os.Stat(path); err == nil && st.Size() == 0 {
			r.refuse(zerolog.WarnLevel, fmt.Errorf("%s: the file is empty: write it, or run 'sluice reload' if that is meant", path))
			return true
		}
	}
	return false
}

// watch follows the directories: most editors replace the file.
func (r *reloader) watch(w *fsnotify.Watcher) error {
	if w == nil {
		return nil
	}
	dir := filepath.Dir(r.path)
	if err := w.Add(dir); err != nil {
		return err
	}
	if err := w.Add(filepath.Join(dir, "conf.d")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// concerns says whether an event is about a file of the configuration.
func (r *reloader) concerns(ev fsnotify.Event) bool {
	if ev.Op == fsnotify.Chmod {
		return false
	}
	base := filepath.Base(ev.Name)
	return ev.Name == filepath.Clean(r.path) || base == "conf.d" ||
		filepath.Base(filepath.Dir(ev.Name)) == "conf.d" && config.Counts(base)
}
