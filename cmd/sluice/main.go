// Sluice lets Podman services sleep until someone connects, and then gets out
// of the way. This command is the daemon (sluice run) and its remote control.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/config"
)

// Exit codes, part of the contract.
const (
	exitFailed = 1
	exitUsage  = 2
)

const (
	defaultConfig = "/etc/sluice/sluice.toml"
	defaultAdmin  = "/run/sluice/admin.sock"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// usageError is an error of the caller's: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// run is the whole command, for tests too.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, flagsFirst(app, args))
	if err == nil {
		return 0
	}
	prefix := ""
	if _, ok := errorAs[config.Errors](err); !ok {
		prefix = "sluice: "
	}
	fmt.Fprintf(stderr, "%s%s\n", prefix, strings.TrimRight(err.Error(), "\n"))
	if _, ok := errorAs[config.Errors](err); ok {
		return exitUsage
	}
	if _, ok := errorAs[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

func errorAs[T error](err error) (t T, ok bool) {
	ok = errors.As(err, &t)
	return t, ok
}

func newApp(stdout, stderr io.Writer) *cli.App {
	usage := func(c *cli.Context, err error, _ bool) error {
		name := c.Command.HelpName
		if name == "" { // a flag before the command
			name = c.App.HelpName
		}
		for _, f := range c.App.Flags {
			if n := f.Names()[0]; strings.HasSuffix(err.Error(), "not defined: -"+n) {
				return usageError{fmt.Errorf("--%s goes before the command: see 'sluice --help'", n)}
			}
		}
		return usageError{fmt.Errorf("%w: see '%s --help'", err, name)}
	}
	app := &cli.App{
		Name:            "sluice",
		Usage:           "let Podman services sleep until someone connects",
		HideVersion:     true,
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {}, // run prints and decides the code
		OnUsageError:    usage,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Value: defaultConfig, Usage: "configuration `FILE`; conf.d/*.toml beside it is read too", EnvVars: []string{"SLUICE_CONFIG"}},
			&cli.StringFlag{Name: "admin", Usage: "admin `SOCKET` of the daemon (default: daemon.admin of the configuration)", EnvVars: []string{"SLUICE_ADMIN"}},
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError{fmt.Errorf("no command %q: 'sluice --help' lists them", c.Args().First())}
			}
			return cli.ShowAppHelp(c)
		},
		Commands: []*cli.Command{
			runCommand(), checkCommand(), statusCommand(), eventsCommand(),
			wakeCommand(), scaleCommand(), canaryCommand(), drainCommand(), reloadCommand(),
			simulateCommand(), doctorCommand(), cleanupCommand(), versionCommand(),
		},
	}
	for _, c := range app.Commands {
		c.OnUsageError = usage
		c.HideHelpCommand = true
		for _, sub := range c.Subcommands {
			sub.OnUsageError = usage
			sub.HideHelpCommand = true
		}
	}
	return app
}

// arguments checks how many arguments a command was given.
func arguments(c *cli.Context, least, most int) error {
	if n := c.NArg(); n < least || n > most {
		return usageError{fmt.Errorf("usage: %s %s", c.Command.HelpName, c.Command.ArgsUsage)}
	}
	return nil
}

// source is where the configuration is.
type source struct {
	path  string
	admin string // --admin, which goes before daemon.admin
}

func sourceOf(c *cli.Context) source { return source{c.String("config"), c.String("admin")} }

func (s source) load() (*config.Config, error) {
	cfg, err := config.Load(s.path)
	if err == nil && s.admin != "" {
		cfg.Daemon.Admin = s.admin
	}
	return cfg, err
}

// client returns a client of the daemon: at --admin, else where the
// configuration says, else at the default. Who then finds no daemon is told
// where it was looked for and why there.
func client(c *cli.Context) *admin.Client {
	if path := c.String("admin"); path != "" {
		return admin.Dial(path)
	}
	cfg, err := config.Load(c.String("config"))
	if err != nil {
		return admin.Dial(defaultAdmin).Hint("that is the default, for the configuration cannot be read: " + oneLine(err))
	}
	return admin.Dial(cfg.Daemon.Admin).Hint("is 'sluice run' running, with the same daemon.admin")
}

// oneLine is the first line of an error, and how many more there are.
func oneLine(err error) string {
	text := strings.TrimSpace(err.Error())
	first, rest, more := strings.Cut(text, "\n")
	if !more {
		return first
	}
	return fmt.Sprintf("%s (and %d more: see 'sluice check')", first, strings.Count(rest, "\n")+1)
}

// outputFlag is how a command's result is printed.
func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "table", Usage: "`FORMAT`: table or json"}
}

// asJSON says whether --output asks for JSON, and not for a table.
func asJSON(c *cli.Context) (bool, error) {
	switch out := c.String("output"); out {
	case "table":
		return false, nil
	case "json":
		return true, nil
	default:
		return false, usageError{fmt.Errorf("%s: no output %q: table or json", c.Command.Name, out)}
	}
}

// printJSON writes a document for programs, that people can read too.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
