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
			what := "services"
			if len(cfg.Services) == 1 {
				what = "service"
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s: ok, %d %s\n", c.String("config"), len(cfg.Services), what)
			return err
		},
	}
}
