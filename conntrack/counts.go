package conntrack

import (
	"iter"
	"net/netip"
	"slices"
)

// Count returns the counts of a backend, and whether they are known. They are
// not before the first dump, after a loss until the next, and after the end.
func (w *Watcher) Count(b Backend) (Count, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.table.count(b.unmap()), w.known
}

// Total returns the counts of all backends of a service together, those that
// were forgotten included.
func (w *Watcher) Total(service netip.AddrPort, proto uint8) (Count, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c := w.table.services[serviceKey(unmap(service), proto)]; c != nil {
		return *c, w.known
	}
	return Count{}, w.known
}

// All yields the counts of all backends that had a flow since they were last
// forgotten, as they are when the iteration begins.
func (w *Watcher) All() iter.Seq2[Backend, Count] {
	return func(yield func(Backend, Count) bool) {
		w.mu.Lock()
		all := slices.Clone(w.table.backends)
		w.mu.Unlock()
		for _, b := range all {
			if b.total != nil && !yield(b.name, b.count) {
				return
			}
		}
	}
}

// Known tells whether the counts are known.
func (w *Watcher) Known() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.known
}

// Resyncs returns how often events were lost.
func (w *Watcher) Resyncs() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.resyncs
}

// Forget drops the counts of a backend that is gone for good, and reports
// whether it could: not while an entry is left, finished ones included. It
// returns what they were at this moment. A flow that comes later counts from
// zero.
func (w *Watcher) Forget(b Backend) (Count, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.table.forget(b.unmap())
}
