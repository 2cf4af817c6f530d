package control

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"sluice/nft"
)

// refusing is a table that refuses changes to one address.
type refusing struct {
	bad     nft.Endpoint
	most    int // so often; 0: always
	tries   int
	applied []map[nft.Endpoint]*nft.Service
}

var errRefused = errors.New("refused")

func (r *refusing) Apply(changes map[nft.Endpoint]*nft.Service) error {
	if _, ok := changes[r.bad]; ok && (r.most == 0 || r.tries < r.most) {
		r.tries++
		return errRefused
	}
	r.applied = append(r.applied, changes)
	return nil
}

func (r *refusing) Services() map[nft.Endpoint]nft.Service { return nil }
func (r *refusing) AddSources([]nft.Source) error          { return nil }
func (r *refusing) RemoveSources([]nft.Source) error       { return nil }
func (r *refusing) Asleep(map[nft.Endpoint]bool) error     { return nil }

func (r *refusing) AllLimited() (map[nft.Endpoint]uint64, error) { return nil, errRefused }

func at(port uint16) nft.Endpoint {
	return nft.Endpoint{Addr: netip.MustParseAddr("192.0.2.10"), Proto: 6, Port: port}
}

func to(name string, seq uint64, port uint16, removes bool) change {
	return change{service: name, seq: seq, removes: removes, endpoints: map[nft.Endpoint]*nft.Service{at(port): {}}}
}

// TestCommit: changes go together; if they are refused, those of one service
// hold up neither others nor, out of order, themselves.
func TestCommit(t *testing.T) {
	t.Parallel()
	table := &refusing{bad: at(2)}
	a := newApplier(table, zerolog.Nop())
	a.took = func(time.Duration) {}
	if done, refused, err := a.commit([]change{to("a", 1, 1, false), to("b", 1, 3, false)}); err != nil || len(done) != 2 || len(refused) != 0 || len(table.applied) != 1 {
		t.Errorf("good changes: %v, %v, %v", done, refused, err)
	}
	table.applied = nil
	done, refused, err := a.commit([]change{to("a", 2, 1, false), to("bad", 1, 2, false), to("bad", 2, 4, false), to("b", 2, 3, false)})
	if !errors.Is(err, errRefused) || len(done) != 2 || done[0].service != "a" || done[1].service != "b" {
		t.Errorf("done %v, %v", done, err)
	}
	if len(refused) != 2 || refused[0].seq != 1 || refused[1].seq != 2 {
		t.Errorf("refused %v", refused)
	}
}

// TestBarrier: what waits for all changes so far is told after them, and a
// service that is refused does not keep it waiting.
func TestBarrier(t *testing.T) {
	t.Parallel()
	table := &refusing{bad: at(2)}
	a := newApplier(table, zerolog.Nop())
	a.took = func(time.Duration) {}
	var order []string
	a.mapped = func(name string, _ uint64, _ time.Duration) { order = append(order, name) }
	barrier := change{done: func() { order = append(order, "all") }}
	done, refused, _ := a.commit([]change{to("leaves", 1, 1, true), to("", 1, 2, false), barrier, to("a", 1, 3, false)})
	if len(refused) != 1 || refused[0].done != nil {
		t.Fatalf("refused %v", refused)
	}
	a.acknowledge(done)
	if n := len(order); n != 4 || order[n-1] != "all" {
		t.Errorf("told in the order %q", order)
	}
}

// TestAcknowledge: no change of a service is reported before the fence if any
// of them takes a backend out.
func TestAcknowledge(t *testing.T) {
	t.Parallel()
	a := newApplier(&refusing{}, zerolog.Nop())
	var order []string
	a.mapped = func(name string, _ uint64, _ time.Duration) { order = append(order, name) }
	a.acknowledge([]change{to("leaves", 1, 1, true), to("leaves", 2, 1, false), to("joins", 1, 2, false)})
	if len(order) != 3 || order[0] != "joins" {
		t.Errorf("acknowledged in the order %v", order)
	}
}

// TestRetry: what the kernel refuses is tried until it does not, and told once.
func TestRetry(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	var text bytes.Buffer
	a := newApplier(&refusing{bad: at(2), most: 4}, zerolog.New(&text).Level(zerolog.InfoLevel))
	a.took = func(time.Duration) {}
	a.mapped = func(string, uint64, time.Duration) {}
	change := to("bad", 1, 2, false)
	change.done = cancel
	a.apply(change)
	a.run(ctx)
	if n := strings.Count(text.String(), "trying again"); n != 1 || !a.idle() {
		t.Errorf("told %d times, all done: %v: %s", n, a.idle(), text.String())
	}
}

// TestCommitMoved: a change that is refused does not take an address back, when it
// is tried again, that another service has been given meanwhile.
func TestCommitMoved(t *testing.T) {
	t.Parallel()
	table := &refusing{bad: at(2)}
	a := newApplier(table, zerolog.Nop())
	a.took = func(time.Duration) {}
	old := change{service: "old", seq: 1, endpoints: map[nft.Endpoint]*nft.Service{at(1): {}, at(2): {}}}
	done, refused, err := a.commit([]change{old, to("new", 1, 1, false)})
	if !errors.Is(err, errRefused) || len(done) != 1 || len(refused) != 1 {
		t.Fatalf("done %v, refused %v, %v", done, refused, err)
	}
	if _, ok := refused[0].endpoints[at(1)]; ok || len(refused[0].endpoints) != 1 {
		t.Errorf("to be tried again: %v", refused[0].endpoints)
	}
}
