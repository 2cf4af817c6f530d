package datagram

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// receiveBuffer is the socket's: what comes while its reader is busy.
const receiveBuffer = 1 << 20

// socket opens a socket bound to addr. shared are descriptors of this process
// that are bound to the same port: while the new one binds they let it.
func socket(addr netip.AddrPort, shared []int) (fd int, bound netip.AddrPort, err error) {
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Addr: addr.Addr().As16(), Port: int(addr.Port())})
	if addr.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: addr.Addr().As4(), Port: int(addr.Port())}
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
	if err != nil {
		return -1, bound, os.NewSyscallError("socket", err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	for _, o := range options(addr) {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fd, bound, fmt.Errorf("set %s: %w", o.text, err)
		}
	}
	if err := bind(fd, sa, shared); err != nil {
		return fd, bound, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return fd, bound, os.NewSyscallError("getsockname", err)
	}
	return fd, addrPort(name), nil
}

// bind: a socket at every address and one at a single address exclude each other
// unless both are SO_REUSEADDR. Left on, that would also let other programs take
// the datagrams away, and this one those of others.
func bind(fd int, sa unix.Sockaddr, shared []int) error {
	reuse := func(on int) error {
		var errs []error
		for _, f := range append(shared, fd) {
			errs = append(errs, unix.SetsockoptInt(f, unix.SOL_SOCKET, unix.SO_REUSEADDR, on))
		}
		return errors.Join(errs...)
	}
	if len(shared) == 0 {
		return unix.Bind(fd, sa)
	}
	if err := reuse(1); err != nil {
		return err
	}
	return errors.Join(unix.Bind(fd, sa), reuse(0))
}

type option struct {
	level, name, value int
	text               string
}

func options(addr netip.AddrPort) []option {
	list := []option{
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer, "SO_RCVBUFFORCE"},
		{unix.SOL_SOCKET, unix.SO_RXQ_OVFL, 1, "SO_RXQ_OVFL"},
	}
	if addr.Addr().Is4() {
		return append(list,
			option{unix.IPPROTO_IP, unix.IP_FREEBIND, 1, "IP_FREEBIND"},
			option{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, "IP_PKTINFO"},
			option{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, "IP_RECVTTL"},
			option{unix.IPPROTO_IP, unix.IP_RECVTOS, 1, "IP_RECVTOS"})
	}
	return append(list,
		option{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, "IPV6_V6ONLY"},
		option{unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1, "IPV6_FREEBIND"},
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, "IPV6_RECVPKTINFO"},
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, "IPV6_RECVHOPLIMIT"},
		option{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS, 1, "IPV6_RECVTCLASS"})
}

// explain adds to an errno what the user can do about it.
func explain(err error, addr netip.AddrPort) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("%w: another program receives there; find it with: ss -Hunap 'sport = :%d'", err, addr.Port())
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: ports below net.ipv4.ip_unprivileged_port_start need root or CAP_NET_BIND_SERVICE", err)
	case errors.Is(err, unix.EAFNOSUPPORT) && addr.Addr().Is6():
		return fmt.Errorf("%w: this host has no IPv6", err)
	}
	return err
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// scratch is what one receive needs.
type scratch struct {
	data [1 << 16]byte
	oob  [256]byte
}

// arrival is what the kernel says about a datagram besides its data.
type arrival struct {
	to         netip.Addr // invalid: no address of this host alone
	hops, tos  uint8
	overflowed uint32 // datagrams the socket had no room for, so far
}

// parse walks the control messages. A malformed one ends it: the kernel makes
// none.
func parse(oob []byte) (a arrival) {
	for len(oob) >= unix.SizeofCmsghdr { // less is looked at before it is refused
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			return a
		}
		oob = rest
		switch {
		case h.Level == unix.SOL_SOCKET && h.Type == unix.SO_RXQ_OVFL && len(data) >= 4:
			a.overflowed = binary.NativeEndian.Uint32(data)
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= 12:
			// struct in_pktinfo: index, local address, address in the header.
			// They differ for broadcast and multicast.
			if [4]byte(data[4:]) == [4]byte(data[8:]) {
				a.to = netip.AddrFrom4([4]byte(data[8:]))
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TTL && len(data) >= 4:
			a.hops = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			a.tos = data[0]
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= 16:
			if to := netip.AddrFrom16([16]byte(data)); !to.IsMulticast() {
				a.to = to
			}
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_HOPLIMIT && len(data) >= 4:
			a.hops = uint8(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			a.tos = uint8(binary.NativeEndian.Uint32(data))
		}
	}
	return a
}

// usable says whether a datagram can be sent on to a backend, and its answer
// back.
func (f flow) usable() bool {
	c, s := f.client.Addr(), f.service.Addr()
	switch {
	case f.client.Port() == 0, c.IsUnspecified(), c.IsMulticast():
		return false
	case !c.Is6():
		return true
	}
	return !c.IsLinkLocalUnicast() && !s.IsLinkLocalUnicast()
}

// loopback says that the kernel can translate no datagram of a usable flow: it
// is from or to ::1, and has to be carried.
func (f flow) loopback() bool {
	return f.client.Addr().Is6() && (f.client.Addr().IsLoopback() || f.service.Addr().IsLoopback())
}
