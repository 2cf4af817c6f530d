package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/cmd/internal/verdict"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/podman"
)

func cleanupCommand() *cli.Command {
	return &cli.Command{
		Name:  "cleanup",
		Usage: "remove the table and, with --containers, the replicas; needs neither daemon nor configuration",
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "containers", DisableDefaultText: true, Usage: "stop and remove all replicas too, and forget verdicts on canaries"},
			&cli.StringFlag{Name: "podman", Usage: "`URI` of Podman (default: daemon.podman of the configuration)"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0); err != nil {
				return err
			}
			uri, state := podman.DefaultURI, config.DefaultState
			cfg, err := config.Load(c.String("config"))
			if err == nil {
				uri, state = cfg.Daemon.Podman, cfg.Daemon.State
			} else if _, gone := os.Stat(c.String("config")); gone == nil {
				fmt.Fprintf(c.App.ErrWriter, "sluice: cleanup: the defaults of [daemon] are used, for the configuration cannot be read: %s\n", oneLine(err))
			}
			if c.IsSet("podman") {
				uri = c.String("podman")
			}
			if _, err := client(c).Status(c.Context); err == nil {
				return errors.New("cleanup: the daemon is running and would put everything back: stop it first")
			}
			if err := cleanup(c.Context, uri, c.Bool("containers")); err != nil || !c.Bool("containers") {
				return err
			}
			return verdict.Remove(state)
		},
	}
}

// cleanupTimeout is for what Podman does, without the time that replicas have to
// end by themselves.
const cleanupTimeout = time.Minute

// cleanup removes what sluice has left on the host: first the table, so that
// nothing new reaches a replica, then the replicas and their flows.
func cleanup(ctx context.Context, uri string, containers bool) error {
	if err := nft.Remove(nft.Options{}); err != nil {
		return fmt.Errorf("remove table: %w", err)
	}
	if !containers {
		return nil
	}
	short, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	pod, err := podman.Open(short, uri, podman.Options{})
	if err != nil {
		return fmt.Errorf("remove containers: %w", err)
	}
	defer pod.Close()
	replicas, err := pod.List(short)
	if err != nil {
		return fmt.Errorf("remove containers: %w", err)
	}
	ct, err := conntrack.Open(nft.CTMark, nft.CTMask)
	if err != nil {
		return fmt.Errorf("remove flows: %w", err)
	}
	defer ct.Close()
	var g errgroup.Group
	for _, r := range replicas {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, cleanupTimeout+r.StopTimeout)
			defer cancel()
			if err := pod.Stop(ctx, r.Name, r.StopTimeout); err != nil && !errors.Is(err, podman.ErrGone) {
				return fmt.Errorf("stop %s: %w", r.Name, err)
			}
			if err := pod.Remove(ctx, r.Name); err != nil {
				return fmt.Errorf("remove %s: %w", r.Name, err)
			}
			for _, a := range []netip.Addr{r.Addr4, r.Addr6} {
				if !a.IsValid() {
					continue
				}
				// Of both: an entry of UDP lives for as long as its client goes on.
				for _, proto := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
					if _, err := ct.DeleteBackend(ctx, netip.AddrPortFrom(a, r.Port), proto); err != nil {
						return fmt.Errorf("remove flows of %s: %w", r.Name, err)
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}
