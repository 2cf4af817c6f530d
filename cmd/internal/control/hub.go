package control

import (
	"sync"
	"time"
)

// Event is something that happened to a service, for `sluice events`.
type Event struct {
	Time    time.Time `json:"time"`
	Service string    `json:"service"`
	Event   string    `json:"event"`
	Backend string    `json:"backend,omitempty"`
	Text    string    `json:"text"`
	Error   string    `json:"error,omitempty"`
}

// hub hands events to followers. One that does not keep up loses events
// rather than holding the owner up.
type hub struct {
	mu        sync.Mutex
	followers map[chan Event]struct{}
}

const followerBuffer = 256

func (h *hub) publish(ev Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ch := range h.followers {
		select {
		case ch <- ev:
		default:
		}
	}
}

// Follow returns events from now on, until stop is called.
func (c *Control) Follow() (events <-chan Event, stop func()) {
	ch := make(chan Event, followerBuffer)
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	if c.hub.followers == nil {
		c.hub.followers = map[chan Event]struct{}{}
	}
	c.hub.followers[ch] = struct{}{}
	return ch, func() {
		c.hub.mu.Lock()
		defer c.hub.mu.Unlock()
		delete(c.hub.followers, ch)
	}
}
