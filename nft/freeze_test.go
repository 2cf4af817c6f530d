package nft_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"golang.org/x/sys/unix"
)

// undelivered tells whether data of the client's waits for its acknowledgement,
// or even (where its own host drops it) for its first sending.
func undelivered(t *testing.T, c *conn) bool {
	t.Helper()
	info := tcpInfo(t, c.Conn)
	return info.Unacked > 0 || info.Notsent_bytes > 0
}

func TestFreeze(t *testing.T) {
	t.Parallel()
	l := newLab(t, 0)
	for _, addr := range []string{"192.0.2.10:80", "[2001:db8::10]:80"} {
		serve(t, l.Host, addr, "host")
		apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp(addr): {}})
		for _, from := range []*testenv.NS{l.Client, l.Host} {
			t.Run(from.Name+" "+addr, func(t *testing.T) {
				frozen, other := dial(t, from, "tcp", addr), dial(t, from, "tcp", addr)
				tuples := []nft.Tuple{{Client: frozen.local(), Service: frozen.remote()}}
				freeze := func(timeout time.Duration) {
					t.Helper()
					if err := l.table.Freeze(tuples, timeout); err != nil {
						t.Fatal(err)
					}
				}
				unfreeze := func() {
					t.Helper()
					if err := l.table.Unfreeze(tuples); err != nil {
						t.Fatal(err)
					}
				}
				silent := func(line string) {
					t.Helper()
					if _, err := fmt.Fprintln(frozen, line); err != nil {
						t.Fatal(err)
					}
					for range 3 {
						if err := other.echo("not frozen"); err != nil {
							t.Fatal(err)
						}
					}
					if !undelivered(t, frozen) {
						t.Error("a frozen client's segment was acknowledged")
					}
				}
				freeze(time.Minute)
				freeze(time.Minute) // once more is no error
				silent("one")
				unfreeze()
				if err := frozen.expect("one"); err != nil {
					t.Error(err)
				}
				if err := frozen.echo("two"); err != nil {
					t.Error(err)
				}
				// The kernel ends it if nobody does.
				freeze(300 * time.Millisecond)
				silent("three")
				if err := frozen.expect("three"); err != nil {
					t.Error(err)
				}
				unfreeze()
				// Some have timed out, some have not.
				freeze(10 * time.Millisecond)
				testenv.Eventually(t, patience, func() (bool, string) {
					s := testenv.Ruleset(t, l.Host)
					return !strings.Contains(s, "timeout 10ms expires"), "still frozen"
				})
				tuples = append(tuples, nft.Tuple{Client: other.local(), Service: other.remote()})
				if err := l.table.Freeze(tuples[1:], time.Minute); err != nil {
					t.Fatal(err)
				}
				unfreeze()
				if s := testenv.Ruleset(t, l.Host); strings.Contains(s, "timeout 1m expires") {
					t.Error("still frozen")
				}
				if err := other.echo("thawed"); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestFreezeInvalid(t *testing.T) {
	t.Parallel()
	l := open(t, testenv.NewNS(t, "freeze"))
	a, b := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("[2001:db8::1]:1")
	for _, tu := range []nft.Tuple{{}, {Client: a}, {Service: a}, {Client: a, Service: b}, {Client: a, Service: a, Backend: b}} {
		if l.Freeze([]nft.Tuple{tu}, time.Second) == nil || l.Unfreeze([]nft.Tuple{tu}) == nil {
			t.Errorf("%v accepted", tu)
		}
	}
	if l.Freeze([]nft.Tuple{{Client: a, Service: a}}, 0) == nil {
		t.Error("a freeze for ever accepted")
	}
	if err := l.Unfreeze([]nft.Tuple{{Client: a, Service: a}}); err != nil {
		t.Error(err)
	}
	if err := l.Freeze(nil, time.Second); err != nil {
		t.Error(err)
	}
}

// A segment is a TCP header without options or data.
type segment struct {
	src, dst netip.AddrPort
	seq, ack uint32
	flags    byte
}

func (s segment) bytes() []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, s.src.Port())
	binary.BigEndian.PutUint16(b[2:], s.dst.Port())
	binary.BigEndian.PutUint32(b[4:], s.seq)
	binary.BigEndian.PutUint32(b[8:], s.ack)
	b[12], b[13] = 5<<4, s.flags
	binary.BigEndian.PutUint16(b[14:], 1024)
	pseudo := append(append(s.src.Addr().AsSlice(), s.dst.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(b)))
	var sum uint32
	for p := append(pseudo, b...); len(p) > 1; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	return b
}

// send sends the segment, whosever address its source is, with a packet mark.
func (s segment) send(t *testing.T, ns *testenv.NS, mark int) {
	t.Helper()
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark); err != nil {
			return err
		}
		// The kernel fills in length, identification and checksum.
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0}
		ip = append(append(ip, s.src.Addr().AsSlice()...), s.dst.Addr().AsSlice()...)
		return unix.Sendto(fd, append(ip, s.bytes()...), 0, &unix.SockaddrInet4{Addr: s.dst.Addr().As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// String leaves out the numbers, which are not the same twice.
func (s segment) String() string { return fmt.Sprintf("%s > %s %#x", s.src, s.dst, s.flags) }

// hear reports the TCP segments that reach the namespace.
func hear(t *testing.T, ns *testenv.NS, at netip.Addr) <-chan segment {
	t.Helper()
	var c net.PacketConn
	err := ns.Do(func() (err error) {
		c, err = net.ListenPacket("ip4:tcp", at.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	heard := make(chan segment, 1000)
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			if n < 20 {
				continue
			}
			src, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
			heard <- segment{
				src: netip.AddrPortFrom(src.Unmap(), binary.BigEndian.Uint16(buf)),
				dst: netip.AddrPortFrom(at, binary.BigEndian.Uint16(buf[2:])),
				seq: binary.BigEndian.Uint32(buf[4:]), ack: binary.BigEndian.Uint32(buf[8:]), flags: buf[13],
			}
		}
	}()
	return heard
}

// drain returns what was heard so far.
func drain(heard <-chan segment) (got []segment) {
	for {
		select {
		case s := <-heard:
			got = append(got, s)
		default:
			return got
		}
	}
}

const (
	syn = 0x02
	rst = 0x04
	ack = 0x10
)

// TestInvalid: a segment outside the window is dropped in both directions. The
// second half takes the rules away, to show that they are what does it.
func TestInvalid(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): l.to4(0)})
	heard := hear(t, l.Client, l.ClientAddr4)
	b := l.net.Backends[0]
	backend := netip.AddrPortFrom(b.Addr4, 8080)
	for _, guarded := range []bool{true, false} {
		if !guarded {
			l.Host.Run(t, "nft", "flush chain inet sluice filter-prerouting")
		}
		c := dial(t, l.Client, "tcp", "192.0.2.10:80")
		var last segment
		for _, s := range drain(heard) {
			if s.dst == c.local() {
				last = s
			}
		}
		if last.ack == 0 {
			t.Fatal("the server's segments were not heard")
		}
		// Conntrack lets old data pass; only what lies ahead is invalid.
		const ahead = 1 << 29
		segment{src: c.local(), dst: c.remote(), seq: last.ack + ahead, ack: last.seq, flags: ack}.send(t, l.Client, 0)
		segment{src: backend, dst: c.local(), seq: last.seq + ahead, ack: last.ack, flags: ack}.send(t, b.NS, 0)
		if guarded {
			for range 3 {
				if err := c.echo("alive"); err != nil {
					t.Error(err)
				}
			}
			for _, s := range drain(heard) {
				if s.src == backend || s.flags&rst != 0 {
					t.Errorf("the client heard %s", s)
				}
			}
			continue
		}
		var reset, stranger bool
		testenv.Eventually(t, patience, func() (bool, string) {
			for _, s := range drain(heard) {
				reset = reset || s.src == c.remote() && s.flags&rst != 0
				stranger = stranger || s.src == backend
			}
			return reset && stranger, fmt.Sprintf("without the rules: reset by the host %v, segment from the backend %v", reset, stranger)
		})
	}
}

// TestReplay: the daemon's packets in a client's name are not tracked, and the
// backend's answer to them does not reach the client.
func TestReplay(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	apply(t, l.table, map[nft.Endpoint]*nft.Service{tcp("192.0.2.10:80"): l.to4(0)})
	heard := hear(t, l.Client, l.ClientAddr4)
	backend := l.to4(0).Slots[0]
	begin := func(port uint16, mark int) netip.AddrPort {
		t.Helper()
		client := netip.AddrPortFrom(l.ClientAddr4, port)
		segment{src: client, dst: backend, seq: 1000, flags: syn}.send(t, l.Host, mark)
		return client
	}
	tracked := func(client netip.AddrPort) bool {
		for _, f := range testenv.Conntrack(t, l.Host) {
			if f.Orig.Src == client {
				return true
			}
		}
		return false
	}
	tu := nft.Tuple{
		Client:  netip.AddrPortFrom(l.ClientAddr4, 40001),
		Service: netip.MustParseAddrPort("192.0.2.10:80"),
		Backend: backend,
	}
	if err := l.table.Freeze([]nft.Tuple{tu}, time.Minute); err != nil {
		t.Fatal(err)
	}
	begin(40001, nft.PacketMark)
	testenv.Eventually(t, patience, func() (bool, string) {
		s := l.net.Backends[0].Run(t, "ss", "-Htn", "state", "syn-recv")
		return strings.Contains(s, "[::ffff:10.99.0.2]:40001"), "no half-open connection at the backend: " + s
	})
	// One that is not frozen shows that the way is open, and that an answer
	// would have come by now.
	open := begin(40002, 0)
	for came := false; !came; {
		select {
		case s := <-heard:
			came = s.src == backend && s.dst == open && s.flags == syn|ack
			if s.dst == tu.Client {
				t.Errorf("the client heard %s", s)
			}
		case <-time.After(patience):
			t.Fatal("no answer without a freeze")
		}
	}
	if !tracked(open) {
		t.Error("a packet without the mark is not tracked")
	}
	if tracked(tu.Client) {
		t.Error("a packet with the mark is tracked")
	}
	for _, s := range drain(heard) {
		if s.dst == tu.Client {
			t.Errorf("the client heard %s", s)
		}
	}
}
