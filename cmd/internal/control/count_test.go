package control

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/conntrack"
	"sluice/nft"
	"sluice/podman"
	"sluice/policy"
)

// dumps answers Live when the test says so, with nothing found.
type dumps struct {
	Flows
	begun, end chan struct{}
}

func (d dumps) Live(netip.AddrPort, uint8) (int, error) {
	d.begun <- struct{}{}
	<-d.end
	return 0, nil
}
func (d dumps) Count(conntrack.Backend) (conntrack.Count, bool)            { return conntrack.Count{}, true }
func (d dumps) Forget(context.Context, netip.AddrPort, uint8) (int, error) { return 0, nil }

// lasting containers do not end by themselves, and leave at once.
type lasting struct{ Replicas }

func (lasting) Stop(context.Context, string, time.Duration) error { return nil }
func (lasting) Remove(context.Context, string) error              { return nil }
func (lasting) Exited(ctx context.Context, _ podman.Replica) error {
	<-ctx.Done()
	return ctx.Err()
}

// silence takes no notes.
type silence struct{ Recorder }

func (silence) Drained(time.Duration, int) {}
func (silence) Decision(string)            {}

// TestCountHandover: a connection that was being handed over when a draining
// backend's flows were dumped is in none of the entries seen, and may be a flow by
// the time the dump has ended.
func TestCountHandover(t *testing.T) {
	t.Parallel()
	d := dumps{begun: make(chan struct{}), end: make(chan struct{})}
	c := New(Options{Flows: d, Replicas: lasting{}, Record: silence{}, Log: zerolog.Nop()})
	c.ctx = t.Context()
	listen := config.Listen{Addr: netip.MustParseAddr("192.0.2.1"), Port: 80, Proto: config.TCP}
	cfg := config.Service{
		Name: "web", Listen: []config.Listen{listen}, Container: &config.Container{Image: "x", Port: 80},
		Scale: config.Scale{Max: 1, Utilization: 1}, Health: config.Health{Type: config.HealthNone},
	}
	s := newService(cfg, kindsOf(cfg, ""), c.log)
	c.services[s.name] = s
	c.attach(s, cfg, nil)
	at := netip.MustParseAddr("10.88.0.2")
	ep := nft.Endpoint{Addr: listen.Addr, Proto: unix.IPPROTO_TCP, Port: 80}
	left := podman.Replica{Service: "web", Index: 1, ID: "id", Addr4: at, Port: 80, State: podman.Running, SpecHash: s.kinds.stable.Hash()}
	now := time.Now()
	c.begin(s, now, []podman.Replica{left}, map[nft.Endpoint]nft.Service{ep: {Slots: []netip.AddrPort{netip.AddrPortFrom(at, 80)}}})

	r := s.replica(1)
	r.carries = 1 // on its way
	c.step(s, now, policy.Drain{})
	c.step(s, now, policy.Mapped{Seq: 1 << 20})
	<-d.begun
	c.released(s, now, r) // a flow now
	close(d.end)
	<-c.box.signal
	for _, m := range c.box.take(nil) {
		m(now)
	}
	if st := s.policy.View().Backends[0].State; st != policy.DrainingFlows {
		t.Errorf("%v after a count that could not see the flow", st)
	}
}
