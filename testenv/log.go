package testenv

import (
	"slices"
	"sync"
	"time"
)

// Log is a list that one side adds to while others wait for what comes: the
// lines that a program writes, the messages that it sends. Its zero value is
// empty.
type Log[T any] struct {
	mu    sync.Mutex
	all   []T
	grown chan struct{} // closed with the next addition; nil while nobody waits
}

// Add puts v at the end.
func (l *Log[T]) Add(v T) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, v)
	if l.grown != nil {
		close(l.grown)
		l.grown = nil
	}
}

// Mark is the present length, for Since and Wait.
func (l *Log[T]) Mark() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.all)
}

// Since returns what there is from a mark on; all of it from 0.
func (l *Log[T]) Since(mark int) []T {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all[min(mark, len(l.all)):])
}

// Wait returns the first that is ok from a mark on. It fails the test with what
// is awaited after timeout, or when done is closed, which says that nothing will
// be added any more; done may be nil.
func (l *Log[T]) Wait(t TB, timeout time.Duration, mark int, what string, done <-chan struct{}, ok func(T) bool) T {
	t.Helper()
	limit := time.After(timeout)
	for over := false; ; {
		l.mu.Lock()
		more := l.all[min(mark, len(l.all)):]
		if l.grown == nil {
			l.grown = make(chan struct{})
		}
		grown := l.grown
		l.mu.Unlock()
		for _, v := range more {
			if ok(v) {
				return v
			}
		}
		mark += len(more)
		if over {
			t.Fatalf("ended without: %s", what)
		}
		select {
		case <-grown:
		case <-done:
			over = true // after one more look
		case <-limit:
			t.Fatalf("not within %v: %s", timeout, what)
		}
	}
}
