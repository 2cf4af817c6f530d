package policy

// Phase is where a service stands.
type Phase uint8

// The phases. Draining means that the last backends are on their way out.
const (
	Cold Phase = iota
	Waking
	Warm
	Draining
	Failed
)

func (p Phase) String() string {
	return [...]string{"cold", "waking", "warm", "draining", "failed"}[p]
}

// State is where a backend stands.
type State uint8

// The states of a backend. Preparing and Pausing become Sleeping, Thawing
// becomes Ready, the others follow the order of their numbers; a ready backend
// whose checks fail is Probing again.
const (
	Preparing State = iota
	Sleeping
	Starting
	Probing
	Ready
	DrainingFlows
	Stopping
	Pausing
	Thawing
)

func (s State) String() string {
	return [...]string{"starting", "sleeping", "starting", "probing", "ready", "draining", "stopping", "sleeping", "starting"}[s]
}

// Phases lists all phases, for metrics that report each of them.
func Phases() []Phase { return []Phase{Cold, Waking, Warm, Draining, Failed} }

// States lists one state for each name a backend's state can have.
func States() []State {
	return []State{Sleeping, Starting, Probing, Ready, DrainingFlows, Stopping}
}

// Sleep is how a service without load sleeps.
type Sleep uint8

// The depths of sleep.
const (
	SleepStop     Sleep = iota // nothing is left
	SleepPrepared              // one replica is initialised
	SleepPause                 // frozen, memory kept; the kernel goes on accepting for it
)
