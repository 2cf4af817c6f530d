package control

import (
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/handover"
	"sluice/cmd/internal/inherit"
)

// Keeper keeps descriptors for the next run while this one goes on with its own.
// Its methods do not wait.
type Keeper interface {
	Store(name string, fd int)
	Remove(name string)
}

// keepName is what a listener is kept under.
func (w *listener) keepName() string {
	kind := inherit.TCP
	if w.dg != nil {
		kind = inherit.UDP
	}
	return inherit.Name(kind, netip.AddrPortFrom(w.endpoint.Addr, w.endpoint.Port))
}

// keepListener leaves a listening socket to the next run, in which connections
// are queued while none runs.
func (c *Control) keepListener(w *listener) {
	switch {
	case c.opt.Keep == nil || w.inherited:
	case w.dg != nil:
		c.opt.Keep.Store(w.keepName(), w.dg.FD())
	default:
		c.opt.Keep.Store(w.keepName(), w.ln.FD())
	}
}

// unkeepListener is for one that nobody is to listen on any more.
func (c *Control) unkeepListener(w *listener) {
	if c.opt.Keep != nil {
		c.opt.Keep.Remove(w.keepName())
		if w.dg != nil {
			c.opt.Keep.Remove(inherit.Name(inherit.Datagrams, w.dg.Addr()))
		}
	}
	if w.ln == nil {
		return
	}
	// Whoever keeps it still has it for a moment, and with it the port.
	c.deafen(w)
	if err := w.ln.Shut(); err != nil {
		c.log.Debug().Err(err).Stringer("listen", w.endpoint).Msg("listener not shut")
	}
}

// keep leaves a connection that waits for a backend to the next run, in case
// this one ends before it is served.
func (c *Control) keep(h *held) {
	if c.opt.Keep == nil || h.dg != nil || h.kept != "" {
		return
	}
	client, service, err := ends(h.fd)
	if err != nil { // reset by the client
		return
	}
	h.kept = inherit.Name(inherit.Held, service, client)
	c.opt.Keep.Store(h.kept, h.fd)
}

// leave lets go of what waits at the end of this run.
func (c *Control) leave(h held) {
	if h.dg == nil && (h.kept != "" || c.ceded) {
		_ = unix.Close(h.fd) // the next run goes on with it
		return
	}
	c.refuse(h)
}

func (c *Control) unkeep(h *held) {
	if h.kept != "" {
		c.opt.Keep.Remove(h.kept)
		h.kept = ""
	}
}

// inherited opens a listener on a socket that an earlier run has left.
func (c *Control) inherited(w *listener, backlog int) (bool, error) {
	addr := netip.AddrPortFrom(w.endpoint.Addr, w.endpoint.Port)
	kind := inherit.TCP
	if w.endpoint.Proto == unix.IPPROTO_UDP {
		kind = inherit.UDP
	}
	sock, ok := c.opt.Inherited.Listener(kind, addr)
	if !ok {
		return false, nil
	}
	var err error
	if kind == inherit.UDP {
		file := -1
		left, ok := c.opt.Inherited.File(addr)
		if ok {
			file = left.FD
		}
		w.dg, err = c.opt.Datagrams.Adopt(w.id, addr, sock.FD, file)
		if err != nil && ok {
			_ = left.Close()
		}
	} else {
		w.ln, err = accept.Adopt(sock.FD, backlog)
	}
	if err != nil {
		_ = sock.Close()
		return false, err
	}
	// One under another name was opened by somebody else, for this run only.
	w.inherited = sock.Kept && sock.Name == w.keepName()
	return true, nil
}

// discard closes what an earlier run has left and nobody wants any more.
func (c *Control) discard() {
	for _, sock := range c.opt.Inherited.Rest() {
		c.log.Info().Str("socket", sock.Name).Msg("left by an earlier run and not wanted any more")
		if c.opt.Keep != nil {
			c.opt.Keep.Remove(sock.Name)
		}
		_ = sock.Close()
	}
}

// inheritHeld holds again the connections that an earlier run has held, with
// all their time before them.
func (c *Control) inheritHeld(now time.Time) {
	for _, sock := range c.waiting {
		alive, err := handover.Recover(sock.FD)
		if err != nil {
			c.log.Warn().Err(err).Str("socket", sock.Name).Msg("held connection of an earlier run lost")
		}
		if !alive {
			if c.opt.Keep != nil {
				c.opt.Keep.Remove(sock.Name)
			}
			continue
		}
		h := held{fd: sock.FD, at: now}
		if c.opt.Keep != nil && sock.Kept {
			h.kept = sock.Name
		}
		l := c.listenerOf(sock.FD)
		if l == nil || l.service == nil {
			c.log.Warn().Str("socket", sock.Name).Msg("held connection of an earlier run reset: no service has its address any more")
			c.refuse(h)
			continue
		}
		h.endpoint = l.endpoint
		if l.service.stranger(h) {
			c.refuse(h)
			continue
		}
		l.service.log.Info().Str("socket", sock.Name).Msg("connection of an earlier run held")
		if !c.silent(l.service, h) {
			c.hold(l.service, now, h)
		}
	}
	c.waiting = nil
}

// listenerOf finds the listener that a connection has come by.
func (c *Control) listenerOf(fd int) *listener {
	_, at, err := ends(fd)
	if err != nil {
		return nil
	}
	by := c.byEndpoint()
	ep := key(at, unix.IPPROTO_TCP)
	if l := by[ep]; l != nil {
		return l
	}
	ep.Addr = netip.IPv6Unspecified()
	if at.Addr().Is4() {
		ep.Addr = netip.IPv4Unspecified()
	}
	return by[ep]
}

// deafen takes a listener out of the accept loop. Connections that have been
// accepted by then are in the mailbox when it returns.
func (c *Control) deafen(w *listener) {
	if w.ln == nil || w.off {
		return
	}
	w.off = true
	if err := c.opt.Accept.Remove(w.id); err != nil {
		c.log.Debug().Err(err).Stringer("listen", w.endpoint).Msg("listener not removed from the accept loop")
	}
}
