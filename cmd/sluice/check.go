package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"sluice/cmd/internal/config"
)

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "validate the configuration and change nothing",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			cfg, err := config.Load(c.String("config"))
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s: ok, %d services\n", c.String("config"), len(cfg.Services))
			return err
		},
	}
}
