package handover

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"sluice/conntrack"
	"sluice/nft"
)

// steps stands between a Porter and the kernel and calls at before and after
// each of its transactions.
type steps struct {
	Freezer
	Tracker
	at func(step string)
}

func stepNames() []string {
	return []string{"before freeze", "after freeze", "before track", "after track", "before thaw", "after thaw"}
}

func (s *steps) Freeze(ts []nft.Tuple, d time.Duration) error {
	s.at("before freeze")
	defer s.at("after freeze")
	return s.Freezer.Freeze(ts, d)
}

func (s *steps) Unfreeze(ts []nft.Tuple) error {
	s.at("before thaw")
	defer s.at("after thaw")
	return s.Freezer.Unfreeze(ts)
}

func (s *steps) Do(b *conntrack.Batch) ([]error, error) {
	s.at("before track")
	defer s.at("after track")
	return s.Tracker.Do(b)
}

// brief freezes for a second, so that a test need not wait for the whole time.
type brief struct{ Freezer }

func (b brief) Freeze(ts []nft.Tuple, _ time.Duration) error {
	return b.Freezer.Freeze(ts, time.Second)
}

// heard is what a backend got on a connection.
type heard struct {
	data []byte
	err  error
}

// hear waits for a backend to have heard all.
func hear(t *testing.T, heards <-chan heard) heard {
	t.Helper()
	select {
	case h := <-heards:
		return h
	case <-time.After(2 * patience):
		return heard{err: os.ErrDeadlineExceeded}
	}
}

// listener greets, hears to the end, and tells.
func listener(heards chan<- heard) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		_, werr := fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
		data, err := io.ReadAll(c)
		heards <- heard{data, errors.Join(werr, err)}
	}
}
