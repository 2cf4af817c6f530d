package control

import (
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/datagram"
	"sluice/cmd/internal/resolve"
	"sluice/nft"
	"sluice/podman"
	"sluice/policy"
)

// listener is one address of a service: of TCP or, with dg, of UDP.
type listener struct {
	id       uint64
	ln       *accept.Listener
	dg       *datagram.Listener
	endpoint nft.Endpoint
	service  *service

	inherited bool // kept under its name since an earlier run
	off       bool // not with the accept loop any more
}

// held is an accepted connection that waits for a backend, or with dg a client
// whose datagrams do.
type held struct {
	fd       int
	dg       *datagram.Listener
	id       uint64 // that dg knows the client by
	endpoint nft.Endpoint
	at       time.Time
	client   netip.Addr // with dg
	carry    bool       // with dg: it can only be relayed
	kept     string     // what it is kept under for the next run; "": it is not
}

// replica is what control knows of a container.
type replica struct {
	index        int
	name         string                          // as sluice calls the container
	alias        string                          // as somebody else has renamed it; "" if nobody has
	id           string                          // of the container; "" as long as no address is known
	addr4, addr6 netip.AddrPort                  // zero until its start has returned
	since        time.Time                       // addresses and id are known
	prepared     podman.Replica                  // as Podman last told it
	uncounted    bool                            // its flows, when they were last to be
	carries      int                             // connections that the daemon still has a part in
	relays       int                             // of these, those that are relayed
	exchanges    map[*serving]*datagram.Exchange // of these, those of datagrams
	asleep       bool                            // an alarm is set for it
	halted       bool                            // somebody else has paused it
	looking      bool                            // Podman is being asked about it
	looked       time.Time                       // when it last was
	again        bool                            // and will be once more
	tallies      []*tally                        // of its addresses, if something was counted
	sum          *traffic                        // nil: nothing was carried, see carried
	unprobe      func()                          // ends its checks; nil: none run
	probes       int                             // how often they were begun or ended
	unwatch      func()                          // ends the death watch; nil: none runs
}

// service is one service with its state machine and what it holds open. All
// of it belongs to the owner.
type service struct {
	name      string
	cfg       config.Service
	kinds     kinds
	policy    *policy.Service
	log       zerolog.Logger
	listeners []*listener
	endpoints []nft.Endpoint // also those of a service without listeners
	replicas  map[int]*replica
	held      map[uint64]held
	relayed   map[*net.TCPConn]bool       // clients of its relays
	silents   silents                     // of a patient service
	mode      accept.Mode                 // of its listeners, as the policy asks for
	members   int                         // indices given to members
	found     map[string][]resolve.Target // what SRV names stand for
	unresolve func()                      // ends following them
	removed   bool                        // not configured any more: drain, then forget
	lastStop  time.Duration               // container.stop_timeout when there last was a container

	shares     []policy.Share // as asked for last
	percent    int            // of the slots for those of the canary
	mappedAny  bool           // shares is what was asked for last
	due        time.Time
	wake       wake
	counts     totals
	past       map[int]*traffic // of replicas that are gone, by index
	lastRef    time.Time        // when a refused connection was last logged
	refused    int
	failing    map[int]string // what was last said of a replica that does not start or stop
	lastReheld time.Time      // when connections that are held again were last logged
	reheld     int

	heapIndex int
}

// totals are counters of a service's lifetime in this process.
type totals struct {
	traffic
	handedOver uint64
}

// wake collects the times of a cold start.
type wake struct {
	accepted, start, started, ready time.Time
}

// stopTimeout is for containers of which nothing is configured any more.
const stopTimeout = 10 * time.Second

func newService(cfg config.Service, k kinds, log zerolog.Logger) *service {
	s := &service{
		name: cfg.Name, cfg: cfg, kinds: k, heapIndex: -1,
		log:      log.With().Str("service", cfg.Name).Logger(),
		replicas: map[int]*replica{}, held: map[uint64]held{}, relayed: map[*net.TCPConn]bool{},
		lastStop: stopTimeout,
	}
	if cfg.Container != nil {
		s.lastStop = cfg.Container.StopTimeout
	}
	s.policy = policy.New(k.rules(cfg))
	return s
}

// Rules are what the policy is told of a service, but for its canary.
func Rules(cfg config.Service) policy.Spec { return policySpec(cfg, podmanSpec(cfg, cfg.Container)) }

func policySpec(cfg config.Service, spec podman.Spec) policy.Spec {
	p := policy.Spec{
		Scaling: policy.Scaling{
			Min: cfg.Scale.Min, Max: cfg.Scale.Max,
			Flows: cfg.Scale.FlowsPerReplica, Rate: cfg.Scale.RatePerReplica,
			Utilization: cfg.Scale.Utilization,
			Stable:      cfg.Scale.StableWindow, Panic: cfg.Scale.PanicWindow,
		},
		Hash: spec.Hash(), Idle: cfg.Scale.Idle, SlowStart: cfg.Scale.SlowStart, Level: cfg.Balance == config.LeastConnections,
		StartTimeout: cfg.Start.Timeout, DrainTimeout: cfg.Drain.Timeout,
		StopAfter: cfg.Scale.StopAfter, IdleBytes: cfg.Scale.IdleCounts == config.IdleBytes,
	}
	if cfg.Container != nil {
		p.Priority = cfg.Container.Priority
	}
	switch cfg.Scale.Sleep {
	case config.SleepPrepared:
		p.Sleep = policy.SleepPrepared
	case config.SleepPause:
		p.Sleep = policy.SleepPause
	}
	if cfg.Container == nil {
		p.Min, p.Max, p.Sleep = 0, 0, policy.SleepStop
	}
	return p
}

// podmanSpec says how replicas are made by a container section.
func podmanSpec(cfg config.Service, k *config.Container) podman.Spec {
	if k == nil {
		return podman.Spec{Service: cfg.Name}
	}
	spec := podman.Spec{
		Service: cfg.Name, Image: k.Image, Port: k.Port, Command: k.Command, Env: k.Env,
		Network: k.Network, Memory: k.Memory, CPUs: k.CPUs, Pull: string(k.Pull), StopTimeout: k.StopTimeout,
	}
	if cfg.Health.Type == config.HealthExec {
		spec.Health = cfg.Health.Command
	}
	for _, v := range k.Volumes {
		spec.Volumes = append(spec.Volumes, v.String())
	}
	return spec
}

// replica returns the replica of an index, made if need be.
func (s *service) replica(index int) *replica {
	r := s.replicas[index]
	if r == nil {
		r = &replica{index: index, name: podman.Name(s.name, index), sum: s.past[index]}
		s.replicas[index] = r
	}
	return r
}

// backendName is what people call a backend: its container, or its address.
func (s *service) backendName(index int) string {
	if r := s.replicas[index]; r != nil {
		return r.called()
	}
	return podman.Name(s.name, index)
}

// index returns the index of a backend by its name.
func (s *service) index(name string) (int, bool) {
	for _, r := range s.replicas {
		if r.called() == name {
			return r.index, true
		}
	}
	return 0, false
}

// called is the name that Podman shows.
func (r *replica) called() string {
	if r.alias != "" {
		return r.alias
	}
	return r.name
}

// known says that the replica has an address.
func (r *replica) known() bool { return r.addr4.IsValid() || r.addr6.IsValid() }

// at is the replica's address in the family of a service address, or the zero
// value.
func (r *replica) at(a netip.Addr) netip.AddrPort {
	if a.Is4() {
		return r.addr4
	}
	return r.addr6
}

// any is the address to reach the replica by from here.
func (r *replica) any() netip.AddrPort {
	if r.addr4.IsValid() {
		return r.addr4
	}
	return r.addr6
}

func (s *service) byAddr(a netip.AddrPort) *replica {
	for _, r := range s.replicas {
		if a.IsValid() && (r.addr4 == a || r.addr6 == a) {
			return r
		}
	}
	return nil
}

// relaying counts the connections that the daemon relays, carrying also those
// that are being handed over.
func (s *service) relaying() (n int) {
	for _, r := range s.replicas {
		n += r.relays
	}
	return n
}

func (s *service) carrying() (n int) {
	for _, r := range s.replicas {
		n += r.carries
	}
	return n
}

// table says which slots the backends fill, on every address of the service.
func (c *Control) table(s *service, shares []policy.Share, percent int) change {
	leaves := !s.mappedAny // what an earlier run has put there is not known by index
	for _, old := range s.shares {
		leaves = leaves || !slices.ContainsFunc(shares, func(sh policy.Share) bool { return sh.Index == old.Index })
	}
	s.shares, s.percent, s.mappedAny = shares, percent, true
	return c.slotted(s, leaves)
}

// slotted gives the addresses of the service their slots. Addresses that have
// gone to another service meanwhile are that one's.
func (c *Control) slotted(s *service, leaves bool) change {
	ch := change{service: s.name, endpoints: map[nft.Endpoint]*nft.Service{}, removes: leaves}
	for _, ep := range s.endpoints {
		slots := s.slots(ep)
		switch {
		case c.endpoints[ep] != s:
		case s.removed && len(slots) == 0:
			ch.endpoints[ep] = nil
		case s.removed || s.owns(ep):
			ch.endpoints[ep] = s.kernel(ep, slots)
		}
	}
	return ch
}

// pass has datagrams that still come to the daemon sent on, once the slots are
// in the table; holdBack has them held, before they are taken out.
func (s *service) pass() {
	for _, w := range s.listeners {
		if w.dg != nil && len(s.slots(w.endpoint)) > 0 {
			w.dg.Set(datagram.Pass)
		}
	}
}

func (s *service) holdBack() {
	for _, w := range s.listeners {
		if w.dg != nil && len(s.slots(w.endpoint)) == 0 {
			w.dg.Set(datagram.Hold)
		}
	}
}

// slots spreads the shares over the slots of one address. Backends without an
// address of its family get none; without any the daemon serves that address.
func (s *service) slots(ep nft.Endpoint) (slots []netip.AddrPort) {
	var addrs []netip.AddrPort
	var shares []policy.Share
	if s.cfg.Forward == config.ForwardProxy || ep.Addr == netip.IPv6Loopback() {
		return nil // every connection is the daemon's
	}
	for _, sh := range s.shares {
		if a := s.replica(sh.Index).at(ep.Addr); a.IsValid() {
			addrs = append(addrs, a)
			shares = append(shares, sh)
		}
	}
	for _, i := range s.spread(addrs, shares) {
		slots = append(slots, addrs[i])
	}
	return slots
}

func (s *service) spread(addrs []netip.AddrPort, shares []policy.Share) []int {
	if len(addrs) > 1 {
		switch s.cfg.Balance {
		case config.Maglev:
			names := make([]string, len(addrs))
			for i, a := range addrs {
				names[i] = a.String()
			}
			return policy.DivideConsistent(names, shares, s.percent)
		case config.LeastConnections:
			return policy.Divide(shares, s.percent, policy.LevelSize) // so that few slots change
		}
	}
	return policy.Divide(shares, s.percent, policy.DivideCount(shares, s.percent, nft.Classes()))
}

// kernel is what the table holds of an address of the service.
func (s *service) kernel(ep nft.Endpoint, slots []netip.AddrPort) *nft.Service {
	k := &nft.Service{
		Screen: len(s.cfg.Allow) > 0 && !s.awake(), Allow: allowed(s.cfg.Allow, ep), Patient: s.patient(),
		Slots: slots, Affinity: s.cfg.Affinity, Masquerade: s.cfg.Source == config.SourceMasquerade,
		Limits: nft.Limits{
			MaxFlows: uint32(s.cfg.Limits.MaxFlows), MaxFlowsPerClient: uint32(s.cfg.Limits.MaxFlowsPerClient), //nolint:gosec // validated
			NewPerSecond: uint32(s.cfg.Limits.MaxNewPerSecond), NewPerSecondPerClient: uint32(s.cfg.Limits.MaxNewPerSecondPerClient), //nolint:gosec // validated
		},
	}
	switch s.cfg.Balance {
	case config.Random:
		k.Balance = nft.Random
	case config.SourceHash:
		k.Balance = nft.SourceHash
	case config.Maglev:
		k.Balance = nft.FlowHash
	}
	return k
}
