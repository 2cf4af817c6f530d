package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/control"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name: "status", Usage: "show services and their replicas", ArgsUsage: "[SERVICE]",
		Description: `A line for each service, and below it one for each replica and fixed backend:

   PHASE         of a service: cold, waking, warm, draining or failed; of a
                 replica: starting, probing, ready, draining, stopping, sleeping
                 or failed
   READY         replicas and backends that are ready / replicas that are wanted
   FLOWS         live connections
   HELD          connections that wait for a replica
   RELAYED       connections so far that the daemon carried itself
   HANDED OVER   connections so far that were held, and then given to the kernel

Below the table stand the canary of a service, if it has one, and why the service
or its configuration last failed.`,
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1); err != nil {
				return err
			}
			inJSON, err := asJSON(c)
			if err != nil {
				return err
			}
			st, err := client(c).Status(c.Context, c.Args().Slice()...)
			if err != nil {
				return err
			}
			if inJSON {
				return printJSON(c.App.Writer, st)
			}
			return statusTable(c.App.Writer, st)
		},
	}
}

func statusTable(w io.Writer, st control.Status) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "SERVICE\tLISTEN\tPHASE\tREADY\tFLOWS\tHELD\tRELAYED\tHANDED OVER")
	for _, s := range st.Services {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d/%d\t%d\t%d\t%d\t%d\n", s.Name, strings.Join(s.Listen, " "), s.Phase,
			s.Ready, s.Desired, s.Flows, s.Held, s.Relayed, s.HandedOver)
		for _, b := range s.Backends {
			state := b.State
			if b.Canary {
				state += " (canary)"
			}
			fmt.Fprintf(t, "  %s\t%s\t%s\t\t%d\t\t\t\n", b.Name, b.Address, state, b.Flows)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if st.ConfigError != "" {
		if _, err := fmt.Fprintf(w, "configuration not in force: %s\n", st.ConfigError); err != nil {
			return err
		}
	}
	for _, s := range st.Services {
		if s.Canary != nil {
			if _, err := fmt.Fprintf(w, "%s: %s\n", s.Name, s.Canary); err != nil {
				return err
			}
		}
		if s.LastError != "" {
			if _, err := fmt.Fprintf(w, "%s: %s\n", s.Name, s.LastError); err != nil {
				return err
			}
		}
	}
	return nil
}

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name: "events", Usage: "follow what happens",
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			inJSON, err := asJSON(c)
			if err != nil {
				return err
			}
			return client(c).Follow(c.Context, func(ev control.Event) error {
				if inJSON {
					return json.NewEncoder(c.App.Writer).Encode(ev)
				}
				name := ev.Service
				if ev.Backend != "" {
					name = ev.Backend
				}
				text := ev.Text
				if ev.Error != "" {
					text += ": " + ev.Error
				}
				_, err := fmt.Fprintf(c.App.Writer, "%s  %-20s %-14s %s\n", ev.Time.Format(time.StampMilli), name, ev.Event, text)
				return err
			})
		},
	}
}
