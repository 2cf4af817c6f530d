package control

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/accept"
	"sluice/cmd/internal/config"
	"sluice/cmd/internal/health"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/podman"
	"sluice/policy"
)

// dumps answers Live when the test says so, with as many flows.
type dumps struct {
	Flows
	begun chan struct{}
	found chan int
	end   <-chan struct{} // of the test
}

func (d dumps) Live(netip.AddrPort, uint8, func(*conntrack.Flow) bool) (live, alike int, err error) {
	select {
	case d.begun <- struct{}{}:
	case <-d.end:
	}
	select {
	case n := <-d.found:
		return n, 0, nil
	case <-d.end:
		return 0, 0, nil
	}
}
func (d dumps) Count(conntrack.Backend) (conntrack.Count, bool)            { return conntrack.Count{}, true }
func (d dumps) Forget(context.Context, netip.AddrPort, uint8) (int, error) { return 0, nil }
func (d dumps) Arm(conntrack.Backend) (conntrack.Count, bool)              { return conntrack.Count{}, true }
func (d dumps) Disarm(conntrack.Backend)                                   {}

// slow containers do not end by themselves, are paused when the test says so, and
// leave at once.
type slow struct {
	Replicas
	pause chan struct{}
}

func (slow) Stop(context.Context, string, time.Duration) error { return nil }
func (slow) Remove(context.Context, string) error              { return nil }
func (slow) Exited(ctx context.Context, _ podman.Replica) error {
	<-ctx.Done()
	return ctx.Err()
}

func (p slow) Pause(ctx context.Context, _ string) error {
	select {
	case <-p.pause:
	case <-ctx.Done():
	}
	return ctx.Err()
}

// ownedByTest is a control whose owner is the test, not Run. Its table refuses
// what it is told to.
func ownedByTest(t *testing.T, opt Options) *Control {
	t.Helper()
	opt.Table, opt.Record, opt.Log = &refusing{}, unrecorded{}, zerolog.Nop()
	c := New(opt)
	ctx, cancel := context.WithCancel(t.Context())
	c.ctx, c.health = ctx, health.NewPool()
	c.recall()
	c.work.Go(func() { c.app.run(ctx) })
	t.Cleanup(func() {
		cancel()
		c.work.Wait()
		c.health.Close()
	})
	return c
}

// replicaLab is a control of one service with one container, found running and in
// the table, whose owner is the test.
func replicaLab(t *testing.T, sleep config.Sleep) (*Control, *service, dumps, slow) {
	t.Helper()
	d := dumps{begun: make(chan struct{}), found: make(chan int), end: t.Context().Done()}
	p := slow{pause: make(chan struct{})}
	c := ownedByTest(t, Options{Flows: d, Replicas: p})
	cfg := config.Service{
		Name: "web", Container: &config.Container{Image: "x", Port: 80},
		Scale:  config.Scale{Max: 1, Utilization: 1, Sleep: sleep},
		Health: config.Health{Type: config.HealthNone}, Drain: config.Drain{Timeout: time.Minute},
	}
	s := newService(cfg, kindsOf(cfg, ""), c.log)
	c.services[s.name] = s
	s.endpoints = []nft.Endpoint{at(80)}
	c.endpoints[at(80)] = s
	replica := netip.MustParseAddr("10.88.0.2")
	left := podman.Replica{Service: "web", Index: 1, ID: "id", Addr4: replica, Port: 80, State: podman.Running, SpecHash: s.kinds.stable.Hash()}
	c.begin(s, time.Now(), []podman.Replica{left}, map[nft.Endpoint]nft.Service{at(80): {Slots: []netip.AddrPort{netip.AddrPortFrom(replica, 80)}}})
	return c, s, d, p
}

func (s *service) state() policy.State { return s.policy.View().Backends[0].State }

// awaits lets the owner go on until ch has something.
func awaits[T any](t *testing.T, c *Control, what string, ch <-chan T) {
	t.Helper()
	came := false
	go func() {
		<-ch
		c.box.post(func(time.Time) { came = true })
	}()
	c.until(t, what, func() bool { return came })
}

// TestCountHandover: a connection that was being handed over when a draining
// backend's flows were dumped is in none of the entries seen, and may be a flow by
// the time the dump has ended.
func TestCountHandover(t *testing.T) {
	t.Parallel()
	c, s, d, _ := replicaLab(t, config.SleepStop)
	r := s.replica(1)
	r.carries = 1 // on its way
	c.step(s, time.Now(), policy.Drain{})
	awaits(t, c, "a count", d.begun)
	c.released(s, time.Now(), r) // a flow now
	d.found <- 0
	c.until(t, "the answer", func() bool { return s.state() != policy.DrainingFlows || s.policy.View().Backends[0].Flows == 1 })
	if s.state() != policy.DrainingFlows {
		t.Errorf("%v after a count that could not see the flow", s.state())
	}
}

// TestRetirePaused: a service that is taken out while its container is being
// paused stays until that has been removed.
func TestRetirePaused(t *testing.T) {
	t.Parallel()
	c, s, d, p := replicaLab(t, config.SleepPause)
	c.step(s, time.Now().Add(time.Minute), c.load(s)) // idle
	c.retire(s, time.Now())
	if c.services["web"] != s {
		t.Fatal("forgotten, with its container")
	}
	p.pause <- struct{}{}
	for c.services["web"] == s {
		select {
		case <-d.begun:
			d.found <- 0
		case <-c.box.signal:
			for _, m := range c.box.take(nil) {
				m(time.Now())
			}
		case <-time.After(time.Minute):
			t.Fatalf("stays in %v, %+v", s.policy.Phase(), s.policy.View().Backends)
		}
	}
	if s.policy.Has(1) {
		t.Error("forgotten, with its container")
	}
}

// TestRetireReturns: a service that is put back while it drains goes on with the
// container it has, and what is carried there is not cut.
func TestRetireReturns(t *testing.T) {
	t.Parallel()
	c, s, d, _ := replicaLab(t, config.SleepStop)
	cfg := s.cfg
	c.retire(s, time.Now())
	awaits(t, c, "a count", d.begun)
	d.found <- 1
	c.until(t, "the answer", func() bool { return s.policy.View().Backends[0].Flows == 1 })
	c.change(s, time.Now(), cfg)
	if s.state() != policy.Ready {
		t.Errorf("%v after its return", s.state())
	}
}

// TestStopTimeout: a container whose service has fixed backends by now has as much
// time to end as it was promised.
func TestStopTimeout(t *testing.T) {
	t.Parallel()
	c, s, _, _ := replicaLab(t, config.SleepStop)
	cfg := s.cfg
	cfg.Container = &config.Container{Image: "x", Port: 80, StopTimeout: time.Minute}
	c.change(s, time.Now(), cfg)
	cfg.Container, cfg.Backends = nil, []config.Backend{{Addr: netip.MustParseAddrPort("10.1.2.3:80"), Weight: 1}}
	c.change(s, time.Now(), cfg)
	if d := s.stopTimeout(s.replica(1)); d != time.Minute {
		t.Errorf("%s from SIGTERM to SIGKILL", d)
	}
}

// TestRelayMoves: what goes through a relay counts as load where bytes do.
func TestRelayMoves(t *testing.T) {
	t.Parallel()
	c, s, _, _ := replicaLab(t, config.SleepStop)
	s.cfg.Scale.IdleCounts = config.IdleBytes
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	here, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	s.relayed[here.(*net.TCPConn)] = true
	was := c.load(s).Bytes
	if now := c.load(s).Bytes; now != was {
		t.Errorf("%d bytes, %d before, without a word", now, was)
	}
	if _, err := client.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := here.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if now := c.load(s).Bytes; now == was {
		t.Errorf("%d bytes as before", now)
	}
}

// busy is a table on which something takes its time.
type busy struct {
	*refusing
	asked chan struct{}
	end   <-chan struct{}
}

func (b busy) wait() {
	select {
	case b.asked <- struct{}{}:
	case <-b.end:
	}
	<-b.end
}

func (b busy) Asleep(map[nft.Endpoint]bool) error { b.wait(); return nil }

func (b busy) AllLimited() (map[nft.Endpoint]uint64, error) { b.wait(); return nil, nil }

// TestOwnerWaitsForNoTable: the owner goes on while the table is busy, with what is
// asked of it for a container that was paused and is stopped, and for a status.
func TestOwnerWaitsForNoTable(t *testing.T) {
	t.Parallel()
	c, s, _, _ := replicaLab(t, config.SleepStop)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	table := busy{asked: make(chan struct{}), end: ctx.Done()}
	c.opt.Table = table
	s.replica(1).asleep = true
	c.stop(s, policy.Stop{Index: 1})
	<-table.asked

	s.cfg.Limits.MaxFlows = 1
	go func() { _, _ = c.Status(ctx) }()
	awaits(t, c, "the table to be asked", table.asked)
}

// arms tells of listeners that are armed.
type arms struct {
	accept.Loop
	mode map[uint64]accept.Mode
}

func (a arms) Arm(id uint64, m accept.Mode) error { a.mode[id] = m; return nil }

// TestStrangerRearms: a connection that is refused because its client may not wake
// the service, or has reset it already, is not the last that is accepted.
func TestStrangerRearms(t *testing.T) {
	t.Parallel()
	c, s, _, _ := replicaLab(t, config.SleepStop)
	a := arms{mode: map[uint64]accept.Mode{}}
	c.opt.Accept = a
	s.shares, s.cfg.Allow = nil, []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	l := &listener{id: 1, ln: &accept.Listener{}, endpoint: at(80), service: s}
	c.listeners[1], s.listeners = l, []*listener{l}
	c.arm(s, accept.One)
	delete(a.mode, 1) // it takes one
	c.accepted(time.Now(), time.Now(), accept.Conn{Listener: 1, FD: mute(t)})
	if a.mode[1] != accept.One {
		t.Errorf("%v after a stranger", a.mode[1])
	}
}
