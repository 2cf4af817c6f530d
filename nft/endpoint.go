package nft

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInvalid is wrapped by errors about a value that no table can hold: an
// address of the wrong family, a protocol other than TCP or UDP, a slot count
// that is not a class.
var ErrInvalid = errors.New("invalid")

// An Endpoint is an address and port under one transport protocol. It names a
// service: one address that clients dial.
//
// The unspecified address (0.0.0.0, ::) is every address of its family that the
// host itself has, 127.0.0.0/8 among them and ::1 not, which the kernel cannot
// translate. A service at a single address comes first there, even when it is
// cold. Flows to addresses of others, which the host forwards, are left alone.
type Endpoint struct {
	Addr  netip.Addr
	Proto uint8 // unix.IPPROTO_TCP or unix.IPPROTO_UDP
	Port  uint16
}

// String returns the form used in configuration files: 192.0.2.10:80/tcp.
func (e Endpoint) String() string {
	proto := strconv.Itoa(int(e.Proto))
	switch e.Proto {
	case unix.IPPROTO_TCP:
		proto = "tcp"
	case unix.IPPROTO_UDP:
		proto = "udp"
	}
	return netip.AddrPortFrom(e.Addr, e.Port).String() + "/" + proto
}

func (e Endpoint) check() error {
	switch {
	case !e.Addr.IsValid() || e.Addr.Is4In6() || e.Addr.Zone() != "" || e.Addr.IsMulticast():
		return fmt.Errorf("address %s: %w", e.Addr, ErrInvalid)
	case e.Proto != unix.IPPROTO_TCP && e.Proto != unix.IPPROTO_UDP:
		return fmt.Errorf("protocol %d: %w", e.Proto, ErrInvalid)
	case e.Port == 0:
		return fmt.Errorf("port 0: %w", ErrInvalid)
	}
	return nil
}

// checkBackend is check for what a flow is to be sent to.
func (e Endpoint) checkBackend() error {
	if e.Addr.IsUnspecified() {
		return fmt.Errorf("address %s: %w", e.Addr, ErrInvalid)
	}
	return e.check()
}

// compare orders endpoints by address, port and protocol.
func (e Endpoint) compare(f Endpoint) int {
	if c := e.Addr.Compare(f.Addr); c != 0 {
		return c
	}
	if c := int(e.Port) - int(f.Port); c != 0 {
		return c
	}
	return int(e.Proto) - int(f.Proto)
}

// A Service says where new flows to an endpoint go. A flow takes a slot and goes
// to the backend that the slot names.
type Service struct {
	// Slots has a length that is a class (see Class), or 0: the service is
	// cold, its flows are delivered to the host itself, where the daemon
	// listens. The backends are of the endpoint's address family. A backend
	// may occupy any number of slots.
	Slots []netip.AddrPort

	// Balance is how a flow takes a slot.
	Balance Balance

	// Masquerade gives the backends an address of this host in place of the
	// client's, for backends whose replies would not come back this way.
	Masquerade bool

	// Affinity, if positive, is for how long after its latest new flow a
	// client's address keeps its backend, rounded up to one of Affinities.
	// Only clients that have none take a slot. Those of a backend that is no
	// longer in Slots choose anew; all others keep theirs whatever becomes of
	// the slots. Of flows of one client that begin at the same moment, before
	// any backend is known, each may get another.
	Affinity time.Duration

	// Limits hold for cold services too.
	Limits Limits

	// Screen turns new flows away from the host, where they would wake the
	// service, unless the client is in Allow: TCP is answered by a reset, UDP by
	// a port unreachable, as by a closed port, and nothing is kept of either.
	// With Slots, whose backends are paused then, it keeps them from the slots
	// too. What the host sends to itself counts by its source address. Flows
	// that have begun are not concerned, but their packets are no alarm (see
	// Table.Asleep) if their client is not in Allow.
	Screen bool
	// Allow are prefixes of the endpoint's family; one inside another is left
	// out. It may be set without Screen, which makes that cheaper to change.
	Allow []netip.Prefix

	// Patient makes only TCP packets that carry data an alarm, see Table.Asleep.
	Patient bool
}

func (s Service) equal(o Service) bool {
	return slices.Equal(s.Slots, o.Slots) && s.traits() == o.traits() &&
		s.Screen == o.Screen && s.Patient == o.Patient && slices.Equal(screens(s.Allow), screens(o.Allow))
}

func (s Service) check(at Endpoint) error {
	if err := at.check(); err != nil {
		return err
	}
	if err := errors.Join(s.Balance.check(), checkAffinity(s.Affinity), s.Limits.check(), checkAllow(s.Allow, at)); err != nil {
		return err
	}
	if n := len(s.Slots); n > 0 && Class(n) != n {
		return fmt.Errorf("%d slots, not a class: %w", n, ErrInvalid)
	}
	for i, b := range s.Slots {
		if err := (Endpoint{Addr: b.Addr(), Proto: at.Proto, Port: b.Port()}).checkBackend(); err != nil {
			return fmt.Errorf("slot %d: %w", i, err)
		}
		if b.Addr().Is4() != at.Addr.Is4() {
			return fmt.Errorf("slot %d: backend %s of another family: %w", i, b, ErrInvalid)
		}
	}
	return nil
}
