package simulate

import (
	"math"
	"slices"
	"time"

	"sluice/policy"
)

// Tick is what happened in one part of the simulated time. Times are seconds.
type Tick struct {
	Time    float64 `json:"time"` // at its end
	Phase   string  `json:"phase"`
	Flows   int     `json:"flows"`          // live, those that wait too
	New     float64 `json:"new_per_second"` // on average
	Desired int     `json:"desired"`
	Ready   int     `json:"ready"`
	Needed  int     `json:"needed"` // for these flows, by the targets alone
	Spare   int     `json:"spare"`  // ready beyond needed; less than 0: too few
	Held    int     `json:"held"`   // the most that waited at once
	Waited  int     `json:"waited"` // were answered now, and had to wait
	WaitP50 float64 `json:"wait_p50"`
	WaitMax float64 `json:"wait_max"`
}

// Summary is what happened in all of it. Times are seconds.
type Summary struct {
	Length       float64 `json:"length"`
	Flows        int     `json:"flows"`     // all that came
	Served       int     `json:"served"`    //
	Waiting      int     `json:"waiting"`   // at the end
	Reset        int     `json:"reset"`     // held, and the start had failed
	TimedOut     int     `json:"timed_out"` // never got into the queue
	Cut          int     `json:"cut"`       // by the drain deadline
	Waited       int     `json:"waited"`    // of those served
	WaitP50      float64 `json:"wait_p50"`
	WaitP99      float64 `json:"wait_p99"`
	WaitMax      float64 `json:"wait_max"`
	ColdStarts   int     `json:"cold_starts"`
	Asleep       float64 `json:"asleep"`        // share of the time in which nothing ran
	MeanReplicas float64 `json:"mean_replicas"` // running, starting and draining ones too
	ReplicaHours float64 `json:"replica_hours"`
	MostReplicas int     `json:"most_replicas"` // running at once
	MostNeeded   int     `json:"most_needed"`
	MeanSpare    float64 `json:"mean_spare"` // ready beyond needed, 0 where too few were
	Short        float64 `json:"short"`      // share of the time with fewer replicas than needed
}

// meter measures a run.
type meter struct {
	spec policy.Spec
	view policy.View
	runs int // containers whose program runs, or is being started or stopped
	live int // flows that a replica carries
	lost int // connections that no replica has served

	sum            Summary
	awake, running time.Duration // the latter times replicas

	samples, spare, short int // of each second
	before                int // flows that had come when the second began

	from  time.Duration // the tick's begin
	came  int
	held  int
	waits []time.Duration // of the tick
	all   []time.Duration // of the ticks before
}

// look takes what the policy shows after each step.
func (m *meter) look(v policy.View) {
	m.view, m.runs = v, 0
	for _, b := range v.Backends {
		if b.State != policy.Preparing && b.State != policy.Sleeping {
			m.runs++
		}
	}
	m.sum.MostReplicas = max(m.sum.MostReplicas, m.runs)
}

// pass lets time go by in which nothing changes.
func (m *meter) pass(d time.Duration) {
	if d == 0 {
		return
	}
	m.running += d * time.Duration(m.runs)
	if m.runs > 0 {
		m.awake += d
	}
	m.held = max(m.held, m.waiting())
}

func (m *meter) waiting() int { return m.sum.Flows - m.sum.Served - m.lost }

func (m *meter) arrived() {
	m.sum.Flows++
	m.came++
}

func (m *meter) served(wait time.Duration) {
	m.sum.Served++
	m.live++
	if wait > 0 {
		m.waits = append(m.waits, wait)
	}
}

// lose counts connections that end without having been served, and why.
func (m *meter) lose(why *int, n int) {
	*why += n
	m.lost += n
}

// cut counts flows that were ended with their replica.
func (m *meter) cut(n int) {
	m.sum.Cut += n
	m.live -= n
}

// sample looks at a second that has gone by.
func (m *meter) sample() {
	need := m.needed(m.live+m.waiting(), float64(m.sum.Flows-m.before)/time.Second.Seconds())
	m.before = m.sum.Flows
	m.samples++
	m.spare += max(m.view.Ready-need, 0)
	if m.view.Ready < need {
		m.short++
	}
	m.sum.MostNeeded = max(m.sum.MostNeeded, need)
}

// needed is what the targets ask for, without any window.
func (m *meter) needed(flows int, rate float64) int {
	c := m.spec
	need := 0.0
	if c.Flows > 0 {
		need = float64(flows) / (float64(c.Flows) * c.Utilization)
	}
	if c.Rate > 0 {
		need = max(need, rate/(c.Rate*c.Utilization))
	}
	if flows > 0 {
		need = max(need, 1)
	}
	return int(math.Ceil(need - 1e-9))
}

// tick ends a tick.
func (m *meter) tick(h *host) Tick {
	flows := m.live + m.waiting()
	t := Tick{
		Time: h.now.Seconds(), Phase: m.view.Phase.String(), Flows: flows,
		New:     float64(m.came) / (h.now - m.from).Seconds(),
		Desired: m.view.Desired, Ready: m.view.Ready, Held: m.held, Waited: len(m.waits),
	}
	t.Needed = m.needed(flows, t.New)
	t.Spare = t.Ready - t.Needed
	slices.Sort(m.waits)
	t.WaitP50, t.WaitMax = quantile(m.waits, 0.5), quantile(m.waits, 1)

	m.all = append(m.all, m.waits...)
	m.from, m.came, m.held, m.waits = h.now, 0, m.waiting(), m.waits[:0]
	return t
}

// summary ends the run.
func (m *meter) summary(h *host) Summary {
	s := m.sum
	slices.Sort(m.all)
	s.Length, s.Waiting, s.Waited = h.now.Seconds(), m.waiting(), len(m.all)
	s.WaitP50, s.WaitP99, s.WaitMax = quantile(m.all, 0.5), quantile(m.all, 0.99), quantile(m.all, 1)
	s.Asleep = 1 - float64(m.awake)/float64(h.now)
	s.MeanReplicas = float64(m.running) / float64(h.now)
	s.ReplicaHours = m.running.Hours()
	if m.samples > 0 {
		s.MeanSpare = float64(m.spare) / float64(m.samples)
		s.Short = float64(m.short) / float64(m.samples)
	}
	return s
}

// quantile of what is sorted, in seconds; 0 of nothing.
func quantile(d []time.Duration, q float64) float64 {
	if len(d) == 0 {
		return 0
	}
	return d[max(int(math.Ceil(q*float64(len(d))))-1, 0)].Seconds()
}
