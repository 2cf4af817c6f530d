package datagram

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// steady is how long an exchange has to last to be taken for a stream, as by
// conntrack.
const steady = 2 * time.Second

// Exchange carries what a client and its backend send each other: the only way
// for those whom the kernel cannot translate. Like a flow it ends by silence.
type Exchange struct {
	l     *Listener
	flow  flow
	conn  *net.UDPConn
	raw   syscall.RawConn
	begun time.Time
	done  func(in, out uint64)

	single, stream time.Duration // see timeouts

	in, out atomic.Uint64 // bytes from the client, and to it
	spoke   atomic.Int64  // when something was last sent, since begun
	ended   atomic.Bool
}

// Carry passes on what is held of a client, and what it sends from now on, by a
// socket that is connected to a backend and belongs to the listener then, and the
// backend's answers to the client. It ends by itself after the times that
// conntrack gives a flow, when the backend refuses, or when others are too many;
// then what the client sends next is a new client's. done is told once what has
// been carried: nothing if nothing was held under the id. It is called from any
// goroutine.
func (l *Listener) Carry(id uint64, conn *net.UDPConn, done func(in, out uint64)) *Exchange {
	x := &Exchange{l: l, conn: conn, begun: time.Now(), done: done}
	drop := func() {
		_ = conn.Close()
		done(0, 0)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		drop()
		return x
	}
	x.raw = raw
	posted := l.post(func() {
		c := l.store.ids[id]
		if c == nil {
			drop()
			return
		}
		for len(l.exchanges) >= l.store.limits.Exchanges {
			l.part(l.silent())
		}
		x.flow = c.flow
		l.exchanges[c.flow] = x
		for _, d := range c.data {
			x.send(d.data)
		}
		l.store.forget(func(o *client) bool { return o == c })
		l.talks.Go(x.run)
	})
	if !posted {
		drop()
	}
	return x
}

// silent is the exchange in which nothing was said for longest.
func (l *Listener) silent() (silent *Exchange) {
	for _, x := range l.exchanges {
		if silent == nil || x.last().Before(silent.last()) {
			silent = x
		}
	}
	return silent
}

// part ends an exchange. Its client is a new one from now on.
func (l *Listener) part(x *Exchange) {
	if l.exchanges[x.flow] == x {
		delete(l.exchanges, x.flow)
	}
	x.End()
}

// End ends it.
func (x *Exchange) End() {
	x.ended.Store(true)
	_ = x.conn.SetReadDeadline(time.Unix(1, 0)) // wakes run
}

// Moved is how many bytes it has carried so far, to and fro.
func (x *Exchange) Moved() uint64 { return x.in.Load() + x.out.Load() }

func (x *Exchange) last() time.Time { return x.begun.Add(time.Duration(x.spoke.Load())) }

// due is when it ends, if nothing more is said.
func (x *Exchange) due() time.Time {
	if x.out.Load() > 0 && time.Duration(x.spoke.Load()) > steady {
		return x.last().Add(x.stream)
	}
	return x.last().Add(x.single)
}

// send passes a datagram on to the backend.
func (x *Exchange) send(data []byte) {
	var err error
	failed := x.raw.Control(func(fd uintptr) {
		// The first try may tell of one that was refused before.
		if err = unix.Send(int(fd), data, unix.MSG_DONTWAIT); err != nil {
			err = unix.Send(int(fd), data, unix.MSG_DONTWAIT)
		}
	})
	x.spoke.Store(int64(time.Since(x.begun)))
	if errors.Join(failed, err) != nil {
		x.l.count.lost.Add(1)
		return
	}
	x.l.count.passed.Add(1)
	x.in.Add(uint64(len(data)))
}

// run passes answers on until the exchange seems to be over. The listener's
// goroutine, which sends, decides whether it is.
func (x *Exchange) run() {
	x.single, x.stream = timeouts()
	for !x.ended.Load() && time.Now().Before(x.due()) {
		_ = x.conn.SetReadDeadline(x.due())
		if x.ended.Load() {
			break // or else its deadline comes after this one
		}
		var refused error
		err := x.raw.Read(func(fd uintptr) (ready bool) {
			ready, refused = x.receive(int(fd))
			return ready
		})
		if refused != nil || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			x.ended.Store(true)
		}
	}
	over := func() {
		_ = x.conn.Close()
		x.done(x.in.Load(), x.out.Load())
	}
	if !x.l.post(func() {
		if !x.ended.Load() && time.Now().Before(x.due()) {
			x.l.talks.Go(x.run)
			return
		}
		x.l.part(x)
		over()
	}) {
		over()
	}
}

// receive passes on what waits in the socket, and says whether something did.
func (x *Exchange) receive(fd int) (some bool, err error) {
	s := x.l.g.buffer.Get().(*scratch)
	defer x.l.g.buffer.Put(s)
	for range burst {
		n, err := unix.Read(fd, s.data[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			return some, nil
		case err != nil:
			return true, err
		}
		some = true
		x.spoke.Store(int64(time.Since(x.begun)))
		x.out.Add(uint64(n))
		x.l.answer(x.flow, s.data[:n])
	}
	return true, nil
}

// answer sends a client a datagram from the address that it has called.
func (l *Listener) answer(fl flow, data []byte) {
	var to unix.Sockaddr = &unix.SockaddrInet6{Addr: fl.client.Addr().As16(), Port: int(fl.client.Port())}
	from := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: fl.service.Addr().As16()})
	if fl.client.Addr().Is4() {
		to = &unix.SockaddrInet4{Addr: fl.client.Addr().As4(), Port: int(fl.client.Port())}
		from = unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: fl.service.Addr().As4()})
	}
	var err error
	failed := l.raw.Control(func(fd uintptr) { err = unix.Sendmsg(int(fd), data, from, to, unix.MSG_DONTWAIT) })
	if errors.Join(failed, err) != nil {
		l.count.lost.Add(1)
	}
}

// timeouts are how long conntrack remembers a flow of UDP after its last packet,
// and one that is a stream.
func timeouts() (single, stream time.Duration) {
	read := func(name string, usual int) time.Duration {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_udp_timeout" + name)
		if n, bad := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && bad == nil && n > 0 {
			usual = n
		}
		return time.Duration(usual) * time.Second
	}
	return read("", 30), read("_stream", 120)
}
