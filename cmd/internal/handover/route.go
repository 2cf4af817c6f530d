package handover

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/jsimonetti/rtnetlink/v2"
	"golang.org/x/sys/unix"
)

// router answers which way packets to an address would leave.
type router struct {
	mu   sync.Mutex
	conn *rtnetlink.Conn
}

// way is the kernel's answer for a destination.
type way struct {
	local  bool   // an address of this host
	device uint32 // interface index
}

// openRouter belongs to the network namespace of the calling thread.
func openRouter() (*router, error) {
	c, err := rtnetlink.Dial(nil)
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	return &router{conn: c}, nil
}

func (r *router) close() error { return r.conn.Close() }

func (r *router) to(a netip.Addr) (way, error) {
	m := &rtnetlink.RouteMessage{
		Family:     unix.AF_INET,
		DstLength:  uint8(a.BitLen()),
		Attributes: rtnetlink.RouteAttributes{Dst: a.AsSlice()},
	}
	if a.Is6() {
		m.Family = unix.AF_INET6
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	routes, err := r.conn.Route.Get(m)
	if err != nil {
		return way{}, fmt.Errorf("look up route to %s: %w", a, err)
	}
	if len(routes) == 0 {
		return way{}, fmt.Errorf("look up route to %s: %w", a, unix.ENETUNREACH)
	}
	return way{
		local:  routes[0].Type == unix.RTN_LOCAL,
		device: routes[0].Attributes.OutIface,
	}, nil
}

// ways remembers answers for the length of a batch.
type ways struct {
	router *router
	known  map[netip.Addr]way
}

func (w *ways) to(a netip.Addr) (way, error) {
	if v, ok := w.known[a]; ok {
		return v, nil
	}
	v, err := w.router.to(a)
	if err == nil {
		w.known[a] = v
	}
	return v, err
}

// refuse finds connections that cannot be handed over because of where their
// ends are.
func (w *ways) refuse(h *Held) (Reason, error) {
	if h.Client.Addr().IsLoopback() || h.Service.Addr().IsLoopback() {
		return Loopback, nil
	}
	backend, err := w.to(h.Backend.Addr())
	if err != nil {
		return Unable, err
	}
	if backend.local {
		return Loopback, nil
	}
	client, err := w.to(h.Client.Addr())
	if err != nil {
		return Unable, err
	}
	// A client on this host itself is fine: its flow leaves by the backend's
	// device and comes back through it.
	if !client.local && client.device == backend.device {
		return Hairpin, nil
	}
	return "", nil
}
