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

// The states of a backend. Preparing becomes Sleeping, the others follow the
// order of their numbers; a ready backend whose checks fail is Probing again.
const (
	Preparing State = iota
	Sleeping
	Starting
	Probing
	Ready
	DrainingFlows
	Stopping
)

func (s State) String() string {
	return [...]string{"starting", "sleeping", "starting", "probing", "ready", "draining", "stopping"}[s]
}

// Phases lists all phases, for metrics that report each of them.
func Phases() []Phase { return []Phase{Cold, Waking, Warm, Draining, Failed} }

// States lists one state for each name a backend's state can have.
func States() []State {
	return []State{Sleeping, Starting, Probing, Ready, DrainingFlows, Stopping}
}
