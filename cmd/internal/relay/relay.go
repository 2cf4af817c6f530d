// Package relay joins two TCP connections when a connection cannot be handed
// over to the kernel for good. The bytes still stay in the kernel: they are
// spliced, not copied.
package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime bounds how long a reset is held back for data that came before
// it; see reset.
const drainTime = 10 * time.Second

// Stats counts the bytes that were passed on.
type Stats struct {
	ToBackend, ToClient int64
}

// PeerError says which side broke a relay off, and how.
type PeerError struct {
	Peer string // "client" or "backend"
	Err  error
}

func (e *PeerError) Error() string { return e.Peer + ": " + e.Err.Error() }

// Unwrap gives the connection's error, such as ECONNRESET.
func (e *PeerError) Unwrap() error { return e.Err }

// Run passes bytes between client and backend until both have ended their
// sides, and owns and closes the two connections.
//
// What one peer does the other sees: the end of one direction leaves the
// other open for as long as it takes, and a reset is passed on as a reset, as
// is a peer that has vanished (found out by keep-alive or by data that is
// never acknowledged). A slow reader slows its sender down. There is no
// time-out otherwise. When ctx is done, both are reset.
//
// The error is nil if both sides ended in order, context.Cause(ctx), or a
// *PeerError. Stats are right in every case, but for bytes of a broken relay
// that were on the way.
func Run(ctx context.Context, client, backend *net.TCPConn) (Stats, error) {
	return RunWith(ctx, nil, client, backend)
}

// RunWith is Run for a backend that expects a [Header]: it is written first,
// before the client has said anything, and not counted.
func RunWith(ctx context.Context, header []byte, client, backend *net.TCPConn) (Stats, error) {
	r := &relay{client: side{TCPConn: client, name: "client"}, backend: side{TCPConn: backend, name: "backend"}}
	for _, c := range []*net.TCPConn{client, backend} {
		// Best effort: on a broken socket the first read says more.
		_ = c.SetDeadline(time.Time{})
		_ = c.SetKeepAliveConfig(keepAlive)
		_ = c.SetNoDelay(true)
	}
	stop := context.AfterFunc(ctx, r.interrupt)
	defer stop()

	var wg sync.WaitGroup
	wg.Go(func() { r.pass(&r.backend, &r.client, header, &r.stats.ToBackend) })
	wg.Go(func() { r.pass(&r.client, &r.backend, nil, &r.stats.ToClient) })
	wg.Wait()

	if r.err == nil {
		// Closing leaves to the kernel what is still to be sent.
		_ = client.Close()
		_ = backend.Close()
		return r.stats, nil
	}
	wg.Go(func() { reset(ctx, client) })
	wg.Go(func() { reset(ctx, backend) })
	wg.Wait()
	if ctx.Err() != nil {
		return r.stats, context.Cause(ctx)
	}
	return r.stats, r.err
}

type relay struct {
	client, backend side
	stats           Stats

	once sync.Once
	err  error // the first
}

// side is one of the two connections.
type side struct {
	*net.TCPConn
	name  string
	ended atomic.Bool // we have ended our direction, or are about to
}

// pass copies one direction, after header. ReadFrom another *net.TCPConn
// splices.
func (r *relay) pass(to, from *side, header []byte, n *int64) {
	var err error
	if len(header) > 0 {
		_, err = to.Write(header)
	}
	if err == nil {
		*n, err = to.ReadFrom(from.TCPConn)
	}
	if err == nil {
		err = from.ending()
	}
	if err == nil {
		to.ended.Store(true)
		err = to.CloseWrite()
	}
	if err != nil {
		r.fail(to, from, err)
	}
}

// fail takes note of the first error and sees to it that the other direction
// ends. Whose error it is the text does not say, for splice reads one
// connection and writes the other, but a broken socket is a closed one.
func (r *relay) fail(to, from *side, err error) {
	toDead, fromDead := to.dead(), from.dead()
	r.once.Do(func() {
		switch {
		case fromDead:
			r.err = &PeerError{Peer: from.name, Err: err}
		case toDead:
			r.err = &PeerError{Peer: to.name, Err: err}
		default:
			r.err = fmt.Errorf("relay: %w", err)
		}
	})
	// What a peer has sent before its reset can still be read, and is passed
	// on: an answer to a request that it did not read to the end. Reading
	// from a dead socket ends by itself.
	if toDead && !fromDead {
		return
	}
	r.interrupt()
}

// interrupt ends both directions. A deadline does that at once, and without
// taking the descriptors away from under a system call.
func (r *relay) interrupt() {
	past := time.Unix(1, 0)
	_ = r.client.SetDeadline(past)
	_ = r.backend.SetDeadline(past)
}

// ending tells an end in order, nil, from a reset that looks like one: the
// kernel reports a reset once, and if that was to a write, reads just end.
func (s *side) ending() error {
	if s.ended.Load() || !s.dead() {
		return nil
	}
	var pending int
	err := control(s.TCPConn, func(fd int) (err error) {
		pending, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		return err
	})
	switch {
	case err != nil:
		return err
	case unix.Errno(pending) == unix.EPIPE:
		return nil // reset, but only after its orderly end
	case pending == 0:
		return unix.ECONNRESET
	}
	return unix.Errno(pending)
}

// dead says whether the connection is over in both directions.
func (s *side) dead() bool {
	info, err := tcpInfo(s.TCPConn)
	return err != nil || info.State == tcpClose
}

const tcpClose = 7 // TCP_CLOSE of net/tcp_states.h

// reset closes c with a RST, after what was passed on before has arrived: the
// reset would otherwise overtake it in the send queue, which is not what a
// client sees whose server answers, and then resets because it did not read
// all that it was sent. The kernel tells nobody when that queue is empty.
func reset(ctx context.Context, c *net.TCPConn) {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	for pause := time.Millisecond; unsent(c) && ctx.Err() == nil; pause = min(2*pause, 100*time.Millisecond) {
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	_ = c.SetLinger(0)
	_ = c.Close()
}

// unsent says whether a living connection has bytes that the peer has not
// acknowledged.
func unsent(c *net.TCPConn) bool {
	if info, err := tcpInfo(c); err != nil || info.State == tcpClose {
		return false
	}
	n := 0
	err := control(c, func(fd int) (err error) {
		n, err = unix.IoctlGetInt(fd, unix.TIOCOUTQ)
		return err
	})
	return err == nil && n > 0
}

// Moved is what a peer has sent and acknowledged so far, in bytes; 0 when it is over.
func Moved(c *net.TCPConn) uint64 {
	info, err := tcpInfo(c)
	if err != nil {
		return 0
	}
	return info.Bytes_received + info.Bytes_acked
}

func tcpInfo(c *net.TCPConn) (info *unix.TCPInfo, err error) {
	err = control(c, func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return os.NewSyscallError("getsockopt", err)
	})
	return info, err
}

func control(c *net.TCPConn, f func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	return errors.Join(raw.Control(func(fd uintptr) { inner = f(int(fd)) }), inner)
}
