package control

import (
	"context"
	"maps"
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
	at        time.Time
}

// applier commits changes one transaction after the other. Changes that come
// while a transaction runs go into the next one together.
type applier struct {
	table  Table
	log    zerolog.Logger
	mapped func(service string, seq uint64, took time.Duration)
	took   func(time.Duration)

	mu      sync.Mutex
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
// that a try is always the difference to the truth.
func (a *applier) run(ctx context.Context) {
	var todo []change
	retry := applyRetryMin
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.signal:
		}
		a.mu.Lock()
		todo = append(todo, a.pending...)
		a.pending = nil
		a.mu.Unlock()
		if len(todo) == 0 {
			continue
		}
		want := map[nft.Endpoint]*nft.Service{}
		for _, c := range todo {
			maps.Copy(want, c.endpoints)
		}
		begin := time.Now()
		if err := a.table.Apply(want); err != nil {
			a.log.Error().Err(err).Dur("retry", retry).Int("services", len(todo)).Msg("table not changed")
			select {
			case <-ctx.Done():
				return
			case <-time.After(retry):
			}
			retry = min(2*retry, applyRetryMax)
			a.kick()
			continue
		}
		retry = applyRetryMin
		a.took(time.Since(begin))
		leaves := map[string]bool{}
		for _, c := range todo {
			leaves[c.service] = leaves[c.service] || c.removes
		}
		var fenced []change
		for _, c := range todo {
			if leaves[c.service] {
				fenced = append(fenced, c)
				continue
			}
			a.mapped(c.service, c.seq, time.Since(c.at))
		}
		todo = todo[:0]
		if len(fenced) > 0 {
			if err := nft.Fence(); err != nil {
				// Old kernels, or nohz_full: be generous instead. One packet
				// takes microseconds through the stack.
				a.log.Debug().Err(err).Msg("no memory barrier")
				time.Sleep(fenceFallback)
			}
			for _, c := range fenced {
				a.mapped(c.service, c.seq, time.Since(c.at))
			}
		}
	}
}
