package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/control"
	"sluice/cmd/internal/simulate"
)

func simulateCommand() *cli.Command {
	return &cli.Command{
		Name:  "simulate",
		Usage: "show what a service would do under a load, without a container or a connection",
		Description: `The load is a recorded trace, or a shape. A trace is one of

   time,rate,duration        from this time on so many new connections per
   0,2.5,30                  second, of this duration
   1h,40,30s

   start,duration,bytes      one connection a line; bytes may be left out, and one
   0.25,1.5,1024             of 0 bytes is no load with idle_counts = "bytes"

or what 'conntrack -E -o timestamp -p tcp --orig-port-dst 80' prints.

The result is repeatable: it depends on the load, the seed and the options alone.`,
		ArgsUsage: "SERVICE",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "trace", Usage: "read the load from `FILE`, or standard input if it is -"},
			&cli.StringFlag{Name: "shape", Usage: "make up a load of this `SHAPE`: " + strings.Join(simulate.Shapes(), ", ")},
			&cli.Float64Flag{Name: "rate", Value: 10, Usage: "at its top the shape has `N` new connections per second"},
			&cli.DurationFlag{Name: "duration", Value: 10 * time.Second, Usage: "a connection of the shape lasts `TIME`"},
			&cli.DurationFlag{Name: "length", DefaultText: "all of a trace, 10m of a shape", Usage: "simulate `TIME` of the load"},
			&cli.BoolFlag{Name: "random", DisableDefaultText: true, Usage: "take rates and durations for averages: connections begin and end by chance"},
			&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "another `NUMBER` gives other chances, the same one the same result"},
			&cli.DurationFlag{Name: "tick", DefaultText: "a sixtieth of the length, at least 1s", Usage: "print a line for each `TIME`"},
			&cli.DurationFlag{Name: "start-time", Value: simulate.DefaultStart, Usage: "a container that is made anew accepts after `TIME`"},
			&cli.DurationFlag{Name: "prepared-time", Value: simulate.DefaultPrepared, Usage: "one that was prepared accepts after `TIME`"},
			&cli.DurationFlag{Name: "thaw-time", Value: simulate.DefaultThaw, Usage: "one that was paused goes on after `TIME`"},
			&cli.DurationFlag{Name: "boot-time", Usage: "the program needs `TIME` more, unless it was paused, until its check succeeds"},
			outputFlag(),
		},
		Action: simulateService,
	}
}

func simulateService(c *cli.Context) error {
	if err := arguments(c, 1, 1); err != nil {
		return err
	}
	inJSON, err := asJSON(c)
	if err != nil {
		return err
	}
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return err
	}
	s, err := simulated(cfg, c.Args().First())
	if err != nil {
		return usageError{fmt.Errorf("simulate: %w", err)}
	}
	p := simulate.Params{
		Spec: control.Rules(s), Backlog: s.Start.Backlog, Seed: c.Uint64("seed"),
		Chance: s.Balance == config.Random || s.Balance == config.SourceHash || s.Balance == config.Maglev,
		Start:  c.Duration("start-time"), Prepared: c.Duration("prepared-time"), Thaw: c.Duration("thaw-time"),
		Boot: c.Duration("boot-time"), Stop: simulate.DefaultStop,
		Length: c.Duration("length"), Tick: c.Duration("tick"),
	}
	for _, name := range []string{"start-time", "prepared-time", "thaw-time", "boot-time", "length", "tick"} {
		if d := c.Duration(name); d < 0 || d == 0 && c.IsSet(name) && (name == "length" || name == "tick") {
			return usageError{fmt.Errorf("simulate: --%s %s: want a time that is not negative, and more than 0s for --length and --tick", name, d)}
		}
	}
	src, length, err := load(c, p.Length)
	if err != nil {
		return usageError{fmt.Errorf("simulate: %w", err)}
	}
	if p.Length == 0 {
		p.Length = max(length, time.Second)
	}
	if p.Tick == 0 {
		p.Tick = max((p.Length/60 + time.Second - 1).Truncate(time.Second), time.Second)
	}
	if n := p.Length / p.Tick; n > 1e6 {
		return usageError{fmt.Errorf("simulate: %d ticks of %s: want a longer --tick", n, p.Tick)}
	}
	if inJSON {
		return simulateJSON(c, s.Name, p, src)
	}
	return simulateTable(c, p, src)
}

// simulated finds the service.
func simulated(cfg *config.Config, name string) (config.Service, error) {
	i := slices.IndexFunc(cfg.Services, func(s config.Service) bool { return s.Name == name })
	if i < 0 {
		return config.Service{}, fmt.Errorf("no service %q in the configuration", name)
	}
	s := cfg.Services[i]
	if len(s.Backends) > 0 {
		return s, fmt.Errorf("service %s has backends that sluice does not start: leave them out of a copy of the configuration, replicas alone are simulated", name)
	}
	return s, nil
}

// load is what the service is given, and for how long; length is what the
// caller asked for, or 0.
func load(c *cli.Context, length time.Duration) (simulate.Source, time.Duration, error) {
	file, shape := c.String("trace"), c.String("shape")
	if (file == "") == (shape == "") {
		return nil, 0, fmt.Errorf("give a load: either --trace FILE or --shape %s", strings.Join(simulate.Shapes(), "|"))
	}
	if shape != "" {
		if length == 0 {
			length = 10 * time.Minute
		}
		curve, err := simulate.Shape(shape, c.Float64("rate"), c.Duration("duration"), length)
		if err != nil {
			return nil, 0, err
		}
		curve.Seed = c.Uint64("seed")
		curve.Random = curve.Random || c.Bool("random")
		return curve.Source(), curve.Length, nil
	}
	if c.IsSet("rate") || c.IsSet("duration") {
		return nil, 0, errors.New("--rate and --duration are of a --shape: a trace has its own")
	}
	r := c.App.Reader
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, 0, err
		}
		defer f.Close()
		r = f
	} else {
		file = "standard input"
	}
	flows, curve, err := simulate.Read(file, r)
	if err != nil {
		return nil, 0, err
	}
	if curve == nil {
		if c.Bool("random") {
			return nil, 0, errors.New("--random is of rates: this trace has single connections")
		}
		return flows, flows.Length(), nil
	}
	curve.Seed, curve.Random = c.Uint64("seed"), c.Bool("random")
	if length > 0 {
		curve.Length = length
	}
	return curve.Source(), curve.Length, nil
}

func simulateTable(c *cli.Context, p simulate.Params, src simulate.Source) error {
	w := c.App.Writer
	if err := simulate.Header(w); err != nil {
		return err
	}
	sum, err := simulate.Run(c.Context, p, src, func(t simulate.Tick) error { return t.Print(w) })
	if err != nil {
		return err
	}
	if _, err := io.WriteString(w, "\n"); err != nil {
		return err
	}
	return sum.Print(w)
}

// simulation is what -o json prints.
type simulation struct {
	Service string           `json:"service"`
	Ticks   []simulate.Tick  `json:"ticks"`
	Summary simulate.Summary `json:"summary"`
}

func simulateJSON(c *cli.Context, name string, p simulate.Params, src simulate.Source) error {
	s := simulation{Service: name, Ticks: []simulate.Tick{}}
	var err error
	s.Summary, err = simulate.Run(c.Context, p, src, func(t simulate.Tick) error {
		s.Ticks = append(s.Ticks, t)
		return nil
	})
	if err != nil {
		return err
	}
	return printJSON(c.App.Writer, s)
}
