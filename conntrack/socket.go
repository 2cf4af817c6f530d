package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is a netlink socket for requests to conntrack. Who uses it holds mu.
type socket struct {
	mu  sync.Mutex
	nl  *netlink.Conn
	raw syscall.RawConn
	seq uint32
	buf []byte

	// Arguments and results of recv and send, which are made once: a closure
	// per call would escape to the heap.
	recv, send func(fd uintptr) bool
	out        []byte
	n          int
	err        error
}

func openSocket() (*socket, error) {
	nl, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, err
	}
	s := &socket{nl: nl, buf: make([]byte, dumpBuffer)}
	s.recv = func(fd uintptr) bool {
		s.n, s.err = ignoringEINTR(unix.Read, int(fd), s.buf)
		return !errors.Is(s.err, unix.EAGAIN)
	}
	s.send = func(fd uintptr) bool {
		s.n, s.err = ignoringEINTR(unix.Write, int(fd), s.out)
		return !errors.Is(s.err, unix.EAGAIN)
	}
	if err := s.setup(); err != nil {
		return nil, errors.Join(err, nl.Close())
	}
	return s, nil
}

func (s *socket) setup() error {
	// An error then does not repeat the request, so that replies stay small.
	if err := s.nl.SetOption(netlink.CapAcknowledge, true); err != nil {
		return fmt.Errorf("set option: %w", err)
	}
	if err := s.nl.SetReadBuffer(1 << 20); err != nil {
		return fmt.Errorf("set read buffer: %w", err)
	}
	raw, err := s.nl.SyscallConn()
	if err != nil {
		return fmt.Errorf("get file descriptor: %w", err)
	}
	s.raw = raw
	return nil
}

// close waits for who uses it.
func (s *socket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.nl.Close()
}

// exchange sends the messages of ops and reads their errors. Only the last one
// asks for an acknowledgement: the kernel works through a send in order and
// answers failures unasked, so that whatever has not failed by then is done. A
// reply lost for want of buffer shows as ENOBUFS.
func (s *socket) exchange(out []byte, ops []op, results []error) error {
	first := s.seq + 1
	for b := out; len(b) > 0; {
		n := int(binary.NativeEndian.Uint32(b))
		flags := binary.NativeEndian.Uint16(b[6:]) &^ unix.NLM_F_ACK
		if n == len(b) {
			flags |= unix.NLM_F_ACK
		}
		binary.NativeEndian.PutUint16(b[6:], flags)
		binary.NativeEndian.PutUint32(b[8:], s.next())
		b = b[n:]
	}
	if err := s.write(out); err != nil {
		return err
	}
	for {
		b, err := s.read()
		if err != nil {
			return err
		}
		for len(b) > 0 {
			var m message
			if m, b, err = nextMessage(b); err != nil {
				return err
			}
			i := int(m.seq - first)
			if m.typ != unix.NLMSG_ERROR || i < 0 || i >= len(ops) {
				continue
			}
			if err := errnoOf(m); err != nil {
				results[i] = fmt.Errorf("%s flow %s: %w", ops[i].verb, ops[i].tuple, err)
			}
			if i == len(ops)-1 {
				return nil
			}
		}
	}
}

func (s *socket) next() uint32 {
	s.seq++
	return s.seq
}

func (s *socket) write(b []byte) error {
	s.out = b
	if err := s.raw.Write(s.send); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if s.err != nil {
		return fmt.Errorf("send: %w", s.err)
	}
	return nil
}

// read returns the next datagram, in a buffer that the next read overwrites.
func (s *socket) read() ([]byte, error) {
	if err := s.raw.Read(s.recv); err != nil {
		return nil, fmt.Errorf("receive: %w", err)
	}
	if s.err != nil {
		return nil, fmt.Errorf("receive: %w", s.err)
	}
	return s.buf[:s.n], nil
}

// errnoOf reads the error of a message of type NLMSG_ERROR or NLMSG_DONE.
func errnoOf(m message) error {
	if len(m.data) < 4 {
		if m.typ == unix.NLMSG_DONE {
			return nil
		}
		return errMalformed
	}
	if e := int32(binary.NativeEndian.Uint32(m.data)); e != 0 {
		return unix.Errno(-e)
	}
	return nil
}

func ignoringEINTR(call func(int, []byte) (int, error), fd int, b []byte) (int, error) {
	for {
		n, err := call(fd, b)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
