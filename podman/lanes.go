package podman

import (
	"context"
	"fmt"
)

// lanes bound how many containers are brought up at once. Whoever wakes a
// service is waited for by a client, whoever prepares a replica is not: of two or
// more lanes inits leave one to starts.
type lanes struct {
	all   chan struct{}
	inits chan struct{}
}

func newLanes(n int) *lanes {
	if n <= 0 {
		n = 4
	}
	return &lanes{
		all:   make(chan struct{}, n),
		inits: make(chan struct{}, max(1, n-1)),
	}
}

// start waits for a lane; the caller must call leave.
func (l *lanes) start(ctx context.Context) (leave func(), err error) {
	if err := enter(ctx, l.all); err != nil {
		return nil, err
	}
	return func() { <-l.all }, nil
}

// init waits for a lane that starts can spare; the caller must call leave.
func (l *lanes) init(ctx context.Context) (leave func(), err error) {
	if err := enter(ctx, l.inits); err != nil {
		return nil, err
	}
	if err := enter(ctx, l.all); err != nil {
		<-l.inits
		return nil, err
	}
	return func() { <-l.all; <-l.inits }, nil
}

func enter(ctx context.Context, lane chan struct{}) error {
	select {
	case lane <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for other starts: %w", ctx.Err())
	}
}
