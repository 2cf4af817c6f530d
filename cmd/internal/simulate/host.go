package simulate

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"sluice/policy"
)

// Params are a service and the host that it would run on.
type Params struct {
	Spec    policy.Spec
	Backlog int  // completed connections that the kernel queues
	Chance  bool // a flow's replica is left to chance, by weight, instead of each in turn
	Seed    uint64

	Start    time.Duration // until a container made anew accepts
	Prepared time.Duration // the same of one that was prepared
	Thaw     time.Duration // the same of one that was paused
	Boot     time.Duration // what the program itself needs on top of the first two
	Stop     time.Duration // until a stopped container is gone

	Length time.Duration // what is simulated
	Tick   time.Duration // what one [Tick] covers
}

// As measured with podman 4.3.1 and runc on an idle host.
const (
	DefaultStart    = 71 * time.Millisecond
	DefaultPrepared = 8 * time.Millisecond
	DefaultThaw     = 4 * time.Millisecond
	DefaultStop     = 100 * time.Millisecond

	serial  = 37 * time.Millisecond // of a start: Podman does one at a time
	mapTime = 300 * time.Microsecond
	dump    = time.Millisecond
	freeze  = 4 * time.Millisecond
)

// The rhythm of the daemon.
const (
	loadEvery  = time.Second
	levelEvery = 100 * time.Millisecond
)

// A client whose connection does not fit into the queue sends its SYN again,
// each time after twice as long, as Linux does (net.ipv4.tcp_syn_retries).
const (
	firstRetry = time.Second
	lastTry    = 6
)

// conn is a flow on its way to a replica.
type conn struct {
	flow  Flow
	at    time.Duration // when it was seen first
	tries int
}

// replica is a container.
type replica struct {
	index    int
	prepared bool
	frozen   bool
	probe    int // the latest of its checks
	flows    int
	moving   int     // of those
	credit   int     // towards the next new flow
	waiting  []*conn // for it to be thawed
	gone     bool
}

// host carries actions out.
type host struct {
	p        Params
	src      Source
	svc      *policy.Service
	now      time.Duration
	agenda   agenda
	rand     *rand.Rand
	replicas map[int]*replica
	lane     time.Duration // when Podman is free for the next start

	mode   policy.AcceptMode
	queue  []*conn
	held   map[uint64]*conn
	lastID uint64
	acked  []policy.Share // what the kernel's map names
	asked  int            // shares of the last Map
	due    time.Time

	begun, moved uint64
	meter        meter
	watch        func(time.Time, policy.Event, []policy.Action) // nil but in tests
}

// Run simulates a service from its first start on. row is given each tick as
// it ends; its error ends the run.
func Run(ctx context.Context, p Params, src Source, row func(Tick) error) (Summary, error) {
	return run(ctx, newHost(p, src), row)
}

func newHost(p Params, src Source) *host {
	return &host{
		p: p, src: src, svc: policy.New(p.Spec), mode: policy.AcceptOff,
		rand:     rand.New(rand.NewPCG(p.Seed, 1)), //nolint:gosec // to be repeatable
		replicas: map[int]*replica{}, held: map[uint64]*conn{},
		meter: meter{spec: p.Spec},
	}
}

func run(ctx context.Context, h *host, row func(Tick) error) (Summary, error) {
	h.step(policy.Adopt{})
	h.arrivals()
	h.every(loadEvery, func() {
		if h.svc.Phase() != policy.Cold {
			h.load()
		}
	})
	h.every(levelEvery, func() {
		if h.p.Spec.Level && h.asked > 1 {
			h.load()
		}
	})
	h.every(time.Second, h.meter.sample)
	tick := min(h.p.Tick, h.p.Length)
	for n := 0; len(h.agenda.list) > 0; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return Summary{}, ctx.Err()
		}
		at, do := h.agenda.take()
		for at > tick {
			h.advance(tick)
			if err := row(h.meter.tick(h)); err != nil {
				return Summary{}, fmt.Errorf("print tick: %w", err)
			}
			if tick == h.p.Length {
				return h.meter.summary(h), nil
			}
			tick = min(tick+h.p.Tick, h.p.Length)
		}
		h.advance(at)
		do()
	}
	return Summary{}, nil // not reached: loads go on for ever
}

func (h *host) advance(to time.Duration) {
	h.meter.pass(to - h.now)
	h.now = to
}

// after has something done later; what is due at the same time is done in the
// order in which it was asked for.
func (h *host) after(d time.Duration, do func()) { h.agenda.add(h.now+d, do) }

func (h *host) every(d time.Duration, do func()) {
	h.after(d, func() {
		do()
		h.every(d, do)
	})
}

// clock is the time that the policy is told.
func (h *host) clock() time.Time { return time.Unix(0, 0).UTC().Add(h.now) }

func (h *host) step(ev policy.Event) {
	actions := slices.Clone(h.svc.Step(h.clock(), ev))
	if h.watch != nil {
		h.watch(h.clock(), ev, actions)
	}
	for _, a := range actions {
		h.do(a)
	}
	h.meter.look(h.svc.View())
	if d := h.svc.Deadline(); !d.Equal(h.due) {
		h.due = d
		if !d.IsZero() {
			h.after(d.Sub(h.clock()), func() {
				if d.Equal(h.due) {
					h.due = time.Time{}
					h.step(policy.Tick{})
				}
			})
		}
	}
}

func (h *host) do(a policy.Action) {
	switch a := a.(type) {
	case policy.Accept:
		h.mode = a.Mode
		h.after(0, h.accept)
	case policy.Prepare:
		r := h.add(a.Index)
		h.after(h.serially(h.p.Start), func() {
			r.prepared = true
			h.step(policy.Prepared{Index: r.index})
		})
	case policy.Start:
		d := h.p.Prepared
		if r := h.replicas[a.Index]; r == nil || !r.prepared {
			h.add(a.Index)
			d = h.serially(h.p.Start)
		}
		h.after(d, func() { h.step(policy.Started{Index: a.Index}) })
	case policy.Pause:
		r := h.replicas[a.Index]
		h.after(freeze, func() {
			r.frozen = true
			h.step(policy.Paused{Index: r.index})
		})
	case policy.Thaw:
		r := h.replicas[a.Index]
		h.after(h.p.Thaw, func() {
			r.frozen = false
			for _, c := range r.waiting {
				h.serve(c, r)
			}
			r.waiting = nil
			h.step(policy.Thawed{Index: r.index})
		})
	case policy.Probe:
		r := h.replicas[a.Index]
		r.probe++
		if probe := r.probe; !a.Assume {
			h.after(h.p.Boot, func() {
				if r.probe == probe {
					h.step(policy.Health{Index: r.index, Healthy: true})
				}
			})
		}
	case policy.Unprobe:
		h.replicas[a.Index].probe++
	case policy.Map:
		h.asked = len(a.Shares)
		h.after(mapTime, func() {
			h.acked = a.Shares
			h.step(policy.Mapped{Seq: a.Seq})
		})
	case policy.Count:
		r := h.replicas[a.Index]
		h.after(dump, func() { h.step(policy.Counted{Index: r.index, Seq: a.Seq, Flows: r.flows, Known: true}) })
	case policy.Stop:
		h.stop(h.replicas[a.Index])
	case policy.Serve:
		c := h.held[a.Conn]
		delete(h.held, a.Conn)
		h.attach(c, h.replicas[a.Index])
	case policy.Reset:
		delete(h.held, a.Conn)
		h.meter.lose(&h.meter.sum.Reset, 1)
	case policy.Note:
		if a.Kind == policy.NoteWaking {
			h.meter.sum.ColdStarts++
		}
	}
}

// serially says when a start that begins now is done: parts of starts wait for
// each other.
func (h *host) serially(d time.Duration) time.Duration {
	part := min(serial, d)
	h.lane = max(h.lane, h.now) + part
	return h.lane - h.now + d - part
}

func (h *host) add(index int) *replica {
	r := &replica{index: index}
	h.replicas[index] = r
	return r
}

// stop cuts the flows that are left, as the drain deadline does.
func (h *host) stop(r *replica) {
	r.probe++
	h.after(h.p.Stop, func() {
		r.gone = true
		h.meter.lose(&h.meter.sum.Cut, len(r.waiting))
		h.meter.cut(r.flows - len(r.waiting))
		delete(h.replicas, r.index)
		h.step(policy.Stopped{Index: r.index})
	})
}

// load reports what the service carries.
func (h *host) load() {
	l := policy.Load{Known: true, Flows: map[int]int{}, New: h.begun, Queued: len(h.queue)}
	for i, r := range h.replicas {
		l.Flows[i] = r.flows
		if r.moving > 0 {
			h.moved++
		}
	}
	l.Bytes = h.moved
	h.step(l)
}
