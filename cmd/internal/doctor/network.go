package doctor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/nft"
)

// natPriority is that of sluice's own NAT chains. Of several only the first that
// binds a connection counts.
const natPriority = -105

// forwarding looks at whether packets may pass this host to a container.
func (h *Host) forwarding(r *report) {
	keys := map[string]bool{}
	for _, s := range h.Config.Services {
		for _, l := range s.Listen {
			if l.Wildcard() || l.Addr.Is4() {
				keys["net.ipv4.ip_forward"] = true
			} else {
				keys["net.ipv6.conf.all.forwarding"] = true
			}
		}
	}
	for _, key := range []string{"net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"} {
		if !keys[key] {
			continue
		}
		switch v, err := sysctl(key); {
		case err != nil:
			r.fail("forwarding", "use a kernel with it", "%v", err)
		case v == "0":
			// Podman sets it with its first container on such a network.
			r.warn("forwarding", "sysctl -w "+key+"=1, and write it into /etc/sysctl.d", "%s is 0 until Podman starts a container", key)
		default:
			r.ok("forwarding", "%s is %s", key, v)
		}
	}
}

// chains looks for rules of others that could be in the way. What packets they
// are about is not read: a chain that drops by policy may well have a rule that
// accepts, and a rule that drops be about something else.
func (h *Host) chains(r *report) {
	list, err := nft.Others()
	if err != nil {
		r.fail("nftables", "run this as root, on a kernel with nf_tables", "%v", err)
		return
	}
	clear := true
	for _, f := range list {
		switch {
		case f.Drop && f.Hook == "forward":
			clear = false
			r.warn("forward", "let translated connections pass: "+accept(f, "ct status dnat", "-m conntrack --ctstate DNAT"),
				"chain %s drops what no rule of it accepts: clients elsewhere may not reach services that are awake", f)
		case f.Drop && f.Hook == "input":
			clear = false
			r.warn("input", "accept the services' ports there, as for any other server",
				"chain %s drops what no rule of it accepts: services that sleep may not be woken", f)
		case f.Drop && f.Hook == "prerouting":
			clear = false
			r.warn("prerouting", "accept what goes to services and comes from their replicas there",
				"chain %s drops what no rule of it accepts: nobody may reach services", f)
		case f.NAT && f.Hook == "prerouting" && f.Priority < natPriority:
			clear = false
			r.warn("nat", fmt.Sprintf("keep the services' addresses out of it, or give it a priority above %d", natPriority),
				"chain %s at priority %d translates before sluice does", f, f.Priority)
		}
		if f.Ends != "" && !f.Drop {
			clear = false
			what := map[string]string{
				"prerouting": "packets to services and from their replicas",
				"input":      "the services' ports, for when they sleep",
				"forward":    "packets to and from replicas",
			}[f.Hook]
			r.warn(f.Hook, fmt.Sprintf("see that it lets pass %s: nft list chain %s %s %s", what, f.Family, f.Table, f.Ends),
				"chain %s leads to rules in %s that drop or reject", f, f.Ends)
		}
	}
	if b, err := os.ReadFile("/proc/net/ip_tables_names"); err == nil && strings.Contains(string(b), "filter") {
		clear = false
		r.warn("iptables", "iptables-legacy -L FORWARD must let translated connections pass", "rules of iptables-legacy are in force, which cannot be looked at")
	}
	if clear {
		r.ok("nftables", "%d chains of others, none drops, rejects or translates before sluice", len(list))
	}
}

// accept is the command that lets packets pass a chain.
func accept(f nft.Foreign, expression, option string) string {
	if f.Family == "inet" || f.Table != "filter" {
		return fmt.Sprintf("nft insert rule %s %s accept", f, expression)
	}
	// A rule of nft's own in a table of iptables makes iptables refuse it.
	program := map[string]string{"ip": "iptables", "ip6": "ip6tables"}[f.Family]
	return fmt.Sprintf("%s -I %s %s -j ACCEPT", program, f.Chain, option)
}

// addresses looks at whether services can be reached where they listen.
func (h *Host) addresses(r *report) {
	seen := map[netip.Addr]bool{}
	missing := 0
	for _, s := range h.Config.Services {
		for _, l := range s.Listen {
			if !l.Wildcard() && !seen[l.Addr] {
				seen[l.Addr] = true
				if err := bind(l.Addr, 0, unix.SOCK_DGRAM); errors.Is(err, unix.EADDRNOTAVAIL) {
					missing++
					r.warn("address", fmt.Sprintf("ip address add %s dev lo, and route it here", netip.PrefixFrom(l.Addr, l.Addr.BitLen())),
						"%s of service %s is no address of this host", l.Addr, s.Name)
					continue
				}
			}
			h.port(r, s.Name, l)
		}
	}
	if missing == 0 && len(seen) > 0 {
		r.ok("address", "all %d addresses are this host's", len(seen))
	}
}

// port looks at whether another program listens where a service would.
func (h *Host) port(r *report, service string, l config.Listen) {
	if h.Running {
		return // it is sluice itself
	}
	kind := unix.SOCK_STREAM
	if l.Proto == config.UDP {
		kind = unix.SOCK_DGRAM
	}
	addrs := []netip.Addr{l.Addr}
	if l.Wildcard() {
		addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	if slices.ContainsFunc(addrs, func(a netip.Addr) bool { return errors.Is(bind(a, l.Port, kind), unix.EADDRINUSE) }) {
		r.fail("port", fmt.Sprintf("stop what listens there: ss -lnp 'sport = :%d'", l.Port), "%s of service %s is taken by another program", l, service)
	}
}

// bind tries an address, and a port if it is not 0, without listening.
func bind(addr netip.Addr, port uint16, kind int) error {
	family := unix.AF_INET6
	var sa unix.Sockaddr = &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
	if addr.Is4() {
		family = unix.AF_INET
		sa = &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	if kind == unix.SOCK_STREAM { // connections in TIME_WAIT are in nobody's way
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}
