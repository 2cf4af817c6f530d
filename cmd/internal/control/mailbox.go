package control

import "sync"

// mailbox is a queue without a bound: post never blocks.
type mailbox struct {
	mu     sync.Mutex
	queue  []message
	signal chan struct{} // holds one token while the queue may be non-empty
}

func newMailbox() *mailbox { return &mailbox{signal: make(chan struct{}, 1)} }

func (m *mailbox) post(msg message) {
	m.mu.Lock()
	m.queue = append(m.queue, msg)
	m.mu.Unlock()
	select {
	case m.signal <- struct{}{}:
	default:
	}
}

// take swaps the queue for buf, which must be empty.
func (m *mailbox) take(buf []message) []message {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.queue
	m.queue = buf
	return q
}
