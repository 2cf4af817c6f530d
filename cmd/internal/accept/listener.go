package accept

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Listener is a listening TCP socket that nobody accepts from until a Loop
// does. The kernel completes handshakes meanwhile.
type Listener struct {
	addr netip.AddrPort

	mu sync.Mutex
	fd int // -1: closed
}

// Listen opens a listening socket. The address need not be on this host yet
// (IP_FREEBIND), and an IPv6 one takes no IPv4 connections. backlog is how many
// completed connections may wait; the kernel silently clamps it, see Backlog.
func Listen(addr netip.AddrPort, backlog int) (*Listener, error) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	ln, err := listen(addr, backlog)
	if err != nil {
		return nil, fmt.Errorf("listen on %v/tcp: %w", addr, explain(err, addr))
	}
	return ln, nil
}

func listen(addr netip.AddrPort, backlog int) (*Listener, error) {
	if backlog < 1 {
		return nil, fmt.Errorf("backlog %d: %w", backlog, unix.EINVAL)
	}
	sa, family, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	// IPPROTO_TCP and not net.Listen, whose sockets speak MPTCP and can
	// then be neither repaired nor taken over.
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	ln := &Listener{fd: fd}
	if err := ln.start(family, sa, backlog); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return ln, nil
}

func (ln *Listener) start(family int, sa unix.Sockaddr, backlog int) error {
	type option struct {
		level, name int
		text        string
	}
	options := []option{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR"},
	}
	if family == unix.AF_INET6 {
		options = append(options,
			option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY"},
			option{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, "IPV6_FREEBIND"})
	} else {
		options = append(options, option{unix.IPPROTO_IP, unix.IP_FREEBIND, "IP_FREEBIND"})
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(ln.fd, o.level, o.name, 1); err != nil {
			return fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	if err := unix.Bind(ln.fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := unix.Listen(ln.fd, backlog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	bound, err := unix.Getsockname(ln.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	ln.addr = addrPort(bound)
	return nil
}

// Addr is the address the socket is bound to, with the port the kernel chose
// if it was asked to.
func (ln *Listener) Addr() netip.AddrPort { return ln.addr }

// FD is the socket, -1 once closed. It stays the listener's.
func (ln *Listener) FD() int {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	return ln.fd
}

// Queued is how many completed connections wait to be accepted.
func (ln *Listener) Queued() (int, error) {
	info, err := ln.info()
	if err != nil {
		return 0, fmt.Errorf("read accept queue of %v: %w", ln.addr, err)
	}
	return int(info.Unacked), nil
}

// Backlog is the limit in force: what Listen was given, or the network
// namespace's net.core.somaxconn if that is less. The kernel lets one more
// connection in than it says.
func (ln *Listener) Backlog() (int, error) {
	info, err := ln.info()
	if err != nil {
		return 0, fmt.Errorf("read backlog of %v: %w", ln.addr, err)
	}
	return int(info.Sacked), nil
}

// info: in a listening socket the kernel fills tcpi_unacked and tcpi_sacked
// with the length and the limit of the accept queue.
func (ln *Listener) info() (*unix.TCPInfo, error) {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.fd < 0 {
		return nil, net.ErrClosed
	}
	info, err := unix.GetsockoptTCPInfo(ln.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return info, os.NewSyscallError("getsockopt", err)
}

// Close closes the socket. Connections that still wait in it are reset. A
// Loop must have removed the listener before.
func (ln *Listener) Close() error {
	ln.mu.Lock()
	defer ln.mu.Unlock()
	if ln.fd < 0 {
		return net.ErrClosed
	}
	err := unix.Close(ln.fd)
	ln.fd = -1
	return os.NewSyscallError("close", err)
}

// explain adds to an errno what the user can do about it.
func explain(err error, addr netip.AddrPort) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program listens there; find it with: ss -Hltnp 'sport = :%d'", err, addr.Port())
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE", err)
	case errors.Is(err, unix.EAFNOSUPPORT) && addr.Addr().Is6():
		return fmt.Errorf("%w: this host has no IPv6", err)
	}
	return err
}

func sockaddr(addr netip.AddrPort) (unix.Sockaddr, int, error) {
	switch ip := addr.Addr(); {
	case ip.Is4():
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(addr.Port())}, unix.AF_INET, nil
	case ip.Is6():
		zone, err := zoneID(ip.Zone())
		if err != nil {
			return nil, 0, err
		}
		return &unix.SockaddrInet6{Addr: ip.As16(), Port: int(addr.Port()), ZoneId: zone}, unix.AF_INET6, nil
	}
	return nil, 0, fmt.Errorf("no address: %w", unix.EINVAL)
}

func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	dev, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	}
	return uint32(dev.Index), nil
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		return netip.AddrPortFrom(ip, uint16(sa.Port))
	}
	return netip.AddrPort{}
}
