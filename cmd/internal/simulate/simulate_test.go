package simulate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"sluice/policy"
)

// params are those of a service with the defaults of the configuration.
func params(length, tick time.Duration) Params {
	return Params{
		Spec: policy.Spec{
			Scaling: policy.Scaling{Max: 4, Flows: 100, Utilization: 1, Stable: time.Minute, Panic: 6 * time.Second},
			Idle:    time.Minute, StartTimeout: 30 * time.Second, DrainTimeout: time.Minute,
		},
		Backlog: 1024, Start: DefaultStart, Prepared: DefaultPrepared, Thaw: DefaultThaw, Stop: DefaultStop,
		Length: length, Tick: tick,
	}
}

func shape(t testing.TB, name string, rate float64, last, length time.Duration) *Curve {
	t.Helper()
	c, err := Shape(name, rate, last, length)
	if err != nil {
		t.Fatal(err)
	}
	c.Seed = 1
	return c
}

// table is all that is printed.
func table(t testing.TB, p Params, src Source) string {
	t.Helper()
	var b bytes.Buffer
	if err := Header(&b); err != nil {
		t.Fatal(err)
	}
	sum, err := Run(context.Background(), p, src, func(tick Tick) error { return tick.Print(&b) })
	if err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	if err := sum.Print(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestGolden: what is printed for a few loads. Where the policy decides
// otherwise than before, this shows how; GOLDEN=write in the environment takes
// it over.
func TestGolden(t *testing.T) {
	t.Parallel()
	spike := params(10*time.Minute, 20*time.Second)
	pause := params(10*time.Minute, 30*time.Second)
	pause.Spec.Sleep, pause.Spec.StopAfter = policy.SleepPause, 2*time.Minute
	prepared := params(5*time.Minute, 15*time.Second)
	prepared.Spec.Sleep, prepared.Boot = policy.SleepPrepared, 2*time.Second
	late := params(2*time.Minute, 10*time.Second)
	late.Boot, late.Backlog = 40*time.Second, 4
	recorded := params(3*time.Minute, 10*time.Second)
	b, err := os.Open("testdata/conntrack.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	flows, _, err := Read("conntrack.txt", b)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		p    Params
		src  Source
	}{
		{"spike", spike, shape(t, "spike", 60, 5*time.Second, spike.Length).Source()},
		{"poisson-pause", pause, shape(t, "poisson", 0.01, time.Second, pause.Length).Source()},
		{"sine-prepared", prepared, shape(t, "sine", 5, 3*time.Second, prepared.Length).Source()},
		{"never-ready", late, shape(t, "constant", 1, time.Second, late.Length).Source()},
		{"conntrack", recorded, flows},
	} {
		got := table(t, tt.p, tt.src)
		name := filepath.Join("testdata", tt.name+".golden")
		if os.Getenv("GOLDEN") == "write" {
			if err := os.WriteFile(name, []byte(got), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil || got != string(want) {
			t.Errorf("%s: %v: got\n%s", name, err, got)
		}
	}
}

// TestProperties: over random services and loads no connection is lost sight
// of, replicas stay within their bounds, and all is quiet again in the end.
func TestProperties(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for n := range 10 {
		const busy = 3 * time.Minute
		p := params(busy+10*time.Minute, time.Duration(1+r.IntN(40))*time.Second)
		p.Spec.Min = r.IntN(2)
		p.Spec.Max = 1 + r.IntN(5)
		p.Spec.Flows = 1 + r.IntN(50)
		p.Spec.Rate = float64(r.IntN(2) * (1 + r.IntN(20)))
		p.Spec.Stable = time.Duration(5+r.IntN(60)) * time.Second
		p.Spec.Sleep = policy.Sleep(r.IntN(3))
		p.Spec.StopAfter = time.Duration(r.IntN(2)) * time.Minute
		p.Spec.IdleBytes, p.Spec.Level = r.IntN(4) == 0, r.IntN(3) == 0
		p.Spec.SlowStart = time.Duration(r.IntN(2)) * 20 * time.Second
		p.Spec.Idle = time.Duration(1+r.IntN(60)) * time.Second
		p.Boot = time.Duration(r.IntN(3000)) * time.Millisecond
		p.Backlog, p.Chance, p.Seed = 1+r.IntN(20), r.IntN(2) == 0, r.Uint64()
		curve := shape(t, Shapes()[r.IntN(5)], 0.05+10*r.Float64(), time.Duration(r.IntN(20000))*time.Millisecond, busy)
		curve.Random, curve.Seed = r.IntN(2) == 0, r.Uint64()

		came := 0
		for src := curve.Source(); ; came++ {
			if _, ok := src.Next(); !ok {
				break
			}
		}
		h := newHost(p, curve.Source())
		h.watch = func(time.Time, policy.Event, []policy.Action) {
			m := &h.meter
			if m.runs > p.Spec.Max+1 {
				t.Fatalf("%d replicas run, at most %d may: %+v", m.runs, p.Spec.Max+1, p)
			}
			if m.waiting() < 0 || m.live < 0 {
				t.Fatalf("%d wait, %d are live: %+v", m.waiting(), m.live, p)
			}
		}
		var ticks []Tick
		sum, err := run(context.Background(), h, func(tick Tick) error {
			carried, frozen := 0, 0
			for _, r := range h.replicas {
				carried += r.flows
				frozen += len(r.waiting)
			}
			if carried-frozen != h.meter.live {
				t.Fatalf("replicas carry %d flows, %d of them wait, counted are %d: %+v", carried, frozen, h.meter.live, p)
			}
			if tick.Desired < p.Spec.Min || tick.Desired > p.Spec.Max || tick.Ready > p.Spec.Max+1 || tick.Held < 0 || tick.WaitP50 > tick.WaitMax {
				t.Fatalf("%+v: %+v", tick, p)
			}
			ticks = append(ticks, tick)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if sum.Flows != came || sum.Served != came || sum.Waiting+sum.Reset+sum.TimedOut != 0 {
			if sum.TimedOut == 0 || sum.Served+sum.TimedOut != came {
				t.Fatalf("run %d: %d flows came: %+v: %+v", n, came, sum, p)
			}
		}
		if len(h.queue)+len(h.held) > 0 {
			t.Fatalf("%d queued and %d held at the end: %+v", len(h.queue), len(h.held), p)
		}
		last := ticks[len(ticks)-1]
		if last.Ready != p.Spec.Min || last.Flows != 0 || last.Time != p.Length.Seconds() {
			t.Fatalf("at rest %+v: %+v", last, p)
		}
		again := 0
		other, err := Run(context.Background(), p, curve.Source(), func(tick Tick) error {
			if tick != ticks[again] {
				return fmt.Errorf("%+v, was %+v", tick, ticks[again])
			}
			again++
			return nil
		})
		if err != nil || other != sum {
			t.Fatalf("not repeatable: %v: %+v, was %+v", err, other, sum)
		}
	}
}

// TestSameDecisions: the events of a run, given to a service of the policy on
// its own, lead to the same actions: nothing of the simulation has a part in
// them. And each of them is one that the daemon gives too.
func TestSameDecisions(t *testing.T) {
	t.Parallel()
	p := params(10*time.Minute, time.Minute)
	p.Spec.Sleep = policy.SleepPrepared
	h := newHost(p, shape(t, "spike", 80, 4*time.Second, p.Length).Source())
	alone := policy.New(p.Spec)
	kinds := map[string]int{}
	h.watch = func(now time.Time, ev policy.Event, did []policy.Action) {
		kinds[fmt.Sprintf("%T", ev)]++
		if want := alone.Step(now, ev); len(want)+len(did) > 0 && !reflect.DeepEqual(did, append([]policy.Action{}, want...)) {
			t.Fatalf("%v %T%+v: did %v, the policy says %v", now, ev, ev, did, want)
		}
	}
	if _, err := run(context.Background(), h, func(Tick) error { return nil }); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"Adopt", "Accepted", "Started", "Health", "Mapped", "Load", "Tick", "Counted", "Stopped"} {
		if kinds["policy."+k] == 0 {
			t.Errorf("no %s in %v", k, kinds)
		}
	}
}

// TestStops: a run ends with its context, and with an error of who reads it.
func TestStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(context.Background())
	p := params(24*time.Hour, time.Second)
	_, err := Run(ctx, p, shape(t, "constant", 100, time.Second, p.Length).Source(), func(Tick) error {
		cancel()
		return nil
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	_, err = Run(context.Background(), p, new(Recorded), func(Tick) error { return errors.New("full") })
	if err == nil || err.Error() != "print tick: full" {
		t.Errorf("got %v", err)
	}
}

// TestSerialStarts: as measured, 2, 4, 8 and 16 starts at once take 100, 180,
// 296 and 598 ms.
func TestSerialStarts(t *testing.T) {
	t.Parallel()
	for n, want := range map[int]time.Duration{1: 71, 2: 108, 4: 182, 8: 330, 16: 626} {
		h := newHost(params(time.Second, time.Second), new(Recorded))
		var took time.Duration
		for range n {
			took = h.serially(DefaultStart)
		}
		if took != want*time.Millisecond {
			t.Errorf("%d starts take %s, want %d ms", n, took, want)
		}
	}
}

// TestShapes: a curve gives as many flows as the area below it, by chance or
// not, and refuses what is no load.
func TestShapes(t *testing.T) {
	t.Parallel()
	const length, rate = 10 * time.Minute, 20.0
	for name, want := range map[string]float64{"constant": 1, "ramp": 0.5, "spike": 0.19, "sine": 0.5, "poisson": 1} {
		for _, random := range []bool{false, true} {
			c := shape(t, name, rate, time.Second, length)
			c.Random = c.Random || random
			n, sum, last := 0.0, time.Duration(0), time.Duration(0)
			src := c.Source()
			for f, ok := src.Next(); ok; f, ok = src.Next() {
				n++
				sum += f.Last
				if f.Start < last || f.Start > length {
					t.Fatalf("%s: flow at %s after %s", name, f.Start, last)
				}
				last = f.Start
			}
			area, off := want*rate*length.Seconds(), 2.0
			if c.Random {
				off = 0.1 * area
			}
			if n < area-off || n > area+off {
				t.Errorf("%s: %.0f flows, want %.0f", name, n, area)
			}
			if mean := sum.Seconds() / n; mean < 0.9 || mean > 1.1 {
				t.Errorf("%s: they last %.2f s on average, want 1", name, mean)
			}
		}
	}
	for _, tt := range []struct {
		name         string
		rate         float64
		last, length time.Duration
		want         string
	}{
		{"square", 1, 0, length, `no shape "square": one of constant`},
		{"sine", 0, 0, length, "rate 0: want more than 0"},
		{"sine", 1e7, 0, length, "rate 1e+07: want"},
		{"sine", 1, -1, length, "duration -1ns: want"},
		{"sine", 1, 0, 0, "length 0s: want"},
	} {
		if _, err := Shape(tt.name, tt.rate, tt.last, tt.length); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt, err)
		}
	}
}
