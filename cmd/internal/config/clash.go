package config

import (
	"net/netip"
	"strconv"
)

// listenAt is an address of a service and where it stands.
type listenAt struct {
	Listen
	service string
	t       *table
	line    int
}

func (l listenAt) place() place { return place{l.t.file, l.line} }

// clashes reports every address that two services claim, or one service
// twice, or a service and the metrics listener. A wildcard claims its port on
// all addresses: the kernel would refuse the second of the two listeners.
func clashes(listens []listenAt, metrics string) {
	type port struct {
		number uint16
		proto  Proto
	}
	exact := map[Listen]listenAt{}
	wild := map[port]listenAt{}
	some := map[port]listenAt{} // the first on this port that is no wildcard

	daemon, daemonErr := netip.ParseAddrPort(metrics)
	if len(metrics) > 0 && metrics[0] == ':' {
		n, err := strconv.ParseUint(metrics[1:], 10, 16)
		daemon, daemonErr = netip.AddrPortFrom(netip.IPv6Unspecified(), uint16(n)), err
	}

	for _, l := range listens {
		p := port{l.Port, l.Proto}
		first, clash := exact[l.Listen]
		if !clash {
			first, clash = wild[p]
		}
		if !clash && l.Wildcard() {
			first, clash = some[p]
		}
		switch {
		case clash && first.service == l.service && first.Listen == l.Listen:
			l.t.errorAt(l.line, "listen", "%q is listed twice", l)
		case clash:
			l.t.errorAt(l.line, "listen", "%q clashes with %q of service.%s (%s): change the address or the port of one",
				l, first, first.service, first.place())
		case daemonErr == nil && l.Proto == TCP && l.Port == daemon.Port() &&
			(l.Wildcard() || daemon.Addr().IsUnspecified() || daemon.Addr() == l.Addr):
			l.t.errorAt(l.line, "listen", "%q clashes with daemon.metrics (%q): change the port of one", l, metrics)
		}
		if clash {
			continue
		}
		exact[l.Listen] = l
		if l.Wildcard() {
			wild[p] = l
		} else if _, ok := some[p]; !ok {
			some[p] = l
		}
	}
}
