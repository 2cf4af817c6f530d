package main

import (
	"errors"
	"fmt"
	"text/tabwriter"

	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/doctor"
)

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "look whether this host is fit, and say what to change",
		Description: "Changes nothing. Exit code 1 if something keeps a service from working;\n" +
			"warnings do not count.",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			inJSON, err := asJSON(c)
			if err != nil {
				return err
			}
			cfg, err := sourceOf(c).load()
			if err != nil {
				return err
			}
			if err := privileged(); err != nil {
				return fmt.Errorf("doctor: %w", err)
			}
			_, down := admin.Dial(cfg.Daemon.Admin).Status(c.Context)
			host := doctor.Host{Config: cfg, Running: down == nil}
			list := host.Examine(c.Context)
			if inJSON {
				if err := printJSON(c.App.Writer, map[string]any{"findings": list}); err != nil {
					return err
				}
			} else {
				t := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
				for _, f := range list {
					fmt.Fprintf(t, "%s\t%s\t%s\n", f.Level, f.Check, f.Text)
					if f.Remedy != "" {
						fmt.Fprintf(t, "\t\t-> %s\n", f.Remedy)
					}
				}
				if err := t.Flush(); err != nil {
					return err
				}
			}
			if doctor.Worst(list) == doctor.Fail {
				return errors.New("doctor: this host is not fit: see the lines that begin with fail")
			}
			return nil
		},
	}
}
