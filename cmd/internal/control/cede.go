package control

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/inherit"
)

// ErrEnding says that the daemon stops, or gives way already.
var ErrEnding = errors.New("the daemon is stopping")

// cession is a request to give way to another daemon.
type cession struct {
	ready chan []inherit.Socket // what the other needs; it stays the control's
	end   chan bool             // the answer: the other goes on from here
	gone  chan struct{}         // closed when that has been taken note of
}

// Cede gives way to another daemon. give is called with all sockets, which stay
// the control's, while nothing is accepted, decided or changed, and has to return
// soon after ctx, or the context of Run, has ended; if it returns nil
// the other daemon has taken over, and Run ends as by its context, but without a
// word to those that were held. Otherwise all goes on as before.
func (c *Control) Cede(ctx context.Context, give func([]inherit.Socket) error) error {
	q := &cession{ready: make(chan []inherit.Socket), end: make(chan bool, 1), gone: make(chan struct{})}
	c.box.post(func(time.Time) {
		if c.ceding != nil || c.stopping || !c.adopted {
			close(q.ready)
			return
		}
		c.ceding = q
	})
	var socks []inherit.Socket
	select {
	case list, ok := <-q.ready:
		if !ok {
			return ErrEnding
		}
		socks = list
	case <-c.finished:
		return ErrEnding
	case <-ctx.Done():
		// Run may be about to answer.
		q.end <- false
		return ctx.Err()
	}
	err := give(socks)
	q.end <- err == nil
	select {
	case <-q.gone:
	case <-c.finished:
	}
	return err
}

// Ceding says whether the table is another daemon's to change.
func (c *Control) Ceding() bool { return c.yielded.Load() }

// calmLimit is how long calls to Podman may delay a cession. What is under way
// by then is for the other daemon to find.
const calmLimit = 3 * time.Second

// cede lets all come to rest, and says whether the other daemon goes on from
// here. The owner does nothing else meanwhile.
func (c *Control) cede(ctx context.Context) bool {
	q := c.ceding
	defer func() { c.ceding = nil }()
	for _, l := range c.listeners {
		c.deafen(l)
	}
	for limit := time.After(calmLimit); ; {
		calm := c.calls.Load() == 0 && c.app.idle() // before the mailbox, which has their results
		for _, m := range c.box.take(nil) {
			m(time.Now())
		}
		c.serve()
		if calm {
			break
		}
		select {
		case <-c.box.signal:
			continue
		case <-time.After(calmEvery):
			continue
		case <-limit:
		case <-ctx.Done():
		}
		break
	}
	c.app.gate.Lock()
	c.yielded.Store(true)
	socks, files := c.estate()
	ceded := false
	select {
	case q.ready <- socks:
		ceded = <-q.end // also after the end of ctx: the other may have it all by now
	case <-q.end:
	case <-ctx.Done():
	}
	for _, fd := range files {
		unix.Close(fd)
	}
	if ceded {
		c.ceded = true
		close(q.gone)
		return true
	}
	c.log.Info().Msg("the other daemon has not taken over, this one goes on")
	c.yielded.Store(false)
	c.app.gate.Unlock()
	c.relisten()
	close(q.gone)
	return false
}

const calmEvery = 5 * time.Millisecond

// estate is what another daemon needs, and those descriptors of it that were
// made for that.
func (c *Control) estate() (socks []inherit.Socket, files []int) {
	for _, l := range c.listeners {
		if l.dg == nil {
			socks = append(socks, inherit.Socket{Name: l.keepName(), FD: l.ln.FD()})
			continue
		}
		socks = append(socks, inherit.Socket{Name: l.keepName(), FD: l.dg.FD()})
		fd, err := l.dg.Suspend()
		if err != nil {
			c.log.Warn().Err(err).Msg("held datagrams are lost")
		}
		if fd >= 0 {
			files = append(files, fd)
			name := inherit.Name(inherit.Datagrams, netip.AddrPortFrom(l.endpoint.Addr, l.endpoint.Port))
			socks = append(socks, inherit.Socket{Name: name, FD: fd})
		}
	}
	add := func(h held) {
		if h.dg != nil {
			return
		}
		if client, service, err := ends(h.fd); err == nil {
			socks = append(socks, inherit.Socket{Name: inherit.Name(inherit.Held, service, client), FD: h.fd})
		}
	}
	for _, s := range c.services {
		for _, h := range s.held {
			add(h)
		}
		for _, id := range s.silents.sorted() {
			add(s.silents.by[id])
		}
	}
	return socks, files
}

// relisten is the reverse of what cede has done to the listeners.
func (c *Control) relisten() {
	for _, l := range c.listeners {
		if l.dg != nil {
			l.dg.Resume()
			continue
		}
		if err := c.opt.Accept.Add(l.id, l.ln); err != nil {
			c.log.Error().Err(err).Stringer("listen", l.endpoint).Msg("listener not resumed")
			continue
		}
		l.off = false
		mode := accept.Off
		if l.service != nil {
			mode = l.service.acceptMode(l.service.mode)
		}
		if err := c.opt.Accept.Arm(l.id, mode); err != nil {
			c.log.Error().Err(err).Stringer("listen", l.endpoint).Msg("listener not armed")
		}
	}
}

// call is for effects that another daemon has to find done: on containers, and
// on files.
func (c *Control) call(f func()) {
	c.calls.Add(1)
	c.work.Go(func() {
		defer c.calls.Add(-1)
		f()
	})
}
