package handover

import "sync"

// group joins calls that arrive while one is under way into the next one: a
// transaction costs about the same for one element as for a hundred.
type group[T any] struct {
	do func([]T) []error // nil: all well

	mu      sync.Mutex
	busy    bool
	waiting []call[T]
}

type call[T any] struct {
	arg  T
	done chan error
}

// call returns when a run that includes arg has ended.
func (g *group[T]) call(arg T) error {
	c := call[T]{arg, make(chan error, 1)}
	g.mu.Lock()
	g.waiting = append(g.waiting, c)
	if !g.busy {
		g.busy = true
		go g.run()
	}
	g.mu.Unlock()
	return <-c.done
}

func (g *group[T]) run() {
	for {
		g.mu.Lock()
		calls := g.waiting
		g.waiting = nil
		g.busy = len(calls) > 0
		g.mu.Unlock()
		if len(calls) == 0 {
			return
		}
		args := make([]T, len(calls))
		for i, c := range calls {
			args[i] = c.arg
		}
		errs := g.do(args)
		for i, c := range calls {
			if errs == nil {
				c.done <- nil
			} else {
				c.done <- errs[i]
			}
		}
	}
}

// all gives each of n calls the same error.
func all(n int, err error) []error {
	if err == nil {
		return nil
	}
	errs := make([]error, n)
	for i := range errs {
		errs[i] = err
	}
	return errs
}
