package main

import (
	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/verdict"
)

func canaryCommand() *cli.Command {
	judge := func(name, usage, word string) *cli.Command {
		return &cli.Command{
			Name: name, Usage: usage, ArgsUsage: "SERVICE",
			Action: func(c *cli.Context) error {
				if err := arguments(c, 1, 1); err != nil {
					return err
				}
				return client(c).Order(c.Context, c.Args().First(), "canary?verdict="+word)
			},
		}
	}
	return &cli.Command{
		Name: "canary", Usage: "decide about the canary of a service; its connections stay where they are", ArgsUsage: "promote|abort|resume SERVICE",
		Description: "A verdict outlives restarts. It ends when the canary's container section is\n" +
			"changed or removed. It can be changed: abort after promote goes back.",
		Action: func(c *cli.Context) error {
			return arguments(c, 2, -1)
		},
		Subcommands: []*cli.Command{
			judge("promote", "make all replicas as the canary's are", string(verdict.Promoted)),
			judge("abort", "send the canary no more connections, and stop it when those it has have ended", string(verdict.Aborted)),
			judge("resume", "take promote or abort back", "none"),
		},
	}
}
