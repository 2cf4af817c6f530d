package policy

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

func testSpec() Spec {
	return Spec{
		Scaling: Scaling{Min: 0, Max: 3, Flows: 10, Utilization: 1, Stable: 20 * time.Second, Panic: 4 * time.Second},
		Hash:    "a", Idle: 10 * time.Second, StartTimeout: 30 * time.Second, DrainTimeout: 60 * time.Second,
	}
}

// drive lets the bytes choose what happens next, then gives the service a
// friendly world and demands that it answers everybody and goes to rest.
func drive(t testing.TB, data []byte) {
	spec := testSpec()
	var adopt []Replica
	pop := func() int {
		if len(data) == 0 {
			return 0
		}
		b := data[0]
		data = data[1:]
		return int(b)
	}
	c := pop()
	if c&1 != 0 {
		spec.Sleep = SleepPrepared
	}
	spec.Min = c >> 1 & 1
	if c>>2&1 != 0 {
		spec.DrainTimeout = 0
	}
	for i := 1; i <= c>>3&3; i++ {
		r := Replica{Index: i, Hash: "a"}
		k := pop()
		switch k & 3 {
		case 0:
			r.Running, r.Mapped = true, true
		case 1:
			r.Running = true
		case 2:
			r.Prepared = true
		case 3:
			r.Paused, r.Mapped = k&8 != 0, k&16 != 0
		}
		if k&4 != 0 {
			r.Hash = "old"
		}
		adopt = append(adopt, r)
	}
	members := c>>5&1 != 0
	if members && c>>6&1 != 0 {
		spec.Max, spec.Min, spec.Sleep = 0, 0, SleepStop
		adopt = nil
	}
	spec.Priority = c >> 7
	e := pop()
	if e&2 != 0 && spec.Max > 0 {
		spec.Sleep = SleepPause
	}
	if e&4 != 0 {
		spec.StopAfter = 30 * time.Second
	}
	spec.IdleBytes = e&8 != 0
	spec.Level = e&16 != 0
	if e&32 != 0 {
		spec.Rate = 5
	}
	if e&64 != 0 {
		spec.Flows = 0
	}
	if e&1 != 0 {
		spec.SlowStart = 20 * time.Second
	}
	if g := pop(); g&1 != 0 && spec.Max > 0 {
		spec.Canary = Canary{"canary", []int{10, 50, 100, 50}[g>>1&3]}
		if g>>1&3 == 3 {
			spec.Max = 1
		}
		for i := range adopt {
			if i&1 != 0 {
				adopt[i].Hash = "canary"
			}
		}
	}
	atMost := max(spec.Max+1, len(adopt))
	if spec.Canary.Hash != "" {
		atMost = max(atMost, 3)
	}
	w := newWorld(t, spec, adopt...)
	boom := errors.New("boom")
	for len(data) > 0 {
		op, arg := pop(), pop()
		i := arg%(spec.Max+1) + 1
		if members && arg&0x30 == 0x30 {
			i = FirstMember + arg&1
		}
		switch op % 24 {
		case 0, 1:
			if w.mode != AcceptOff {
				w.accept()
			}
		case 2, 3:
			w.ack()
		case 4, 5:
			if k := arg >> 3 & 3; arg&4 != 0 {
				w.look(k)
			} else {
				w.count(k, arg&3 != 0)
			}
		case 6, 7, 8:
			w.finish(i, nil, false)
		case 9:
			w.finish(i, boom, arg&64 != 0)
		case 10, 11:
			if w.up[i] && w.probed[i] {
				w.health(i, true)
			}
		case 12:
			if w.up[i] && w.probed[i] {
				w.health(i, false)
			}
		case 22:
			if arg&64 != 0 {
				w.step(Doubt{i})
			} else {
				w.step(Alarm{i})
			}
		case 23:
			if arg < 16 {
				spec.Sleep = Sleep(arg % 3)
				w.step(Configure{spec})
			}
			if c := &spec.Canary; arg >= 16 && c.Hash != "" && spec.Max > 0 {
				switch arg & 7 {
				case 0, 1: // promoted, and another one
					spec.Hash, c.Hash = c.Hash, c.Hash+"x"
				case 2: // aborted
					c.Percent = 0
				case 3:
					c.Hash += "y"
				default:
					c.Percent = []int{1, 30, 99, 100}[arg>>3&3]
				}
				w.step(Configure{spec})
			}
		case 20:
			if members {
				w.list(arg)
			}
		case 21:
			if arg < 8 {
				spec.Hash = string(rune('a' + arg&1))
				w.step(Configure{spec})
			}
		case 13:
			if i >= FirstMember {
				break
			}
			if c := w.call[i]; (w.up[i] || w.inited[i]) && !w.dead[i] && (c == "" || c == "pause" || c == "thaw") {
				w.die(i)
			}
		case 14:
			w.now = w.now.Add(time.Duration(arg) * 100 * time.Millisecond)
			w.tick()
		case 15:
			w.moved += uint64(arg >> 3 & 1)
			w.report(arg%8 != 0, arg>>6)
		case 16:
			w.flows[i] = 0
			for _, k := range w.kernel {
				if k == i {
					w.flows[i] = arg >> 2
					w.begun += uint64(arg >> 2)
				}
			}
			w.load()
		case 17:
			w.flows[i] = 0
			w.step(Quiet{i})
		case 18:
			switch arg & 3 {
			case 0:
				w.step(Wake{})
			case 1:
				w.step(Scale{arg >> 4 & 3})
			case 2:
				w.step(Drain{0})
			case 3:
				w.step(Drain{i})
			}
		case 19:
			w.now = w.now.Add(time.Millisecond)
			w.load()
		}
		if up := w.s.replicas(); up > atMost {
			w.failf("%d replicas, at most %d allowed", up, atMost)
		}
	}
	// From here on the world is friendly.
	if members {
		w.list(0xff)
		w.step(Wake{}) // those drained by order come back
	}
	for i := range w.flows {
		w.flows[i] = 0
	}
	w.calm()
	w.pass(10 * time.Minute)
	if len(w.conns) > 0 {
		w.failf("connections left unanswered: %v", w.conns)
	}
	v := w.s.View()
	if members {
		if v.Phase != Warm {
			w.failf("at rest with healthy members in phase %s: %+v", v.Phase, v)
		}
		served := w.served
		w.accept()
		w.calm()
		if w.served != served+1 {
			w.failf("members do not serve: %+v", w.s.View())
		}
		return
	}
	want, percent := spec.Min, 0
	if p := spec.Canary.Percent; p > 0 && p < 100 {
		if want > 0 {
			want, percent = want+1, p
		} else if w.mixed() { // paused with flows, or found so, they keep their part
			percent = p
		}
	}
	if v.Ready != want || w.percent != percent {
		w.failf("at rest with %d ready replicas, %d %% of the flows to the canary, want %d and %d %%: %+v", v.Ready, w.percent, want, percent, v)
	}
	if spec.Min == 0 && v.Phase != Cold {
		w.failf("at rest in phase %s", v.Phase)
	}
	if spec.Min == 0 && spec.Sleep == SleepPrepared && spec.StopAfter == 0 && (len(v.Backends) != 1 || v.Backends[0].State != Sleeping) {
		w.failf("at rest without a prepared replica: %+v", v)
	}
	if spec.Min == 0 && spec.StopAfter > 0 && len(v.Backends) > 0 {
		w.failf("at rest long after stop_after: %+v", v)
	}
	// And it still wakes; what is paused by an alarm.
	if len(w.kernel) > 0 && spec.Min == 0 {
		w.step(Alarm{w.kernel[len(w.kernel)-1]})
		w.calm()
		if v := w.s.View(); v.Phase != Warm {
			w.failf("an alarm does not wake: %+v", v)
		}
	}
	served := w.served
	w.accept()
	w.calm()
	if w.served != served+1 {
		w.failf("does not wake again: %+v", w.s.View())
	}
}

func FuzzStep(f *testing.F) {
	for i := range 16 {
		r := rand.New(rand.NewPCG(uint64(i), 1))
		b := make([]byte, 200)
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		drive(t, data)
	})
}

// TestRandom runs many random orders, half of them others each time; a failure
// prints its seed and history.
func TestRandom(t *testing.T) {
	for _, seed := range []uint64{1, uint64(time.Now().UnixNano())} {
		t.Logf("seed %d", seed)
		r := rand.New(rand.NewPCG(seed, 7))
		for range 700 {
			b := make([]byte, 1+r.IntN(600))
			for j := range b {
				b[j] = byte(r.Uint32())
			}
			drive(t, b)
		}
	}
}
