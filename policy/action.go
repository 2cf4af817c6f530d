package policy

import "time"

// An Action is something that the owner of a [Service] has to do. Each but
// [Accept], [Serve], [Reset], [Unprobe] and [Note] is answered by an event.
type Action interface{ action() }

// AcceptMode says what the listener of a service may take from the kernel.
// The numbers agree with those of the accept loop.
type AcceptMode uint8

// The accept modes.
const (
	AcceptOff AcceptMode = iota // leave connections in the kernel's queue
	AcceptOne                   // take exactly one
	AcceptAll                   // take each as it comes
)

type (
	// Accept sets the accept mode.
	Accept struct{ Mode AcceptMode }

	// Prepare creates and initialises a replica: [Prepared].
	Prepare struct{ Index int }

	// Start starts a replica, made anew unless it was prepared: [Started].
	// Canary says what it is made from.
	Start struct {
		Index  int
		Canary bool
	}

	// Pause freezes a replica and begins to listen for an [Alarm]: [Paused].
	Pause struct{ Index int }

	// Thaw unfreezes a replica: [Thawed].
	Thaw struct{ Index int }

	// Probe begins health checks: [Health]. Assume says that the backend
	// is taken to be healthy until a check fails.
	Probe struct {
		Index  int
		Assume bool
	}

	// Unprobe ends health checks.
	Unprobe struct{ Index int }

	// Map puts exactly these backends into the service's slots: [Mapped].
	// Percent of the slots are the canary's, where shares are marked so.
	Map struct {
		Seq     uint64
		Shares  []Share
		Percent int
	}

	// Count counts the live flows of a backend by a dump that is begun from
	// now on: [Counted] with the same number.
	Count struct {
		Index int
		Seq   uint64
	}

	// Stop ends a replica and removes all that is left of it; of a member
	// only what the kernel still tracks: [Stopped]. Cut is the number of flows that are ended with it.
	Stop struct {
		Index int
		Cut   int
	}

	// Serve gives a held connection to a backend.
	Serve struct {
		Conn  uint64
		Index int
	}

	// Reset ends a held connection.
	Reset struct {
		Conn uint64
		Err  error
	}

	// Note is something that a person wants to know.
	Note struct {
		Kind  Kind
		Index int // 0: the service as a whole
		Err   error
		N     int           // replicas or flows, by Kind
		For   time.Duration // by Kind
	}
)

// A Share is one backend's part of new flows, by weight among those of its side.
type Share struct {
	Index, Weight int
	Canary        bool
}

// Kind is what a [Note] tells.
type Kind string

// The kinds of notes, as they appear in logs, events and metrics.
const (
	NoteWaking    Kind = "waking"       // N replicas wanted
	NoteWarm      Kind = "warm"         // first backend in the map, For after the wake
	NoteFailed    Kind = "failed"       // For: no new attempt before
	NoteAsleep    Kind = "asleep"       // no replica carries flows any more
	NoteReady     Kind = "ready"        // For after its start
	NoteHealthy   Kind = "healthy"      // again
	NoteUnhealthy Kind = "unhealthy"    // Err: what the check saw
	NoteDied      Kind = "died"         // Err: how
	NoteRetry     Kind = "start-failed" // For: until the next attempt
	NoteScale     Kind = "scale"        // to N
	NoteDrain     Kind = "drain"        // of Index, N flows
	NoteUndrain   Kind = "drain-cancel" // of Index
	NoteDrained   Kind = "drained"      // For: how long it took, N flows cut
	NotePaused    Kind = "paused"       // frozen, N flows open
	NoteOutdated  Kind = "outdated"     // made from another configuration
	NoteRefused   Kind = "refused"      // a connection while failed
	NoteStopFail  Kind = "stop-failed"  // Err: why
)

func (Accept) action()  {}
func (Prepare) action() {}
func (Start) action()   {}
func (Pause) action()   {}
func (Thaw) action()    {}
func (Probe) action()   {}
func (Unprobe) action() {}
func (Map) action()     {}
func (Count) action()   {}
func (Stop) action()    {}
func (Serve) action()   {}
func (Reset) action()   {}
func (Note) action()    {}
