package control

import (
	"context"
	"fmt"
	"maps"
	"time"

	"sluice/podman"
	"sluice/policy"
)

// watchBridges takes replicas for dead whose bridge somebody has deleted: nobody
// reaches them any more, though Podman, and they themselves, notice nothing. The
// next container that starts on their network makes the bridge anew.
func (c *Control) watchBridges(ctx context.Context) {
	err := c.opt.Replicas.WatchBridges(ctx, func(bridge string) {
		c.box.post(func(time.Time) {
			maps.DeleteFunc(c.localnets, func(_, b string) bool { return b == bridge || bridge == "" })
			var live []podman.Replica
			for _, s := range c.services {
				for _, r := range s.replicas {
					if r.known() && r.index < policy.FirstMember {
						live = append(live, r.prepared)
					}
				}
			}
			c.work.Go(func() { c.cut(live) })
		})
	})
	if err != nil {
		c.log.Warn().Err(err).Msg("replicas whose bridge is deleted are noticed by their checks alone")
	}
}

// cut takes those of the replicas for dead that are on no bridge any more.
func (c *Control) cut(live []podman.Replica) {
	gone, err := c.opt.Replicas.Cut(live)
	if err != nil {
		c.log.Debug().Err(err).Msg("bridges not looked at")
	}
	for _, p := range gone {
		c.box.post(func(now time.Time) {
			s := c.services[p.Service]
			if s == nil || s.replicas[p.Index] == nil || s.replicas[p.Index].id != p.ID {
				return
			}
			c.step(s, now, policy.Died{Index: p.Index, Detail: fmt.Sprintf("%s is on no bridge any more: it was deleted", p.Name)})
		})
	}
}
