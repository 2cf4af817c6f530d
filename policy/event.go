package policy

import "time"

// An Event tells a [Service] what has happened.
type Event interface{ event() }

type (
	// Adopt is the first event of a service: what an earlier run left.
	Adopt struct{ Replicas []Replica }

	// Configure changes the rules from now on. Replicas made from another
	// configuration are replaced, the new ones first.
	Configure struct{ Spec Spec }

	// Members are all the backends that sluice does not start. One that is
	// missing from the list drains.
	Members struct{ Members []Member }

	// Accepted reports a connection that the daemon has accepted and now
	// holds. Queued counts the connections that the kernel still queues.
	Accepted struct {
		Conn   uint64
		Queued int
	}

	// Prepared answers [Prepare].
	Prepared struct {
		Index int
		Err   error
	}

	// Started answers [Start]. Permanent says that to try again soon is
	// useless, as with an image that cannot be had.
	Started struct {
		Index     int
		Err       error
		Permanent bool
	}

	// Paused answers [Pause].
	Paused struct {
		Index int
		Err   error
	}

	// Thawed answers [Thaw].
	Thawed struct {
		Index int
		Err   error
	}

	// Alarm reports that something was sent to a backend that is paused, or
	// about to be: a new flow, or data on one that was left open.
	Alarm struct{ Index int }

	// Doubt reports that an [Alarm] may have been missed.
	Doubt struct{ Index int }

	// Stopped answers [Stop]: nothing of the replica is left, or Err says
	// why it could not be removed; [Stop] is then asked for again.
	Stopped struct {
		Index int
		Err   error
	}

	// Health reports a change of a backend's health. Err says what the
	// check saw; it may come with Healthy false before the first success,
	// to say why a start takes its time.
	Health struct {
		Index   int
		Healthy bool
		Err     error
	}

	// Died reports that a replica has ended without a [Stop], or that
	// someone else has removed it.
	Died struct {
		Index  int
		Detail string
	}

	// Mapped reports that the kernel has acknowledged the [Map] with this
	// sequence number and all before it, and that no packet is still on
	// its way by an older one.
	Mapped struct{ Seq uint64 }

	// Counted answers [Count].
	Counted struct {
		Index int
		Seq   uint64
		Flows int
		Known bool

		// Of these, those that wake nobody: connections whose handshake is not
		// complete, and clients that may not.
		Barred int
	}

	// Quiet hints that a backend may have no flow any more.
	Quiet struct{ Index int }

	// Load is what the service carries now. Known false means that nobody
	// can tell, which counts as busy.
	Load struct {
		Known  bool
		Flows  map[int]int // live flows per backend, relayed ones too
		New    uint64      // flows seen since the daemon started
		Bytes  uint64      // moved by all flows since the daemon started
		Queued int         // completed connections in the accept queue
	}

	// Tick says that [Service.Deadline] has passed.
	Tick struct{}

	// Wake asks for at least one replica now.
	Wake struct{}

	// Scale asks for N replicas now. The scaler goes on from there after
	// the stable window.
	Scale struct{ N int }

	// Drain asks to drain one backend, or with Index 0 all of them. It is
	// not an order to stay asleep: the next connection wakes the service.
	Drain struct{ Index int }
)

// A Member is a backend that sluice does not start. Its index is none that a
// replica can have: [FirstMember] or more.
type Member struct {
	Index    int
	Weight   int // 0: no new flows
	Priority int // lower first
}

// FirstMember is the lowest index of a member.
const FirstMember = 1 << 16

// A Replica is what [Adopt] tells of a container of an earlier run.
type Replica struct {
	Index    int
	Running  bool   // its program runs
	Prepared bool   // initialised, not started
	Paused   bool   // frozen
	Mapped   bool   // the kernel's map sends it flows
	Hash     string // what it was made from
	Started  time.Time
}

func (Adopt) event()     {}
func (Configure) event() {}
func (Members) event()   {}
func (Accepted) event()  {}
func (Prepared) event()  {}
func (Started) event()   {}
func (Stopped) event()   {}
func (Paused) event()    {}
func (Thawed) event()    {}
func (Doubt) event()     {}
func (Alarm) event()     {}
func (Health) event()    {}
func (Died) event()      {}
func (Mapped) event()    {}
func (Counted) event()   {}
func (Quiet) event()     {}
func (Load) event()      {}
func (Tick) event()      {}
func (Wake) event()      {}
func (Scale) event()     {}
func (Drain) event()     {}
