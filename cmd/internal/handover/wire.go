package handover

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"
)

// wire sends packets from any source address. They carry a packet mark, by
// which rules tell them from the client's own.
type wire struct {
	v4, v6 int
	bufs   sync.Pool
}

func openWire(mark uint32) (*wire, error) {
	v4, err := openRaw(unix.AF_INET, mark)
	if err != nil {
		return nil, err
	}
	v6, err := openRaw(unix.AF_INET6, mark)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		v6 = -1 // booted with ipv6.disable=1
	} else if err != nil {
		return nil, errors.Join(err, unix.Close(v4))
	}
	return &wire{v4: v4, v6: v6, bufs: sync.Pool{New: func() any { return new([]byte) }}}, nil
}

// openRaw opens a socket whose packets bring their IP header, which IPPROTO_RAW
// implies in both families.
func openRaw(family int, mark uint32) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
		return -1, errors.Join(fmt.Errorf("set packet mark: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20); err != nil {
		return -1, errors.Join(fmt.Errorf("size send buffer: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (w *wire) close() error {
	err := unix.Close(w.v4)
	if w.v6 >= 0 {
		err = errors.Join(err, unix.Close(w.v6))
	}
	return err
}

// send is done when the packet has left the routing layer; whether it arrives is
// another question. unix.EMSGSIZE: larger than the route takes.
func (w *wire) send(s *segment) error {
	buf := w.bufs.Get().(*[]byte)
	defer w.bufs.Put(buf)
	*buf = s.append((*buf)[:0])
	fd, to := w.v4, sockaddr(s.dst.Addr())
	if s.dst.Addr().Is6() {
		fd = w.v6
	}
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Sendto(fd, *buf, 0, to) })
	if err != nil {
		return fmt.Errorf("send packet to %s: %w", s.dst, err)
	}
	return nil
}

// sockaddr leaves the port at 0: a raw IPv6 socket takes no other.
func sockaddr(a netip.Addr) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Addr: a.As16()}
}
