package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"sluice/cmd/internal/control"
	"sluice/cmd/internal/sandbox"
	"sluice/testenv"
)

const (
	handedRun = 200 * time.Millisecond
	handedMiB = 128 // of each download
)

// handed compares a connection that has woken its service, and was handed over
// to the kernel, with one that was made when the service was awake, to the same
// container and in turn: first requests, then downloads. Neither has any
// company. The service is woken several times, for a connection may have a good
// or a bad place for its whole life.
func handed(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, r *report, wakes, rounds int) {
	p := path{to: netip.MustParseAddrPort(handedAddr + httpPort), from: s.ClientAddr4}
	var rate, speed pairs
	for i := range wakes {
		s.Until(ctx, t, "handed", "sleep", sandbox.Asleep)
		settle(ctx, t)
		woke := connect(t, s, p)
		onlyHandedOver(ctx, t, s, i+1)
		usual := connect(t, s, p)
		for range rounds {
			rate.add(t, woke.rate, usual.rate)
		}
		for range rounds {
			speed.add(t, woke.speed, usual.speed)
		}
		// Of the two, only the first has been in the daemon's hands.
		onlyHandedOver(ctx, t, s, i+1)
		woke.Close()
		usual.Close()
	}
	r.part("one connection that woke its service, handed over, and without: made when awake")
	rate.report(r, "requests per second, kept-alive", ">= 0.98")
	speed.report(r, fmt.Sprintf("downloads of %d MiB, MiB per second", handedMiB), ">= 0.98")
}

// connect opens a connection that has had its first answer.
func connect(t testenv.TB, s *sandbox.Sandbox, p path) *client {
	t.Helper()
	var c *client
	err := s.Client.Do(func() (err error) {
		c, err = p.dial()
		return err
	})
	if err == nil {
		err = c.ask()
	}
	if err != nil {
		t.Fatalf("connect to %s: %v", p.to, err)
	}
	return c
}

// onlyHandedOver makes sure that the daemon has handed over so many connections
// since it started, and relayed none.
func onlyHandedOver(ctx context.Context, t testenv.TB, s *sandbox.Sandbox, want int) {
	t.Helper()
	st := s.Until(ctx, t, "handed", "the handover", func(st control.ServiceStatus) bool {
		return st.HandedOver+st.Relayed >= uint64(want)
	})
	if st.HandedOver != uint64(want) || st.Relayed != 0 || st.Ready != 1 {
		t.Fatalf("want %d connections handed over, none relayed, one replica: %+v", want, st)
	}
}

func (c *client) rate() (float64, error) {
	begin := time.Now()
	n, err := c.until(begin.Add(handedRun))
	return float64(n) / time.Since(begin).Seconds(), err
}

func (c *client) speed() (float64, error) {
	begin := time.Now()
	err := c.download(handedMiB << 20)
	return handedMiB / time.Since(begin).Seconds(), err
}
