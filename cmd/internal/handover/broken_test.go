package handover

import (
	"context"
	"errors"
	"testing"
	"time"

	"sluice/conntrack"
	"sluice/nft"
)

var errBroken = errors.New("broken")

// broken fails what it is told to fail, as many times.
type broken struct {
	Freezer
	Tracker
	freeze, track, create, thaw int
}

func (b *broken) Freeze(ts []nft.Tuple, d time.Duration) error {
	if b.freeze--; b.freeze >= 0 {
		return errBroken
	}
	return b.Freezer.Freeze(ts, d)
}

func (b *broken) Unfreeze(ts []nft.Tuple) error {
	if b.thaw--; b.thaw >= 0 {
		return errBroken
	}
	return b.Freezer.Unfreeze(ts)
}

func (b *broken) Do(batch *conntrack.Batch) ([]error, error) {
	if b.track--; b.track >= 0 {
		return nil, errBroken
	}
	errs, err := b.Tracker.Do(batch)
	if b.create--; b.create >= 0 && err == nil {
		errs[1] = errBroken
	}
	return errs, err
}

// What fails on this host before the commit leads to the relay, with nothing lost.
func TestBroken(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		broken
		want Reason
	}{
		{"freeze", broken{freeze: 1}, Unable},
		{"track", broken{track: 1}, Unable},
		{"create", broken{create: 1}, Unable},
		{"thaw", broken{thaw: 1}, Done},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.serve(t, greet)
			h := l.hold(t, service4)
			c := dial(t, l.Client, service4)
			before := text(5000, 1)
			if _, err := c.Write(before); err != nil {
				t.Fatal(err)
			}
			held := h.accept()
			waitBytes(t, held, len(before))
			l.warm(t, service4)
			b := tt.broken
			b.Freezer, b.Tracker = brief{l.table}, l.tracker
			r := l.handover(l.open(t, &b, &b), held)[0]
			if r.Reason != tt.want || !errors.Is(r.Err, errBroken) {
				t.Errorf("result %+v", r)
			}
			who := c.LocalAddr()
			if r.Reason.Relay() {
				who = l.relay(t, held)
			}
			if err := finish(c, who, before, text(100000, 2)); err != nil {
				t.Error(err)
			}
		})
	}
}

// An attempt that is cancelled leaves the connection to the relay.
func TestCancel(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	l.serve(t, greet)
	h := l.hold(t, service4)
	c := dial(t, l.Client, service4)
	held := h.accept()
	l.warm(t, service4)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r := l.handoverCtx(ctx, l.porter, held)[0]
	if r.Reason != Timeout || !errors.Is(r.Err, context.Canceled) {
		t.Fatalf("result %+v", r)
	}
	l.thawed(t)
	if err := finish(c, l.relay(t, held), nil, text(1000, 1)); err != nil {
		t.Error(err)
	}
}
