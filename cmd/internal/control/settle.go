package control

import (
	"time"

	"sluice/policy"
)

// settleLimit is how long the start waits for fixed backends that do not answer
// their first check.
const settleLimit = time.Second

// settle waits, after everything is adopted, until each fixed backend was checked
// once, and ends the start.
func (c *Control) settle() {
	// What adopting has posted to the owner begins the checks, and comes first.
	c.box.post(func(time.Time) { c.checked(nil) })
	time.AfterFunc(settleLimit, func() { c.box.post(func(time.Time) { c.settled() }) })
}

// starting says that the start is not over yet.
func (c *Control) starting() bool { return c.unchecked != nil }

// await has the start wait for the first check of a fixed backend.
func (c *Control) await(r *replica) {
	if c.starting() && r.index >= policy.FirstMember {
		c.unchecked[r] = true
	}
}

// checked takes note that a backend was checked. Nobody is waited for any more
// once all were.
func (c *Control) checked(r *replica) {
	if !c.starting() {
		return
	}
	delete(c.unchecked, r)
	if len(c.unchecked) == 0 && c.adopted {
		c.settled()
	}
}

// settled ends the start with what is known: ready is said when the table has it.
func (c *Control) settled() {
	if !c.starting() {
		return
	}
	c.unchecked = nil
	healthy, all := 0, 0
	for _, s := range c.services {
		for _, b := range s.policy.View().Backends {
			if b.Index >= policy.FirstMember {
				all++
				if b.State == policy.Ready {
					healthy++
				}
			}
		}
	}
	if all > 0 {
		c.log.Info().Int("backends", all).Int("healthy", healthy).Msg("fixed backends checked")
	}
	c.app.apply(change{done: func() { close(c.ready) }})
}
