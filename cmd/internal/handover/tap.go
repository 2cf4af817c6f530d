package handover

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// tap sees what backends send and hands it out by connection: one socket for a
// whole batch, since sockets of their own would each see all the others'
// packets. It taps every device before any rule: with a bridge and
// net.bridge.bridge-nf-call-iptables=1 a frozen SYN-ACK is dropped at the bridge
// port, before a socket for the protocol IP would see it.
type tap struct {
	file *os.File
	done chan struct{}

	backends []netip.Addr

	mu       sync.Mutex
	peers    map[pair]*peer
	followed []pair
}

type pair struct{ backend, client netip.AddrPort }

// openTap starts to listen for packets from the given addresses, in the network
// namespace of the calling thread.
func openTap(backends []netip.Addr) (*tap, error) {
	// Protocol 0 until the filter is in place: nothing is received before.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := bindTap(fd, backends); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	t := &tap{
		file:     os.NewFile(uintptr(fd), "tap"),
		done:     make(chan struct{}),
		backends: backends,
		peers:    make(map[pair]*peer),
	}
	go t.run()
	return t, nil
}

func bindTap(fd int, backends []netip.Addr) error {
	if err := attach(fd, backends, nil); err != nil {
		return err
	}
	// Else the kernel copies every packet this host sends, only to filter it.
	if err := ignoreOutgoing(fd, true); err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4<<20); err != nil {
		return fmt.Errorf("size receive buffer: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL)}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// attach puts a filter in the place of the one before, if any.
func attach(fd int, backends []netip.Addr, pairs []pair) error {
	prog, err := bpf.Assemble(tapFilter(backends, pairs))
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	raw := make([]unix.SockFilter, len(prog))
	for i, p := range prog {
		raw[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
		&unix.SockFprog{Len: uint16(len(raw)), Filter: &raw[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	return nil
}

func ignoreOutgoing(fd int, on bool) error {
	v := 0
	if on {
		v = 1
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, v); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	return nil
}

func (t *tap) run() {
	defer close(t.done)
	b := make([]byte, 2048)
	for {
		n, err := t.file.Read(b)
		if err != nil {
			return // closed; on anything else attempts run into their deadlines
		}
		s, err := parse(b[:n])
		if err != nil {
			continue
		}
		t.mu.Lock()
		from, to := t.peers[pair{s.src, s.dst}], t.peers[pair{s.dst, s.src}]
		t.mu.Unlock()
		if from != nil {
			from.see(&s)
		}
		if to != nil {
			to.seeClient(&s)
		}
	}
}

// watch registers for what backend sends to client, until forget.
func (t *tap) watch(k pair) *peer {
	p := &peer{wake: make(chan struct{}, 1)}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.peers[k] = p
	return p
}

func (t *tap) forget(k pair) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, k)
	if i := slices.Index(t.followed, k); i >= 0 {
		t.followed = slices.Delete(t.followed, i, i+1)
		_ = t.refilter() // else too much is seen until the tap is closed
	}
}

// follow has the packets of the client seen too, as they leave this host for the
// backend, translated.
func (t *tap) follow(k pair) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.followed) >= maxFilterPairs || slices.Contains(t.followed, k) {
		return nil
	}
	t.followed = append(t.followed, k)
	return t.refilter()
}

func (t *tap) refilter() error {
	rc, err := t.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("refilter: %w", err)
	}
	if cerr := rc.Control(func(fd uintptr) {
		err = errors.Join(
			attach(int(fd), t.backends, t.followed),
			ignoreOutgoing(int(fd), len(t.followed) == 0),
		)
	}); cerr != nil {
		return fmt.Errorf("refilter: %w", cerr)
	}
	return err
}

// close ends the reader. The socket itself is closed on the side: the kernel
// makes that wait for a grace period of several milliseconds.
func (t *tap) close() {
	_ = t.file.SetReadDeadline(time.Unix(1, 0))
	<-t.done
	go t.file.Close()
}

// peer is what has been seen of a backend's side of one connection.
type peer struct {
	wake chan struct{} // holds a token when there is news

	mu   sync.Mutex
	news sighting
}

// sighting sums up segments, so that one seen twice (on a bridge port and on the
// bridge) or missed does no harm.
type sighting struct {
	synack *segment // without data
	reset  bool
	acks   int    // plain ACKs seen
	acked  uint32 // the highest of them, if any
	window uint16 // the largest that came with it
	follow bool   // the client's side has been seen
	client uint32 // the highest it has acknowledged
	room   uint16 // the window that came with it, as on the wire
}

func (p *peer) see(s *segment) {
	p.mu.Lock()
	switch n := &p.news; {
	case s.flags&flagRST != 0:
		n.reset = true
	case s.flags&(flagSYN|flagACK) == flagSYN|flagACK:
		if n.synack == nil {
			c := *s
			c.data = nil
			n.synack = &c
		}
	case s.flags&flagACK != 0:
		switch {
		case n.acks == 0 || before(n.acked, s.ack):
			n.acked, n.window = s.ack, s.window
		case n.acked == s.ack:
			n.window = max(n.window, s.window)
		}
		n.acks++
	}
	p.mu.Unlock()
	p.ring()
}

func (p *peer) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// seeClient takes in what goes the other way, this program's own packets included:
// they acknowledge nothing that the client has not.
func (p *peer) seeClient(s *segment) {
	if s.flags&(flagSYN|flagRST|flagACK) != flagACK {
		return
	}
	p.mu.Lock()
	if n := &p.news; !n.follow || !before(s.ack, n.client) {
		n.follow, n.client, n.room = true, s.ack, s.window
	}
	p.mu.Unlock()
	p.ring()
}

func (p *peer) look() sighting {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.news
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
