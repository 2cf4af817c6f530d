package main

import (
	"net/netip"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/inherit"
	"sluice/cmd/internal/systemd"
)

// herald tells the service manager how the daemon is, if there is one.
type herald struct {
	to  *systemd.Notifier // nil: there is none
	log zerolog.Logger

	mu     sync.Mutex
	status string
}

// newHerald also returns what the service manager has kept of an earlier run.
func newHerald(log zerolog.Logger) (*herald, *inherit.Set, error) {
	files, err := systemd.Inherited()
	if err != nil {
		return nil, nil, err
	}
	left := &inherit.Set{}
	for _, f := range files {
		left.Add(inherit.Socket{Name: f.Name, FD: f.FD, Kept: true})
	}
	n, err := systemd.Open(func(err error) { log.Warn().Err(err).Msg("no word to the service manager") })
	return &herald{to: n, log: log}, left, err
}

// keeper is where descriptors outlive the daemon.
func (h *herald) keeper() control.Keeper {
	if h.to == nil {
		return nil
	}
	return h.to
}

// journal is where held datagrams outlive the daemon.
func (h *herald) journal() func(netip.AddrPort, int) {
	if h.to == nil {
		return nil
	}
	return func(addr netip.AddrPort, fd int) { h.to.Store(inherit.Name(inherit.Datagrams, addr), fd) }
}

// fits says once if the service manager cannot keep as much as there is.
func (h *herald) fits(addresses int) {
	// A held connection for each, and what is held of datagrams.
	if room := h.to.Room(); h.to != nil && room >= 0 && room < 2*addresses {
		h.log.Warn().Int("room", room).Int("addresses", addresses).
			Msg("the service manager cannot keep all sockets over a restart: raise FileDescriptorStoreMax= of the unit")
	}
}

// pulseEvery is how often the owner of all services shows that it is alive.
func (h *herald) pulseEvery() time.Duration {
	switch w := h.to.Watchdog(); {
	case h.to == nil:
		return 0
	case w > 0:
		return min(w/2, statusEvery)
	}
	return statusEvery
}

const statusEvery = time.Second

// pulse is called by that owner, and by nobody else: one that hangs is to be
// noticed.
func (h *herald) pulse(status string) {
	if h.to.Watchdog() > 0 {
		h.to.Feed()
	}
	h.mu.Lock()
	changed := h.status != status
	h.status = status
	h.mu.Unlock()
	if changed {
		h.to.Status(status)
	}
}

// ready ends the start, and each reload.
func (h *herald) ready() {
	h.mu.Lock()
	status := h.status
	h.mu.Unlock()
	h.to.Ready(status)
}
