package control

import (
	"fmt"
	"strings"

	"sluice/policy"
)

// summary is a line about all services, as "12 services: 3 awake, 9 asleep".
func (c *Control) summary() string {
	words := []struct {
		phase policy.Phase
		text  string
	}{{policy.Warm, "awake"}, {policy.Waking, "waking"}, {policy.Draining, "draining"}, {policy.Cold, "asleep"}, {policy.Failed, "failed"}}
	n := map[policy.Phase]int{}
	for _, s := range c.services {
		n[s.policy.Phase()]++
	}
	var parts []string
	for _, w := range words {
		if n[w.phase] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[w.phase], w.text))
		}
	}
	if len(parts) == 0 {
		return "no services"
	}
	return count(len(c.services), "service") + ": " + strings.Join(parts, ", ")
}

// Listening is how many addresses the daemon had when [Control.Ready] was closed,
// and not to be asked before.
func (c *Control) Listening() int { return c.listening }
