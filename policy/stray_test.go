package policy

import (
	"errors"
	"reflect"
	"testing"
	"time"
)

// TestStray: what is said of a backend that there is none of, or that nobody
// has asked about, changes nothing.
func TestStray(t *testing.T) {
	t.Parallel()
	boom := errors.New("boom")
	w := warm(t, testSpec())
	for _, i := range []int{1, 9, FirstMember} {
		for _, ev := range []Event{
			Prepared{Index: i}, Prepared{i, boom}, Started{Index: i}, Started{i, boom, true}, Paused{Index: i}, Paused{i, boom},
			Thawed{Index: i}, Thawed{i, boom}, Alarm{i}, Doubt{i}, Stopped{Index: i}, Stopped{i, boom}, Counted{Index: i, Known: true},
			Counted{Index: i, Seq: 1, Known: true}, Quiet{i}, Health{Index: i, Healthy: true}, Mapped{1}, Mapped{99}, Tick{},
		} {
			before := w.s.View()
			if did := w.s.Step(w.now, ev); len(did) > 0 {
				t.Errorf("%T%+v leads to %+v", ev, ev, did)
			}
			if after := w.s.View(); !reflect.DeepEqual(before, after) {
				t.Errorf("%T%+v: %+v, was %+v", ev, ev, after, before)
			}
		}
	}
	for _, ev := range []Event{Died{9, "x"}, Health{Index: 9}, Drain{9}} {
		if did := w.s.Step(w.now, ev); len(did) > 0 {
			t.Errorf("%T%+v leads to %+v", ev, ev, did)
		}
	}
}

// TestAdopt: what becomes of what an earlier run left.
func TestAdopt(t *testing.T) {
	t.Parallel()
	past := time.Unix(1e9-100, 0)
	for _, tt := range []struct {
		name string
		left Replica
		want State
	}{
		{"serves", Replica{Index: 1, Hash: "a", Running: true, Mapped: true, Started: past}, Ready},
		{"runs", Replica{Index: 1, Hash: "a", Running: true, Started: past}, Probing},
		{"prepared", Replica{Index: 1, Hash: "a", Prepared: true}, Sleeping},
		{"prepared, but the map names it", Replica{Index: 1, Hash: "a", Prepared: true, Mapped: true}, DrainingFlows},
		{"prepared from another configuration", Replica{Index: 1, Hash: "old", Prepared: true}, DrainingFlows},
		{"paused", Replica{Index: 1, Hash: "a", Paused: true, Mapped: true}, Sleeping},
		{"paused, but not in the map", Replica{Index: 1, Hash: "a", Paused: true}, DrainingFlows},
		{"ended", Replica{Index: 1, Hash: "a", Mapped: true}, DrainingFlows},
	} {
		s := New(testSpec())
		s.now = time.Unix(1e9, 0)
		s.adopt([]Replica{tt.left})
		if got := s.backends[0].state; got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
		if b := s.backends[0]; tt.want == Ready && !b.readyAt.Equal(past) {
			t.Errorf("%s: ready since %v", tt.name, b.readyAt)
		}
	}
}

// TestViewWeight: a share is shown once the kernel has it.
func TestViewWeight(t *testing.T) {
	t.Parallel()
	w := newWorld(t, testSpec())
	w.ack()
	w.accept()
	w.finish(1, nil, false)
	w.health(1, true)
	if v := w.s.View(); v.Backends[0].Weight != 0 || v.Phase != Waking || v.Held != 1 || w.s.Phase() != Waking {
		t.Errorf("before the kernel has it: %+v", v)
	}
	w.ack()
	if v := w.s.View(); v.Backends[0].Weight != ReplicaWeight || v.Phase != Warm || v.Held != 0 || w.s.Phase() != Warm {
		t.Errorf("once the kernel has it: %+v", v)
	}
}

// TestWords: each phase and state has the word that status and metrics show.
func TestWords(t *testing.T) {
	t.Parallel()
	var got []string
	for _, p := range Phases() {
		got = append(got, p.String())
	}
	for _, s := range States() {
		got = append(got, s.String())
	}
	want := []string{"cold", "waking", "warm", "draining", "failed", "sleeping", "starting", "probing", "ready", "draining", "stopping"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%q", got)
	}
	for s, want := range map[State]string{Preparing: "starting", Pausing: "sleeping", Thawing: "starting"} {
		if s.String() != want {
			t.Errorf("%d is %s, want %s", s, s, want)
		}
	}
}
