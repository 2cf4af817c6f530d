package control

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"sluice/nft"
)

// change is what one service wants of the table.
type change struct {
	service   string
	seq       uint64
	endpoints map[nft.Endpoint]*nft.Service // nil value: remove
	removes   bool                          // a backend leaves: fence it
	done      func()                        // called when the kernel has all before it that it takes; may be nil
	at        time.Time
}

// applier commits changes one transaction after the other. Changes that come
// while a transaction runs go into the next one together.
type applier struct {
	table  Table
	log    zerolog.Logger
	mapped func(service string, seq uint64, took time.Duration)
	took   func(time.Duration)

	gate sync.Mutex // held: no transaction

	mu      sync.Mutex
	busy    bool // with changes that are not pending any more
	pending []change
	signal  chan struct{}
}

func newApplier(t Table, log zerolog.Logger) *applier {
	return &applier{table: t, log: log, signal: make(chan struct{}, 1)}
}

func (a *applier) apply(c change) {
	c.at = time.Now()
	a.mu.Lock()
	a.pending = append(a.pending, c)
	a.mu.Unlock()
	a.kick()
}

// idle says that every change is in the kernel, and has been acknowledged.
func (a *applier) idle() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return !a.busy && len(a.pending) == 0
}

func (a *applier) kick() {
	select {
	case a.signal <- struct{}{}:
	default:
	}
}

const (
	fenceFallback = 50 * time.Millisecond
	applyRetryMin = 50 * time.Millisecond
	applyRetryMax = 5 * time.Second
)

// run commits until ctx ends. A transaction that the kernel refuses is tried
// again, with what has come since: the table reads back what is in place, so
// that a try is always the difference to the truth. Changes that were refused
// together are tried one by one, lest one service hold up the others.
func (a *applier) run(ctx context.Context) {
	var todo []change
	var again <-chan time.Time // for what was refused
	retry, told := applyRetryMin, ""
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.signal:
		case <-again:
			again = nil
		}
		a.mu.Lock()
		todo = append(todo, a.pending...)
		a.pending = nil
		a.busy = len(todo) > 0
		a.mu.Unlock()
		if len(todo) == 0 {
			continue
		}
		a.gate.Lock()
		done, refused, err := a.commit(todo)
		a.gate.Unlock()
		a.acknowledge(done)
		n := copy(todo, refused)
		clear(todo[n:]) // thousands of changes at the start are not to be kept
		todo = todo[:n]
		a.mu.Lock()
		a.busy = len(todo) > 0
		a.mu.Unlock()
		if err == nil {
			if told != "" {
				a.log.Info().Msg("table changed after all")
			}
			again, retry, told = nil, applyRetryMin, ""
			continue
		}
		level := zerolog.DebugLevel
		if err.Error() != told {
			level, told = zerolog.ErrorLevel, err.Error()
		}
		a.log.WithLevel(level).Err(err).Int("changes", len(todo)).Msg("table not changed, trying again")
		if again == nil {
			again = time.After(retry)
			retry = min(2*retry, applyRetryMax)
		}
	}
}

// commit applies changes together, or else by service in their order.
func (a *applier) commit(todo []change) (done, refused []change, err error) {
	want := map[nft.Endpoint]*nft.Service{}
	for _, c := range todo {
		maps.Copy(want, c.endpoints)
	}
	if len(want) == 0 {
		return todo, nil, nil
	}
	begin := time.Now()
	if err = a.table.Apply(want); err == nil {
		a.took(time.Since(begin))
		return todo, nil, nil
	}
	stuck := map[string]bool{}
	for _, c := range todo {
		if len(c.endpoints) == 0 {
			done = append(done, c)
			continue
		}
		if len(todo) > 1 && !stuck[c.service] {
			one := a.table.Apply(c.endpoints)
			if one == nil {
				done = append(done, c)
				for _, old := range refused { // an address may have gone from one service to another
					maps.DeleteFunc(old.endpoints, func(ep nft.Endpoint, _ *nft.Service) bool { _, ok := c.endpoints[ep]; return ok })
				}
				continue
			}
			err = one
		}
		stuck[c.service] = true
		refused = append(refused, c)
	}
	if len(refused) == 0 {
		err = nil
	}
	return done, refused, err
}

// acknowledge reports changes that are in the kernel. Where a backend leaves
// that is not before all packets that may have seen it are through.
func (a *applier) acknowledge(done []change) {
	leaves := map[string]bool{}
	for _, c := range done {
		leaves[c.service] = leaves[c.service] || c.removes
	}
	for _, c := range done {
		if !leaves[c.service] {
			a.mapped(c.service, c.seq, time.Since(c.at))
		}
	}
	defer func() {
		for _, c := range done {
			if c.done != nil {
				c.done()
			}
		}
	}()
	if !slices.ContainsFunc(done, func(c change) bool { return c.removes }) {
		return
	}
	if err := nft.Fence(); err != nil {
		// Old kernels, or nohz_full: be generous instead. One packet takes
		// microseconds through the stack.
		a.log.Debug().Err(err).Msg("no memory barrier")
		time.Sleep(fenceFallback)
	}
	for _, c := range done {
		if leaves[c.service] {
			a.mapped(c.service, c.seq, time.Since(c.at))
		}
	}
}
