package datagram

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"sluice/conntrack"
)

// Sweep deletes the UDP flows to services that lead nowhere any more, in one
// dump for all of them, and returns how many those were:
//
//   - those that are not translated, and so end at the daemon's socket for as
//     long as their client goes on sending;
//   - those translated to a backend that keep does not know. keep must know all
//     living backends, also those of other services; nil knows none.
//
// To be called when the service has got its first slots (before that, entries
// without translation come up again at once), and when it has lost its last. A
// [Listener] in Pass deals with each of the first kind by itself as soon as it
// has something to send; this spares it that, and those a restart of the daemon
// has left.
//
// A service at the unspecified address is every address that this host has: of
// the calling thread's network namespace.
func Sweep(ctx context.Context, t Tracker, services []netip.AddrPort, keep func(backend netip.AddrPort) bool) (int, error) {
	at := make(map[netip.AddrPort]bool, len(services))
	wild := false
	for _, s := range services {
		at[netip.AddrPortFrom(s.Addr().Unmap(), s.Port())] = true
		wild = wild || s.Addr().IsUnspecified()
	}
	own := map[netip.Addr]bool{}
	if wild {
		var err error
		if own, err = ownAddresses(); err != nil {
			return 0, fmt.Errorf("sweep udp flows: %w", err)
		}
	}
	serves := func(a netip.AddrPort) bool {
		if at[a] {
			return true
		}
		if !wild || !own[a.Addr()] && !a.Addr().IsLoopback() {
			return false
		}
		any := netip.IPv6Unspecified()
		if a.Addr().Is4() {
			any = netip.IPv4Unspecified()
		}
		return at[netip.AddrPortFrom(any, a.Port())]
	}
	var b conntrack.Batch
	err := t.Snapshot(func(f *conntrack.Flow) error {
		if f.Orig.Proto == unix.IPPROTO_UDP && !f.Status.Dying() && serves(f.Orig.Dst) &&
			(direct(f) || keep == nil || !keep(f.Reply.Src)) {
			b.DeleteFlow(f)
		}
		return ctx.Err()
	})
	if err != nil {
		return 0, fmt.Errorf("sweep udp flows: %w", err)
	}
	if b.Len() == 0 {
		return 0, nil
	}
	results, err := t.Do(&b)
	if err != nil {
		return 0, fmt.Errorf("sweep udp flows: %w", err)
	}
	n := 0
	var errs []error
	for _, err := range results {
		switch {
		case err == nil:
			n++
		case !errors.Is(err, fs.ErrNotExist):
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return n, fmt.Errorf("sweep udp flows: %w", err)
	}
	return n, nil
}

func ownAddresses() (map[netip.Addr]bool, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	own := make(map[netip.Addr]bool, len(list))
	for _, a := range list {
		if p, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(p.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own, nil
}
