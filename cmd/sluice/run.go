package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"
	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/alarm"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/control"
	"sluice/cmd/internal/datagram"
	"sluice/cmd/internal/firstbyte"
	"sluice/cmd/internal/handover"
	"sluice/cmd/internal/metrics"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/podman"
)

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "run the daemon",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "replace", DisableDefaultText: true, Usage: "take over from the running daemon, if there is one, without a gap"},
		},
		Description: "Runs until SIGTERM or SIGINT. Connections, table and containers outlive it:\n" +
			"the next run adopts them. 'sluice cleanup --containers' removes table and\n" +
			"containers.",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			from := sourceOf(c)
			cfg, err := from.load()
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return fmt.Errorf("run: %w", err)
			}
			return daemon(c.Context, cfg, from, c.Bool("replace"), c.App.ErrWriter)
		},
	}
}

// relayGrace is how long relayed connections may go on after SIGTERM. Flows
// that the kernel carries need no grace.
const relayGrace = 10 * time.Second

// daemon runs sluice until ctx ends, or until another daemon takes over from it.
// With replace it takes over itself, once all that it needs is there.
func daemon(ctx context.Context, cfg *config.Config, from source, replace bool, stderr io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := logger(cfg.Daemon, stderr)
	log.Info().Str("version", buildVersion()).Int("services", len(cfg.Services)).Msg("sluice starts")

	manager, left, err := newHerald(log)
	if err != nil {
		return err
	}
	defer manager.to.Close()
	pod, err := openPodman(ctx, cfg.Daemon.Podman, log)
	if err != nil || pod == nil {
		return err
	}
	defer pod.Close()
	heir := &successor{}
	if replace {
		if heir, left, err = succeed(ctx, cfg.Daemon.Admin, left); err != nil {
			return err
		}
		defer heir.Close()
	}
	adminLn, metricsLn, err := listeners(left, cfg.Daemon)
	if err != nil {
		return err
	}
	defer adminLn.Close()
	if metricsLn != nil {
		defer metricsLn.Close()
	}

	changes, err := conntrack.Tune()
	if err != nil {
		return fmt.Errorf("conntrack settings: %w", err)
	}
	for _, ch := range changes {
		log.Info().Stringer("change", ch).Msg("setting changed")
	}
	table, err := nft.Open(nft.Options{})
	if err != nil {
		return fmt.Errorf("table inet sluice: %w", err)
	}
	defer table.Close()
	if hold, err := nft.KeepNAT(nft.Options{}); err == nil {
		defer hold.Close()
	} else {
		log.Warn().Err(err).Msg("when others flush the ruleset, connections may be cut")
	}
	ct, err := conntrack.Open(nft.CTMark, nft.CTMask)
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	defer ct.Close()

	record := metrics.New(buildVersion(), runtime.Version())
	var ctl *control.Control
	started := make(chan struct{}) // ctl is set
	watcher, err := conntrack.Watch(ctx, conntrack.Options{
		Mark: nft.CTMark, Mask: nft.CTMask,
		Zero: func(b conntrack.Backend) { <-started; ctl.Zero(b) },
		Resync: func(reason error) {
			log.Warn().Err(reason).Msg("flows are counted anew")
		},
	})
	if err != nil {
		return fmt.Errorf("conntrack events: %w", err)
	}
	defer watcher.Close()
	loop, err := accept.Open(accept.Config{
		Deliver: func(conn accept.Conn) { <-started; ctl.Deliver(conn) },
		Error:   func(id uint64, err error) { <-started; ctl.AcceptError(id, err) },
		Fallback: func(why error) {
			log.Warn().Err(why).Msg("accepting with epoll: io_uring cannot be used here")
		},
	})
	if err != nil {
		return fmt.Errorf("accept loop: %w", err)
	}
	defer loop.Close()
	log.Info().Str("accept", loop.Name()).Msg("accept loop")

	silence, err := firstbyte.Open(func(id uint64) { <-started; ctl.Spoken(id) })
	if err != nil {
		return fmt.Errorf("silent connections: %w", err)
	}
	defer silence.Close()
	untracked, err := conntrack.Open(0, 0) // entries without a mark: of datagrams that came too early
	if err != nil {
		return fmt.Errorf("conntrack: %w", err)
	}
	defer untracked.Close()
	datagrams, err := datagram.Open(datagram.Config{
		Deliver: func(h datagram.Held) { <-started; ctl.DeliverDatagrams(h) },
		Error:   func(id uint64, err error) { <-started; ctl.AcceptError(id, err) },
		Tracker: untracked,
		Beside:  func(client netip.Addr) bool { <-started; return ctl.Beside(client) },
		Mark:    nft.PacketMark,
		Journal: manager.journal(),
	})
	if err != nil {
		return fmt.Errorf("datagrams: %w", err)
	}
	defer datagrams.Close()
	var porter control.Porter
	if p, err := handover.Open(table, ct); err == nil {
		defer p.Close()
		porter = p
	} else {
		log.Warn().Err(err).Msg("held connections are relayed: they cannot be handed over here")
	}
	ctl = control.New(control.Options{
		Porter: porter, Silence: silence, Datagrams: datagrams,
		Config: cfg, Table: table, Flows: flows{watcher, ct}, Replicas: pod,
		Accept: loop, Record: record, State: cfg.Daemon.State, Log: log,
		Keep: manager.keeper(), Inherited: left, Pulse: manager.pulse, PulseEvery: manager.pulseEvery(),
		Commit: func() error { return heir.commit(adminLn) }, Ceded: cancel,
	})
	close(started)

	reload := &reloader{source: from, daemon: cfg.Daemon, ctl: ctl, log: log, told: record.Reloaded, manager: manager}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return ctl.Run(gctx, relayGrace) })
	api := http.NewServeMux()
	api.Handle("/", admin.Handler(ctl, reload))
	api.Handle("POST "+replacePath, &predecessor{
		ctl: ctl, managed: manager.to != nil, daemon: cfg.Daemon, admin: adminLn, metrics: metricsLn,
		restore: func() { restore(table, log, new(bool)) }, log: log,
	})
	// Until this daemon is the one, the other answers, and looks after the table.
	serve := func(f func() error) {
		g.Go(func() error {
			if !heir.wait(gctx) {
				return nil
			}
			return f()
		})
	}
	serve(func() error { return admin.Serve(gctx, adminLn, api) })
	if metricsLn != nil {
		serve(func() error { return admin.Serve(gctx, metricsLn, metricsHandler(record, ctl, watcher)) })
	}
	serve(func() error { return reload.run(gctx) })
	serve(func() error { return listen(gctx, ctl, log) })
	serve(func() error { return guard(gctx, ctl, table, log) })
	serve(func() error { return newSettings(log, watcher.Sync).run(gctx) })
	g.Go(func() error {
		select {
		case <-ctl.Ready():
			log.Info().Msg("ready")
			manager.ready()
			manager.fits(ctl.Listening())
			debug.FreeOSMemory() // what reading the configuration and adopting took
		case <-gctx.Done():
		}
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		manager.to.Stopping()
		return nil
	})
	err = g.Wait()
	log.Info().Msg("sluice has stopped; table, containers and connections go on")
	return err
}

// openPodman connects to Podman, and waits for it if it is not there: without it
// nobody knows which containers there are. Services that are awake go on
// meanwhile, in the kernel. It returns nil when ctx has ended.
func openPodman(ctx context.Context, uri string, log zerolog.Logger) (*podman.Client, error) {
	const least, most = 100 * time.Millisecond, 5 * time.Second
	for wait := least; ; wait = min(2*wait, most) {
		pod, err := podman.Open(ctx, uri, podman.Options{Warn: func(err error) {
			log.Warn().Err(err).Msg("podman")
		}})
		switch {
		case err == nil:
			if wait > least {
				log.Info().Msg("podman is there")
			}
			return pod, nil
		case ctx.Err() != nil:
			return nil, nil
		case !errors.Is(err, podman.ErrUnreachable):
			return nil, err
		case wait == least:
			log.Warn().Err(err).Msg("waiting for podman: what is awake goes on, nothing else does")
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(wait):
		}
	}
}

// flows joins the watcher's counts with the dumps and deletions of a
// connection of its own.
type flows struct {
	*conntrack.Watcher
	conn *conntrack.Conn
}

func (f flows) Live(backend netip.AddrPort, proto uint8, like func(*conntrack.Flow) bool) (live, alike int, err error) {
	return f.conn.Live(backend, proto, like)
}

func (f flows) Forget(ctx context.Context, backend netip.AddrPort, proto uint8) (int, error) {
	return f.conn.DeleteBackend(ctx, backend, proto)
}

func (f flows) Drop(b conntrack.Backend) (conntrack.Count, bool) { return f.Watcher.Forget(b) }

func metricsHandler(r *metrics.Recorder, ctl *control.Control, flows metrics.Flows) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /{$}", pageHandler(ctl.Status))
	mux.Handle("GET /metrics", r.Handler(ctl, flows))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, req *http.Request) {
		ctx, cancel := context.WithTimeout(req.Context(), time.Second)
		defer cancel()
		if _, err := ctl.Status(ctx); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		select {
		case <-ctl.Ready():
			fmt.Fprintln(w, "ok")
		default:
			http.Error(w, "containers are not adopted yet", http.StatusServiceUnavailable)
		}
	})
	return mux
}

const (
	alarmRetry    = 20 * time.Millisecond
	alarmPatience = time.Second
)

// listen takes alarms of paused backends. Without them it looks again and again
// for connections to these.
func listen(ctx context.Context, ctl *control.Control, log zerolog.Logger) error {
	a, err := alarm.Open(nft.LogGroup)
	for limit, retry := time.Now().Add(alarmPatience), alarmRetry; err != nil; a, err = alarm.Open(nft.LogGroup) {
		// A daemon that this one has replaced may be about to leave the group.
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry):
		}
		switch {
		case retry == alarmPatience:
			ctl.Doubt()
		case time.Now().After(limit):
			log.Warn().Err(err).Msg("new connections will wake paused replicas late, data on open ones will not: alarms cannot be heard")
			retry = alarmPatience
		}
	}
	defer a.Close()
	ctl.Doubt() // of what came before
	err = a.Run(ctx, func(backend netip.AddrPort, _ uint8) { ctl.Alarm(backend) }, ctl.AlarmAll)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

const (
	mendRetryMin = 50 * time.Millisecond
	mendRetryMax = 5 * time.Second
)

// guard puts the table right whenever someone else has changed it, and tries
// again when the kernel refuses that.
func guard(ctx context.Context, ctl *control.Control, table *nft.Table, log zerolog.Logger) error {
	changed := make(chan struct{}, 1)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return table.Watch(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	})
	g.Go(func() error {
		var again <-chan time.Time
		for retry, told := mendRetryMin, false; ; {
			select {
			case <-ctx.Done():
				return nil
			case <-changed:
			case <-again:
			}
			again = nil
			if ctl.Ceding() {
				continue
			}
			if restore(table, log, &told) {
				ctl.Doubt()
				retry = mendRetryMin
				continue
			}
			again = time.After(retry)
			retry = min(2*retry, mendRetryMax)
		}
	})
	return g.Wait()
}

// restore puts the table right. That it could not is told once.
func restore(table *nft.Table, log zerolog.Logger, told *bool) bool {
	changed, err := table.Restore()
	switch {
	case err != nil && !*told:
		log.Error().Err(err).Msg("table inet sluice may have been changed by others and cannot be restored, trying again")
	case changed:
		log.Warn().Msg("table inet sluice was changed by others and is put right")
	}
	*told = err != nil
	return err == nil
}

// logger writes for a person on a terminal and for a machine elsewhere.
func logger(d config.Daemon, w io.Writer) zerolog.Logger {
	format := d.LogFormat
	if format == config.LogAuto {
		format = config.LogJSON
		if f, ok := w.(*os.File); ok {
			if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
				format = config.LogConsole
			}
		}
	}
	if format == config.LogConsole {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000", NoColor: os.Getenv("NO_COLOR") != ""}
	}
	level, err := zerolog.ParseLevel(string(d.LogLevel))
	if err != nil {
		level = zerolog.InfoLevel
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	zerolog.DurationFieldUnit = time.Millisecond
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}
