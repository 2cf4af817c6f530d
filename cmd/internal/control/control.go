package control

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/datagram"
	"sluice/cmd/internal/handover"
	"sluice/cmd/internal/health"
	"sluice/cmd/internal/inherit"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/podman"
	"sluice/policy"
)

// Table is the kernel's table.
type Table interface {
	Services() map[nft.Endpoint]nft.Service
	Apply(map[nft.Endpoint]*nft.Service) error
	AddSources([]nft.Source) error
	RemoveSources([]nft.Source) error
	Asleep(map[nft.Endpoint]bool) error
	AllLimited() (map[nft.Endpoint]uint64, error)
}

// Flows counts flows. Count may be stale or unknown; Live is the truth, and
// expensive; Forget deletes what the kernel still tracks of a backend.
type Flows interface {
	Count(conntrack.Backend) (conntrack.Count, bool)
	Live(backend netip.AddrPort, proto uint8, like func(*conntrack.Flow) bool) (live, alike int, err error)
	Forget(ctx context.Context, backend netip.AddrPort, proto uint8) (int, error)
	Sync(context.Context) error
	// Drop drops the counts of a backend if no entry is left, and returns what
	// they are or were.
	Drop(conntrack.Backend) (conntrack.Count, bool)
}

// Replicas makes containers.
type Replicas interface {
	List(context.Context) ([]podman.Replica, error)
	Inspect(context.Context, string) (podman.Replica, error)
	Ping(context.Context) error
	Create(context.Context, podman.Spec, int) (podman.Replica, error)
	Init(context.Context, string) (podman.Replica, error)
	Start(context.Context, string) (podman.Replica, error)
	StartPrepared(context.Context, podman.Replica) (podman.Replica, error)
	Stop(context.Context, string, time.Duration) error
	Pause(context.Context, string) error
	Unpause(context.Context, string) error
	Remove(context.Context, string) error
	Probe(context.Context, string, time.Duration) (bool, error)
	Logs(context.Context, string, int) ([]string, error)
	Network(context.Context, string) (podman.Network, error)
	Exited(context.Context, podman.Replica) error
	Watch(ctx context.Context, since time.Time, f func(podman.Event)) error
	WatchBridges(ctx context.Context, gone func(bridge string)) error
	Cut([]podman.Replica) ([]podman.Replica, error)
}

// Recorder is told what metrics are made of. All methods are cheap and safe
// for concurrent use.
type Recorder interface {
	ColdStart(step string, took time.Duration)
	Drained(took time.Duration, cut int)
	Transaction(took time.Duration)
	Decision(reason string)
	Handover(result string)
}

// Porter makes kernel flows of held connections.
type Porter interface {
	Handover(ctx context.Context, batch []handover.Held, done func(int, handover.Result))
}

// Options are the parts that a [Control] joins.
type Options struct {
	Config    *config.Config
	Table     Table
	Flows     Flows
	Replicas  Replicas
	Accept    accept.Loop
	Datagrams *datagram.Group
	Silence   Silence
	Porter    Porter       // nil: every held connection is relayed
	Keep      Keeper       // nil: nothing outlives the process
	Inherited *inherit.Set // what an earlier run has left; Run empties it
	Record    Recorder
	State     string // directory to keep verdicts on canaries in; "": they end with the process
	Log       zerolog.Logger

	// Commit, if set, is called when all that the daemon needs is there, before
	// it changes anything of what runs; it does not if that is an error.
	Commit func() error
	// Ceded, if set, is called when another daemon has taken over.
	Ceded func()

	// Pulse, if PulseEvery is not 0, is called that often by the owner, with a
	// line about all services.
	Pulse      func(status string)
	PulseEvery time.Duration
}

// A Control runs the services of one host.
type Control struct {
	opt     Options
	log     zerolog.Logger
	box     *mailbox
	wall    func() time.Time // the clock that others may set
	app     *applier
	health  *health.Pool
	hub     hub
	subnets subnets
	ctx     context.Context // ends effects
	work    sync.WaitGroup  // effects
	talk    sync.WaitGroup  // relays

	// Owned by the goroutine of Run.
	services  map[string]*service
	listeners map[uint64]*listener
	endpoints map[nft.Endpoint]*service
	levelled  map[*service]bool   // those whose loads are levelled now
	paused    map[*service]bool   // those with a paused backend
	hushed    map[*service]bool   // those with silent connections
	hushKept  int                 // of these, those that were kept since the last tick
	owners    map[uint64]*service // of these
	tallies   map[conntrack.Backend]*tally
	leaving   map[*tally]bool // those whose replica has left
	due       deadlines
	todo      []serving // connections taken in this turn
	nextConn  uint64
	nextID    uint64
	localnets map[string]string // bridges of the networks seen to by localnet
	host      []netip.Addr      // see locals
	hostAt    time.Time
	synced    time.Time // flows were last dumped
	adopted   bool

	configError string
	verdicts    *verdicts

	listening int              // addresses, at the start
	waiting   []inherit.Socket // connections of an earlier run, until all is adopted

	stopping bool
	ceding   *cession // asked for, not done yet
	ceded    bool
	calls    atomic.Int32 // to Podman, under way
	yielded  atomic.Bool
	finished chan struct{} // closed when Run has ended

	unchecked map[*replica]bool // fixed backends whose first check is awaited; nil: start is over
	ready     chan struct{}     // closed when every service is adopted and settled
}

// message is something that happened. It runs in the owner.
type message func(now time.Time)

// New returns a control that does nothing until [Control.Run].
func New(o Options) *Control {
	c := &Control{
		opt: o, log: o.Log, box: newMailbox(), wall: time.Now,
		services: map[string]*service{}, listeners: map[uint64]*listener{}, endpoints: map[nft.Endpoint]*service{}, paused: map[*service]bool{}, levelled: map[*service]bool{}, hushed: map[*service]bool{}, owners: map[uint64]*service{}, localnets: map[string]string{},
		ready: make(chan struct{}), finished: make(chan struct{}), unchecked: map[*replica]bool{},
		tallies: map[conntrack.Backend]*tally{}, leaving: map[*tally]bool{},
	}
	c.app = newApplier(o.Table, o.Log)
	c.app.took = o.Record.Transaction
	c.app.mapped = func(name string, seq uint64, took time.Duration) {
		c.box.post(func(now time.Time) {
			if s := c.services[name]; s != nil {
				s.pass()
				c.step(s, now, policy.Mapped{Seq: seq})
			}
		})
	}
	return c
}

// Ready is closed when the daemon has adopted what it found, accepts connections
// for every service, and the table has the fixed backends whose first check went
// well. Those that do not answer are not waited for beyond settleLimit.
func (c *Control) Ready() <-chan struct{} { return c.ready }

// Deliver takes a connection from the accept loop.
func (c *Control) Deliver(conn accept.Conn) {
	at := time.Now()
	c.box.post(func(now time.Time) { c.accepted(now, at, conn) })
}

// DeliverDatagrams takes a client whose first datagrams are held.
func (c *Control) DeliverDatagrams(h datagram.Held) {
	c.box.post(func(now time.Time) {
		l := c.listeners[h.Listener]
		if l == nil || l.service == nil {
			return // closed, and what it held with it
		}
		d := held{fd: -1, dg: l.dg, id: h.ID, endpoint: l.endpoint, at: h.At, client: h.Client.Addr(), carry: h.Carry}
		if l.service.stranger(d) {
			c.refuse(d)
			return
		}
		c.hold(l.service, now, d)
	})
}

// AcceptError takes an error of the accept loop, which goes on by itself.
func (c *Control) AcceptError(id uint64, err error) {
	c.box.post(func(time.Time) {
		e := c.log.Warn().Err(err)
		if l := c.listeners[id]; l != nil {
			e = e.Str("service", l.service.name).Str("listen", l.endpoint.String())
		}
		e.Msg("accept failed, trying again")
	})
}

// Zero takes the hint that a backend has lost its last flow.
func (c *Control) Zero(b conntrack.Backend) {
	c.box.post(func(now time.Time) {
		ep := key(b.Service, b.Proto)
		s := c.endpoints[ep]
		if s == nil {
			ep.Addr = netip.IPv6Unspecified()
			if b.Service.Addr().Is4() {
				ep.Addr = netip.IPv4Unspecified()
			}
			if s = c.endpoints[ep]; s == nil {
				return
			}
		}
		if r := s.byAddr(b.Backend); r != nil {
			c.quiet(s, now, r)
		}
	})
}

// quiet lets a service look at its load at once when a backend has become
// free, rather than at the next tick.
func (c *Control) quiet(s *service, now time.Time, r *replica) {
	c.step(s, now, c.load(s))
	c.step(s, now, policy.Quiet{Index: r.index})
}

const (
	loadEvery = time.Second
	levelTick = 100 * time.Millisecond // how often loads are levelled
	syncEvery = 15 * time.Second
)

// Run opens the listeners, adopts what an earlier run left and then runs the
// services until ctx ends. It leaves table, containers and flows as they are;
// relays in progress may go on until grace has passed.
func (c *Control) Run(ctx context.Context, grace time.Duration) error {
	effects, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	c.ctx = effects
	defer close(c.finished)
	c.health = health.NewPool()
	defer c.health.Close()
	defer c.close()
	c.recall()
	c.waiting = c.opt.Inherited.Held()
	if err := c.configure(time.Now(), c.opt.Config); err != nil {
		return err
	}
	c.discard()
	if err := c.adopt(ctx); err != nil {
		return err
	}
	c.inheritHeld(time.Now())
	c.work.Go(func() { c.app.run(effects) })
	c.work.Go(func() { c.watch(effects) })
	c.work.Go(func() { c.watchBridges(effects) })

	level := time.NewTicker(levelTick)
	defer level.Stop()
	load := time.NewTicker(loadEvery)
	defer load.Stop()
	timer := time.NewTimer(0)
	defer timer.Stop()
	var pulse <-chan time.Time
	if c.opt.PulseEvery > 0 {
		t := time.NewTicker(c.opt.PulseEvery)
		defer t.Stop()
		pulse = t.C
		c.opt.Pulse(c.summary())
	}
	c.listening = len(c.listeners)
	var batch []message
	for {
		timer.Reset(c.due.next(time.Now(), time.Hour))
		select {
		case <-ctx.Done():
			c.stopping = true
			c.shutdown(grace)
			return nil
		case <-c.box.signal:
			batch = c.box.take(batch[:0])
			for _, m := range batch {
				m(time.Now())
			}
			clear(batch)
			c.serve()
			if c.ceding != nil && c.cede(ctx) {
				c.stopping = true
				if c.opt.Ceded != nil {
					c.opt.Ceded()
				}
				c.shutdown(grace)
				return nil
			}
		case <-load.C:
			now := time.Now() // the tick may have waited
			c.outwait(now)
			c.loads(now)
			c.settleLocalnets()
			c.dismiss()
			c.correct(now)
			c.serve()
		case <-pulse:
			c.opt.Pulse(c.summary())
		case <-level.C:
			now := time.Now()
			for s := range c.levelled {
				c.step(s, now, c.load(s))
			}
		case <-timer.C:
			c.ticks(time.Now())
			c.serve()
		}
	}
}

// step steps a service and carries out what it asks for.
func (c *Control) step(s *service, now time.Time, ev policy.Event) {
	if c.stopping { // what is decided now is the next run's to do
		return
	}
	was := s.policy.Phase()
	actions := s.policy.Step(now, ev)
	for _, a := range actions {
		c.do(s, now, a)
	}
	c.due.set(s, s.policy.Deadline())
	if phase := s.policy.Phase(); phase != was {
		s.log.Debug().Stringer("from", was).Stringer("to", phase).Msg("phase")
		if phase == policy.Warm && len(s.silents.by) > 0 {
			c.box.post(func(now time.Time) { c.admit(s, now) }) // not a step within a step
		}
	}
	// A service is cold while a container that is not wanted any more is made or
	// paused: what comes of it has to be seen to.
	if s.removed && c.services[s.name] == s && s.policy.Phase() == policy.Cold && len(s.policy.View().Backends) == 0 {
		c.forget(s)
	}
}

func (c *Control) ticks(now time.Time) {
	for len(c.due) > 0 && !c.due[0].due.After(now) {
		s := c.due[0]
		c.due.set(s, time.Time{})
		c.step(s, now, policy.Tick{})
	}
}

// close ends what Run has opened. Containers, table and flows stay.
func (c *Control) close() {
	for _, l := range c.listeners {
		c.shut(l)
	}
	for _, s := range c.services {
		c.bequeath(s)
		for _, h := range s.held {
			c.leave(h)
		}
	}
}

// refuse ends what waits for a backend.
func (c *Control) refuse(h held) {
	if h.dg != nil {
		h.dg.Refuse(h.id)
		return
	}
	c.unkeep(&h)
	c.reset(h.fd)
}

// reset ends a connection that nothing was read from.
func (c *Control) reset(fd int) {
	if err := accept.Reset(fd); err != nil {
		c.log.Warn().Err(err).Msg("connection not reset")
	}
}

// shutdown lets relays go on for a while, then ends every effect. A start or
// stop in flight is let finish by Podman; the next run adopts its result.
func (c *Control) shutdown(grace time.Duration) {
	for _, l := range c.listeners {
		c.deafen(l)
	}
	for _, s := range c.services {
		for _, r := range s.replicas {
			r.endExchanges() // there is nothing that its peers would wait for
		}
	}
	settle := func() (n int) {
		for _, m := range c.box.take(nil) {
			m(time.Now())
		}
		c.serve()
		for _, s := range c.services {
			n += s.carrying()
		}
		return n
	}
	n := settle()
	if n == 0 {
		return
	}
	c.log.Info().Int("connections", n).Dur("grace", grace).Msg("stopping, waiting for connections that are handed over or relayed")
	limit := time.After(grace)
	for n > 0 {
		select {
		case <-limit:
			c.log.Warn().Int("connections", n).Msg("relayed connections cut")
			return
		case <-c.box.signal: // a connection that is not handed over becomes a relay
			n = settle()
		}
	}
}
