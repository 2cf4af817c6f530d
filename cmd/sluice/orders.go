package main

import (
	"fmt"
	"net/url"
	"strconv"

	"github.com/urfave/cli/v2"
)

func scaleCommand() *cli.Command {
	return &cli.Command{
		Name: "scale", Usage: "run N replicas now; the scaler goes on from there after its stable window", ArgsUsage: "SERVICE N",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2); err != nil {
				return err
			}
			n, err := strconv.Atoi(c.Args().Get(1))
			if err != nil || n < 0 {
				return usageError{fmt.Errorf("scale: not a number of replicas: %q", c.Args().Get(1))}
			}
			return client(c).Order(c.Context, c.Args().First(), fmt.Sprintf("scale?n=%d", n))
		},
	}
}

func wakeCommand() *cli.Command {
	return &cli.Command{
		Name: "wake", Usage: "start a sleeping service, as a first connection would", ArgsUsage: "SERVICE",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1); err != nil {
				return err
			}
			return client(c).Order(c.Context, c.Args().First(), "wake")
		},
	}
}

func drainCommand() *cli.Command {
	return &cli.Command{
		Name: "drain", Usage: "send no new connections to a replica, or to the whole service, and stop it when its connections have ended",
		ArgsUsage: "SERVICE [BACKEND]",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2); err != nil {
				return err
			}
			order := "drain"
			if b := c.Args().Get(1); b != "" {
				order += "?backend=" + url.QueryEscape(b)
			}
			return client(c).Order(c.Context, c.Args().First(), order)
		},
	}
}
