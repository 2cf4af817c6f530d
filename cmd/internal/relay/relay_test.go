package relay

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

const patience = 20 * time.Second

// rig is a relay between two peers, in a namespace of its own.
type rig struct {
	*testing.T
	client, backend *net.TCPConn // the peers' ends
	cancel          context.CancelCauseFunc
	done            chan struct{}
	stats           Stats
	err             error
}

func newRig(t *testing.T, options ...func(fd int)) *rig {
	t.Helper()
	return newRigWith(t, nil, options...)
}

func newRigWith(t *testing.T, header []byte, options ...func(fd int)) *rig {
	t.Helper()
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	r := &rig{T: t, done: make(chan struct{})}
	var near, far *net.TCPConn
	r.client, near = pair(t, ns, options...)
	r.backend, far = pair(t, ns, options...)
	ctx, cancel := context.WithCancelCause(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		r.stats, r.err = RunWith(ctx, header, near, far)
	}()
	t.Cleanup(func() {
		cancel(errors.New("test is over"))
		r.finished()
	})
	deadline := time.Now().Add(2 * patience)
	for _, c := range []*net.TCPConn{r.client, r.backend} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// pair connects a peer to a socket accepted as the daemon has it: a bare,
// non-blocking descriptor.
func pair(t testing.TB, ns *testenv.NS, options ...func(fd int)) (peer, accepted *net.TCPConn) {
	t.Helper()
	var fd int
	err := ns.Do(func() error {
		ln, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			return err
		}
		defer unix.Close(ln)
		for _, o := range options {
			o(ln)
		}
		if err := errors.Join(unix.Bind(ln, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(ln, 1)); err != nil {
			return err
		}
		sa, err := unix.Getsockname(ln)
		if err != nil {
			return err
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))
		if peer, err = Dial(t.Context(), addr, patience); err != nil {
			return err
		}
		fd, _, err = unix.Accept4(ln, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	if accepted, err = FromFD(fd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })
	return peer, accepted
}

func (r *rig) finished() {
	r.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		r.Fatal("relay goes on")
	}
}

func (r *rig) must(err error) {
	r.Helper()
	if err != nil {
		r.Fatal(err)
	}
}

func (r *rig) write(c net.Conn, s string) {
	r.Helper()
	_, err := io.WriteString(c, s)
	r.must(err)
}

func (r *rig) read(c net.Conn, want string) {
	r.Helper()
	b := make([]byte, len(want))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != want {
		r.Fatalf("read %q, %v, want %q", b, err, want)
	}
}

func (r *rig) readEnd(c net.Conn, want error) {
	r.Helper()
	if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, want) {
		r.Fatalf("read %d bytes, %v, want %v", n, err, want)
	}
}

func (r *rig) rst(c *net.TCPConn) {
	r.Helper()
	r.must(c.SetLinger(0))
	r.must(c.Close())
}

// queue waits until a socket's queue has a length.
func (r *rig) queue(c *net.TCPConn, which uint, want int) {
	r.Helper()
	testenv.Eventually(r, patience, func() (bool, string) {
		var n int
		err := control(c, func(fd int) (err error) { n, err = unix.IoctlGetInt(fd, which); return err })
		return err == nil && n == want, fmt.Sprintf("%d bytes queued (%v), want %d", n, err, want)
	})
}

// sides lets a test run from either end.
func sides(t *testing.T, f func(t *testing.T, r *rig, a, b *net.TCPConn, name string)) {
	t.Parallel()
	t.Run("client", func(t *testing.T) { r := newRig(t); f(t, r, r.client, r.backend, "client") })
	t.Run("backend", func(t *testing.T) { r := newRig(t); f(t, r, r.backend, r.client, "backend") })
}

// One side ends; the other goes on for as long as it likes.
func TestHalfClose(t *testing.T) {
	sides(t, func(t *testing.T, r *rig, a, b *net.TCPConn, _ string) {
		r.write(a, "question")
		r.read(b, "question")
		r.must(a.CloseWrite())
		r.readEnd(b, io.EOF)
		for i := range 10 {
			s := fmt.Sprintf("part %d of the answer", i)
			r.write(b, s)
			r.read(a, s)
		}
		select {
		case <-r.done:
			t.Fatalf("relay is over: %v", r.err)
		default:
		}
		r.must(b.CloseWrite())
		r.readEnd(a, io.EOF)
		r.finished()
		r.must(r.err)
		if up, down := r.stats.ToBackend, r.stats.ToClient; up+down != int64(len("question")+10*len("part 0 of the answer")) {
			t.Errorf("%d to backend, %d to client", up, down)
		}
	})
}

func TestReset(t *testing.T) {
	sides(t, func(t *testing.T, r *rig, a, b *net.TCPConn, name string) {
		r.write(a, "hello")
		r.read(b, "hello")
		r.rst(a)
		r.readEnd(b, unix.ECONNRESET)
		r.finished()
		var p *PeerError
		if !errors.As(r.err, &p) || p.Peer != name || !errors.Is(r.err, unix.ECONNRESET) {
			t.Errorf("error %v, want reset by %s", r.err, name)
		}
	})
}

// After its end in order a side can still be reset.
func TestResetAfterHalfClose(t *testing.T) {
	sides(t, func(t *testing.T, r *rig, a, b *net.TCPConn, name string) {
		r.must(a.CloseWrite())
		r.readEnd(b, io.EOF)
		r.rst(a)
		// Nobody reads from a any more: writing finds out.
		var err error
		for err == nil {
			_, err = b.Write([]byte("x"))
		}
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Fatalf("write: %v, want reset", err)
		}
		r.finished()
		var p *PeerError
		if !errors.As(r.err, &p) || p.Peer != name {
			t.Errorf("error %v, want one of %s", r.err, name)
		}
	})
}

// A peer answers and closes without having read what it was sent, which makes
// its kernel send a reset. The whole answer arrives all the same, and then a
// reset: not an end in order, which would make a short answer look complete.
func TestAnswerBeforeReset(t *testing.T) {
	sides(t, func(t *testing.T, r *rig, a, b *net.TCPConn, _ string) {
		const question = 1 << 16
		_, err := a.Write(make([]byte, question))
		r.must(err)
		r.queue(b, unix.TIOCINQ, question)
		answer := bytes.Repeat([]byte("answer "), 20000)
		_, err = b.Write(answer)
		r.must(err)
		// The reset throws away what the kernel has not sent yet.
		r.queue(b, unix.TIOCOUTQ, 0)
		r.must(b.Close())
		got := make([]byte, len(answer))
		if n, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("read %d bytes of %d: %v", n, len(answer), err)
		}
		r.readEnd(a, unix.ECONNRESET)
		r.finished()
		if r.err == nil {
			t.Error("relay saw no error")
		}
	})
}

// The same while the other side is still sending, so that it is a write that
// finds the reset.
func TestAnswerBeforeResetUnderLoad(t *testing.T) {
	sides(t, func(t *testing.T, r *rig, a, b *net.TCPConn, _ string) {
		sent := make(chan error, 1)
		go func() {
			chunk := make([]byte, 1<<16)
			for {
				if _, err := a.Write(chunk); err != nil {
					sent <- err
					return
				}
			}
		}()
		_, err := io.ReadFull(b, make([]byte, 1<<20))
		r.must(err)
		answer := bytes.Repeat([]byte("answer "), 10000)
		_, err = b.Write(answer)
		r.must(err)
		// The reset throws away what the kernel has not sent yet.
		r.queue(b, unix.TIOCOUTQ, 0)
		r.must(b.Close())
		got := make([]byte, len(answer))
		if n, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, answer) {
			t.Fatalf("read %d bytes of %d: %v", n, len(answer), err)
		}
		if err := <-sent; !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("sender saw %v, want a reset", err)
		}
		// The kernel tells of the reset once, and the sender may have been told.
		if n, err := a.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("read %d bytes more, %v", n, err)
		}
		r.finished()
		if r.err == nil {
			t.Error("relay saw no error")
		}
	})
}

func TestIntegrity(t *testing.T) {
	r := newRig(t)
	const size = 100 << 20
	type result struct {
		sum []byte
		err error
	}
	send := func(c *net.TCPConn, seed uint64) result {
		h := sha256.New()
		_, err := io.Copy(c, io.TeeReader(testenv.Bytes(size, seed), h))
		return result{h.Sum(nil), errors.Join(err, c.CloseWrite())}
	}
	receive := func(c *net.TCPConn) result {
		h := sha256.New()
		n, err := io.Copy(h, c)
		if err == nil && n != size {
			err = fmt.Errorf("%d bytes", n)
		}
		return result{h.Sum(nil), err}
	}
	results := make([]chan result, 4)
	for i, f := range []func() result{
		func() result { return send(r.client, 1) },
		func() result { return receive(r.backend) },
		func() result { return send(r.backend, 2) },
		func() result { return receive(r.client) },
	} {
		results[i] = make(chan result, 1)
		go func() { results[i] <- f() }()
	}
	for i := 0; i < 4; i += 2 {
		sent, got := <-results[i], <-results[i+1]
		if sent.err != nil || got.err != nil || !bytes.Equal(sent.sum, got.sum) {
			t.Errorf("direction %d: sent %x %v, got %x %v", i/2, sent.sum, sent.err, got.sum, got.err)
		}
	}
	r.finished()
	r.must(r.err)
	if r.stats != (Stats{size, size}) {
		t.Errorf("%+v, want %d both ways", r.stats, size)
	}
}

// A reader that does not read stops its sender, the other direction goes on,
// and nothing is lost when it reads on.
func TestBackPressure(t *testing.T) {
	r := newRig(t, func(fd int) {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 64<<10)
	})
	r.must(r.backend.SetReadBuffer(64 << 10))
	const most = 64 << 20 // far more than all the buffers on the way
	sum := sha256.New()
	r.must(r.client.SetWriteDeadline(time.Now().Add(time.Second)))
	n, err := io.Copy(countWriter{r.client, sum}, testenv.Bytes(most, 3))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes to a reader that does not read: %v", n, err)
	}
	r.write(r.backend, "the other way")
	r.read(r.client, "the other way")
	r.must(r.client.CloseWrite())
	got := sha256.New()
	m, err := io.Copy(got, r.backend)
	r.must(err)
	r.must(r.backend.Close())
	r.finished()
	r.must(r.err)
	if r.stats.ToBackend != m || !bytes.Equal(sum.Sum(nil), got.Sum(nil)) {
		t.Errorf("read %d bytes, relayed %d: contents differ from what was written", m, r.stats.ToBackend)
	}
}

// countWriter hashes what was really written, also of a short write.
type countWriter struct {
	w, h io.Writer
}

func (c countWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.h.Write(b[:n])
	return n, err
}

func TestCancel(t *testing.T) {
	r := newRig(t)
	r.write(r.client, "hello")
	r.read(r.backend, "hello")
	cause := errors.New("shutting down")
	r.cancel(cause)
	r.readEnd(r.client, unix.ECONNRESET)
	r.readEnd(r.backend, unix.ECONNRESET)
	r.finished()
	if !errors.Is(r.err, cause) {
		t.Errorf("error %v, want %v", r.err, cause)
	}
	if r.stats != (Stats{ToBackend: 5}) {
		t.Errorf("%+v", r.stats)
	}
}

// Cancelled while a side is blocked in writing, with its peer's buffers full.
func TestCancelBlocked(t *testing.T) {
	r := newRig(t)
	r.must(r.client.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)))
	if _, err := io.Copy(r.client, testenv.Bytes(1<<30, 4)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("write: %v", err)
	}
	r.cancel(context.Canceled)
	r.finished()
	if !errors.Is(r.err, context.Canceled) {
		t.Errorf("error %v", r.err)
	}
}

// Deadlines left over from whoever held the connection before do not count.
func TestOldDeadline(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	client, near := pair(t, ns)
	backend, far := pair(t, ns)
	for _, c := range []*net.TCPConn{near, far} {
		if err := c.SetDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 1)
	go func() {
		_, err := Run(context.Background(), near, far)
		done <- err
	}()
	client.CloseWrite()
	backend.CloseWrite()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestKeepAlive(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	_, near := pair(t, ns)
	_, far := pair(t, ns)
	// What Run is to set must not be there already.
	if err := near.SetKeepAlive(false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); Run(ctx, near, far) }()
	get := func(c *net.TCPConn, level, name int) (v int) {
		control(c, func(fd int) (err error) { v, err = unix.GetsockoptInt(fd, level, name); return err })
		return v
	}
	for _, c := range []*net.TCPConn{near, far} {
		testenv.Eventually(t, patience, func() (bool, string) {
			on, idle := get(c, unix.SOL_SOCKET, unix.SO_KEEPALIVE), get(c, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
			every, count := get(c, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL), get(c, unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
			return on == 1 && idle == 30 && every == 10 && count == 6, fmt.Sprintf("on %d idle %d every %d count %d", on, idle, every, count)
		})
	}
	cancel()
	<-done
}

func TestDial(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	in := func(ctx context.Context, addr string, timeout time.Duration) (c *net.TCPConn, err error) {
		err = ns.Do(func() (err error) {
			c, err = Dial(ctx, netip.MustParseAddrPort(addr), timeout)
			return err
		})
		return c, err
	}
	if _, err := in(t.Context(), "127.0.0.1:1", patience); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("nobody there: %v, want ECONNREFUSED", err)
	}
	// A neighbour that never answers: nothing but the time-out ends it.
	ns.IP(t, "link add silent type veth peer name other", "addr add 192.0.2.1/24 dev silent", "link set silent up", "link set other up")
	var timeout net.Error
	if _, err := in(t.Context(), "192.0.2.9:80", 50*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("silence: %v, want a time-out", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := in(ctx, "192.0.2.9:80", 0); err == nil {
		t.Error("connected to silence")
	}
	peer, _ := pair(t, ns)
	if mptcp, err := peer.MultipathTCP(); mptcp || err != nil {
		t.Errorf("multipath %v, %v", mptcp, err)
	}
}

func TestFromFD(t *testing.T) {
	t.Parallel()
	if _, err := FromFD(-1); err == nil {
		t.Error("made a connection of -1")
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	if _, err := FromFD(p[1]); err == nil {
		t.Error("made a connection of a pipe")
	}
	// It was closed all the same: the reading end has nobody left, once
	// processes that other tests are just starting execute their programs.
	end := []unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(end, int(patience.Milliseconds())); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if n, err := unix.Read(p[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("read %d, %v, want the end", n, err)
	}
}

// BenchmarkRun is the throughput of one direction.
func BenchmarkRun(b *testing.B) {
	ns := testenv.NewNS(b, "host")
	client, near := pair(b, ns)
	backend, far := pair(b, ns)
	go Run(b.Context(), near, far)
	go io.Copy(client, zeros{})
	buf := make([]byte, 1<<20)
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		if _, err := io.ReadFull(backend, buf); err != nil {
			b.Fatal(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
