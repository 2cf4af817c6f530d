// Package inherit is what one run of the daemon leaves to the next: listening
// sockets, with what waits in them, and connections that are held.
//
// What a descriptor is for is told by its name, of whose parts none has a colon:
// the service manager takes none. What it is is told by the socket.
package inherit

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind is the first part of a name.
type Kind string

// Kinds of descriptors.
const (
	TCP       Kind = "tcp"       // a listening socket
	UDP       Kind = "udp"       // a socket that datagrams come to
	Held      Kind = "held"      // a connection that waits for a backend
	Datagrams Kind = "datagrams" // a file with what is held of a UDP service
	Admin     Kind = "admin"     // a listening unix socket, see Of
	Metrics   Kind = "metrics"   // a listening socket, see Of
)

// Of names what is not known by its address, but by what the configuration says.
func Of(k Kind, text string) string { return string(k) + "/" + text }

// Name makes a name, as "tcp/192.0.2.10/80" or "held/2001-db8--10/80/2001-db8--2/46574".
func Name(k Kind, addrs ...netip.AddrPort) string {
	parts := []string{string(k)}
	for _, a := range addrs {
		parts = append(parts, strings.ReplaceAll(a.Addr().String(), ":", "-"), strconv.Itoa(int(a.Port())))
	}
	return strings.Join(parts, "/")
}

// parse is the reverse of Name, for one address. A zone may have lost its
// hyphens.
func parse(name string) (k Kind, addr netip.AddrPort) {
	parts := strings.Split(name, "/")
	k = Kind(parts[0])
	if len(parts) < 3 {
		return k, addr
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(parts[1], "-", ":"))
	if err != nil {
		return k, addr
	}
	port, err := strconv.ParseUint(parts[2], 10, 16)
	if err != nil {
		return k, addr
	}
	return k, netip.AddrPortFrom(a, uint16(port))
}

// A Socket is a descriptor under its name.
type Socket struct {
	Name string
	FD   int
	Kept bool // by the service manager, for the run after this one too
}

// Close closes the descriptor.
func (s Socket) Close() error {
	if err := unix.Close(s.FD); err != nil {
		return fmt.Errorf("close %s: %w", s.Name, err)
	}
	return nil
}

// A Set is what was left. Its methods hand out each descriptor once, which then
// belongs to the caller. The zero value is empty, and so is nil.
type Set struct {
	listeners map[key]Socket
	files     map[key]Socket
	held      []Socket
	named     map[string]Socket
	surplus   []Socket
}

type key struct {
	kind Kind
	addr netip.AddrPort
}

// Add puts a descriptor into the set, which owns it then.
func (s *Set) Add(sock Socket) {
	k, addr := parse(sock.Name)
	switch k {
	case Datagrams:
		if s.files == nil {
			s.files = map[key]Socket{}
		}
		put(s, s.files, key{k, addr}, sock)
		return
	case Admin, Metrics:
		if s.named == nil {
			s.named = map[string]Socket{}
		}
		put(s, s.named, sock.Name, sock)
		return
	}
	is, err := inspect(sock.FD)
	switch {
	case err != nil || is.kind == "":
		s.surplus = append(s.surplus, sock)
	case is.kind == Held:
		s.held = append(s.held, sock)
	default: // whatever its name: it may have been opened by a socket unit
		if s.listeners == nil {
			s.listeners = map[key]Socket{}
		}
		put(s, s.listeners, is, sock)
	}
}

func put[K comparable](s *Set, m map[K]Socket, k K, sock Socket) {
	if _, ok := m[k]; ok {
		s.surplus = append(s.surplus, sock)
		return
	}
	m[k] = sock
}

func pick[K comparable](m map[K]Socket, k K) (Socket, bool) {
	sock, ok := m[k]
	delete(m, k)
	return sock, ok
}

// Listener hands out the socket for an address, of kind TCP or UDP.
func (s *Set) Listener(k Kind, addr netip.AddrPort) (Socket, bool) {
	if s == nil {
		return Socket{}, false
	}
	return pick(s.listeners, key{k, addr})
}

// File hands out what is kept of a UDP address besides its socket.
func (s *Set) File(addr netip.AddrPort) (Socket, bool) {
	if s == nil {
		return Socket{}, false
	}
	return pick(s.files, key{Datagrams, addr})
}

// Named hands out a socket by its name.
func (s *Set) Named(name string) (Socket, bool) {
	if s == nil {
		return Socket{}, false
	}
	return pick(s.named, name)
}

// Held hands out the connections, in the order in which they were left.
func (s *Set) Held() []Socket {
	if s == nil {
		return nil
	}
	held := s.held
	s.held = nil
	return held
}

// Rest hands out all that is left.
func (s *Set) Rest() []Socket {
	if s == nil {
		return nil
	}
	list := append(s.surplus, s.held...)
	for _, sock := range s.listeners {
		list = append(list, sock)
	}
	for _, sock := range s.files {
		list = append(list, sock)
	}
	for _, sock := range s.named {
		list = append(list, sock)
	}
	*s = Set{}
	return list
}

// Len is how many descriptors there are.
func (s *Set) Len() int {
	if s == nil {
		return 0
	}
	return len(s.listeners) + len(s.files) + len(s.held) + len(s.named) + len(s.surplus)
}

// inspect finds out what a socket is good for, and its address; kind "" is for
// nothing.
func inspect(fd int) (key, error) {
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return key{}, os.NewSyscallError("getsockopt", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return key{}, os.NewSyscallError("getsockname", err)
	}
	var addr netip.AddrPort
	switch sa := name.(type) {
	case *unix.SockaddrInet4:
		addr = netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		ip := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			ip = ip.WithZone(strconv.FormatUint(uint64(sa.ZoneId), 10))
		}
		addr = netip.AddrPortFrom(ip, uint16(sa.Port))
		// One that takes IPv4 too is none of ours, and not to be mistaken for it.
		if only, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); err != nil || only == 0 {
			return key{}, err
		}
	default:
		return key{}, nil
	}
	switch proto {
	case unix.IPPROTO_UDP:
		return key{UDP, addr}, nil
	case unix.IPPROTO_TCP:
		listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		if err != nil {
			return key{}, os.NewSyscallError("getsockopt", err)
		}
		if listens != 0 {
			return key{TCP, addr}, nil
		}
		if _, err := unix.Getpeername(fd); err != nil {
			if errors.Is(err, unix.ENOTCONN) { // over
				return key{}, nil
			}
			return key{}, os.NewSyscallError("getpeername", err)
		}
		return key{Held, addr}, nil
	}
	return key{}, nil
}
