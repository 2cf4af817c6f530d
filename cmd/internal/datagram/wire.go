package datagram

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"
)

// sendBuffer holds what waits for a backend's neighbour entry, for one.
const sendBuffer = 8 << 20

// wire sends datagrams from any source address. Its packets are to be tracked
// and translated like the client's own. They carry no mark, unless there is one
// for clients beside their backend.
type wire struct {
	v4, v6 int // -1: not there
	bufs   sync.Pool
}

func openWire(mark int) (*wire, error) {
	w := &wire{v4: -1, v6: -1, bufs: sync.Pool{New: func() any { return new([]byte) }}}
	var err error
	if w.v4, err = openRaw(unix.AF_INET, mark); err != nil {
		return nil, err
	}
	w.v6, err = openRaw(unix.AF_INET6, mark)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		w.v6 = -1 // booted with ipv6.disable=1
	} else if err != nil {
		return nil, errors.Join(err, w.close())
	}
	return w, nil
}

// openRaw opens a socket whose packets bring their IP header; that of
// IPPROTO_RAW receives nothing.
func openRaw(family, mark int) (int, error) {
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
	if err != nil {
		return -1, fmt.Errorf("open raw socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer); err != nil {
		return -1, errors.Join(fmt.Errorf("size send buffer: %w", err), unix.Close(fd))
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
		return -1, errors.Join(fmt.Errorf("mark packets: %w", err), unix.Close(fd))
	}
	return fd, nil
}

func (w *wire) close() error {
	var errs []error
	for _, fd := range []int{w.v4, w.v6} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

// send returns when the datagram has passed the output hooks and left for the
// backend. unix.EAGAIN and unix.ENOBUFS: there is no room just now.
//
// An IPv4 packet is handed over whole, and the kernel cuts it to what the
// backend's link takes. From an IPv6 raw socket it does not: there it puts
// fragments together for conntrack, translates, and cuts again as they were.
func (w *wire) send(fl flow, d datagram) error {
	buf := w.bufs.Get().(*[]byte)
	defer w.bufs.Put(buf)
	id := rand.Uint32() //nolint:gosec // no secret; it only has to differ from those of late
	var err error
	if fl.client.Addr().Is6() {
		to := &unix.SockaddrInet6{Addr: fl.service.Addr().As16()} // a port would be refused
		*buf, err = packets(*buf, fl, d, id, smallMTU, func(p []byte) error { return sendto(w.v6, p, to) })
		return err
	}
	to := &unix.SockaddrInet4{Addr: fl.service.Addr().As4()}
	out := func(p []byte) error { return sendto(w.v4, p, to) }
	*buf, err = packets(*buf, fl, d, id, wholeMTU, out)
	if errors.Is(err, unix.EMSGSIZE) { // larger than the loopback device takes
		*buf, err = packets(*buf, fl, d, id, smallMTU, out)
	}
	return err
}

func sendto(fd int, p []byte, to unix.Sockaddr) error {
	for {
		err := unix.Sendto(fd, p, 0, to)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
