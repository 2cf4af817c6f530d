package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sluice/nft"
	"sluice/testenv"
)

// flowBatch is how many packets are sent and timed together.
const flowBatch = 1000

// flow measures what the kernel does for a packet on its way through the host:
// for one that begins a flow, for later ones, and for those on the way back.
// Packets are put on a wire in one namespace and taken off in another; all that
// happens in between happens within the sending thread's system call, and so
// that thread's own processor time is the figure, whatever else runs on the
// machine. Each way has a host of its own; they take turns.
func flow(ctx context.Context, t testenv.TB, r *report, sizes []int, rounds int) {
	ways := []*way{newWay(t, "routed, no translation", routed), newWay(t, "one dnat rule", oneRule)}
	const plain = 2
	for _, slots := range []int{1, 2} {
		for _, n := range sizes {
			ways = append(ways, newWay(t, fmt.Sprintf("sluice, %d of %d services", slots, n), throughTable(slots, n)))
		}
	}
	for _, w := range ways {
		for range 2 { // neighbours, caches
			w.round(t)
		}
		w.got = [3][]float64{}
	}
	for i := range rounds {
		if ctx.Err() != nil {
			t.Fatalf("interrupted")
		}
		for j := range ways {
			ways[(i+j)%len(ways)].round(t)
		}
	}
	r.part(fmt.Sprintf("processor time for a packet through the host, best of %d, and without: by one dnat rule", rounds))
	nano := func(d float64) string { return fmt.Sprintf("%.0f ns", d) }
	for kind, name := range []string{"a SYN, ", "a later packet, ", "a packet back, "} {
		floor := slices.Min(ways[1].got[kind])
		for _, w := range ways {
			n := slices.Min(w.got[kind])
			r.row(name+w.name, nano(n), nano(floor), nano(n-floor), "")
		}
		for i, w := range ways[plain:] {
			few := ways[plain+i-i%len(sizes)]
			if w == few {
				continue
			}
			var ratio []float64
			for k, n := range w.got[kind] {
				ratio = append(ratio, few.got[kind][k]/n)
			}
			r.ratio(fmt.Sprintf("  speed of %s, against %d", w.name, sizes[0]), "", "", ratio, ">= 0.97")
		}
	}
}

// way is one way through a host of its own.
type way struct {
	name        string
	lab         *testenv.Lab
	there, back sender       // of the client, and of the backend
	port        uint16       // of the last flow's client
	host        int          // of its address
	got         [3][]float64 // nanoseconds, of each kind of packet
}

// sender puts one frame on the wire again and again.
type sender struct {
	fd    int
	frame []byte
}

func (s *sender) send() error {
	_, err := unix.Write(s.fd, s.frame)
	return err
}

// setting prepares a host and says where its packets are to be sent.
type setting func(t testenv.TB, host *testenv.NS, backend netip.AddrPort) netip.AddrPort

func routed(t testenv.TB, host *testenv.NS, backend netip.AddrPort) netip.AddrPort {
	t.Helper()
	host.RunInput(t, "table inet seen { chain forward { type filter hook forward priority 0; ct state new accept; }; }", "nft", "-f", "-")
	return backend
}

func oneRule(t testenv.TB, host *testenv.NS, backend netip.AddrPort) netip.AddrPort {
	t.Helper()
	at := endpoint(0)
	host.RunInput(t, fmt.Sprintf("table ip one { chain prerouting { type nat hook prerouting priority dstnat; ip daddr %s tcp dport %d dnat to %s; }; }",
		at.Addr, at.Port, backend), "nft", "-f", "-")
	return netip.AddrPortFrom(at.Addr, at.Port)
}

func throughTable(slots, services int) setting {
	return func(t testenv.TB, host *testenv.NS, to netip.AddrPort) netip.AddrPort {
		t.Helper()
		tab := openTable(t, host)
		defer tab.Close()
		hot := services / 2
		all := make(map[nft.Endpoint]*nft.Service, services)
		for i := range services {
			s := &nft.Service{}
			for j := range slots {
				b := backend(i, j)
				if i == hot {
					b = to
				}
				s.Slots = append(s.Slots, b)
			}
			all[endpoint(i)] = s
		}
		// First, so that the measured one has a lane.
		for _, part := range []map[nft.Endpoint]*nft.Service{{endpoint(hot): all[endpoint(hot)]}, all} {
			if err := tab.Apply(part); err != nil {
				t.Fatalf("fill table: %v", err)
			}
		}
		return netip.AddrPortFrom(endpoint(hot).Addr, endpoint(hot).Port)
	}
}

func newWay(t testenv.TB, name string, set setting) *way {
	t.Helper()
	w := &way{name: name, lab: testenv.NewLab(t)}
	host, back := w.lab.Host, testenv.NewBackendNet(t, w.lab.Host, 1).Backends[0]
	// Nothing answers, so that nothing but the way there is measured.
	for _, ns := range []*testenv.NS{back.NS, w.lab.Client} {
		ns.RunInput(t, "table inet sink { chain prerouting { type filter hook prerouting priority -400; drop; }; }", "nft", "-f", "-")
	}
	host.Sysctl(t, "net.netfilter.nf_conntrack_checksum", "0") // of packets that are not worth one
	container := netip.AddrPortFrom(back.Addr4, 8080)
	to := set(t, host, container)

	client, backend := mac(t, w.lab.Client, "eth0"), mac(t, back.NS, "eth0")
	host.Run(t, "ip", "neigh", "replace", back.Addr4.String(), "lladdr", backend.String(), "dev", "backends0", "nud", "permanent")
	for i := range hosts {
		host.Run(t, "ip", "neigh", "replace", clientAddr(i).String(), "lladdr", client.String(), "dev", "eth0", "nud", "permanent")
	}
	from := netip.AddrPortFrom(clientAddr(0), 0)
	w.there = sender{wire(t, w.lab.Client), frame(client, mac(t, host, "eth0"), from, to)}
	w.back = sender{wire(t, back.NS), frame(backend, mac(t, host, "backends0"), container, from)}
	return w
}

// hosts is how many addresses the clients have.
const hosts = 20

func clientAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(10 + i)}) }

func mac(t testenv.TB, ns *testenv.NS, dev string) (addr net.HardwareAddr) {
	t.Helper()
	err := ns.Do(func() error {
		d, err := net.InterfaceByName(dev)
		if err == nil {
			addr = d.HardwareAddr
		}
		return err
	})
	if err != nil {
		t.Fatalf("address of %s: %v", dev, err)
	}
	return addr
}

// wire opens a socket that puts frames on a namespace's wire, past all queues.
func wire(t testenv.TB, ns *testenv.NS) (fd int) {
	t.Helper()
	err := ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		const qdiscBypass = 20 // PACKET_QDISC_BYPASS
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, qdiscBypass, 1); err != nil {
			return err
		}
		dev, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: dev.Index})
	})
	if err != nil {
		t.Fatalf("open packet socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

const (
	ipAt, tcpAt  = 14, 34
	srcAt, dstAt = ipAt + 12, ipAt + 16
	tcpFlagsAt   = tcpAt + 13
)

// frame is an IPv4 TCP segment with 20 bytes of payload, without a checksum of
// TCP.
func frame(from, to net.HardwareAddr, src, dst netip.AddrPort) []byte {
	b := make([]byte, tcpAt+20+20)
	copy(b, to)
	copy(b[6:], from)
	b[12], b[13] = 8, 0 // IPv4
	ip := b[ipAt:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	ip[3] = byte(len(b) - ipAt)
	tcp := b[tcpAt:]
	tcp[7], tcp[11] = 1, 1        // sequence, acknowledgement
	tcp[12] = 5 << 4              // a header of five words
	tcp[14], tcp[15] = 0xff, 0xff // window
	address(b, srcAt, tcpAt, src)
	address(b, dstAt, tcpAt+2, dst)
	return b
}

// address writes one end into the frame and mends the header's checksum.
func address(b []byte, at, portAt int, a netip.AddrPort) {
	addr := a.Addr().As4()
	copy(b[at:], addr[:])
	binary.BigEndian.PutUint16(b[portAt:], a.Port())
	ip := b[ipAt:tcpAt]
	ip[10], ip[11] = 0, 0
	sum := uint32(0)
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum)) //nolint:gosec // the carry is in
}

// next gives the flow another client.
func (w *way) next() {
	if w.port++; w.port < 1024 {
		w.port = 1024
		w.host = (w.host + 1) % hosts
	}
	client := netip.AddrPortFrom(clientAddr(w.host), w.port)
	address(w.there.frame, srcAt, tcpAt, client)
	address(w.back.frame, dstAt, tcpAt+2, client)
}

// round sends a batch of each kind.
func (w *way) round(t testenv.TB) {
	t.Helper()
	const syn, ack = 0x02, 0x10
	// Nothing is left of the flows before; and nothing has to be made room for.
	w.lab.Host.Run(t, "conntrack", "--flush")
	w.there.frame[tcpFlagsAt] = syn
	fresh := w.there.batch(t, w.next)
	w.lab.Host.Run(t, "conntrack", "--flush")
	// A segment from the midst of a connection makes a flow too, and one back
	// makes it an established one.
	w.there.frame[tcpFlagsAt], w.back.frame[tcpFlagsAt] = ack, ack
	w.next()
	for _, s := range []*sender{&w.there, &w.back} {
		if err := s.send(); err != nil {
			t.Fatalf("send packet: %v", err)
		}
	}
	later := w.there.batch(t, func() {})
	back := w.back.batch(t, func() {})
	for i, n := range []float64{fresh, later, back} {
		w.got[i] = append(w.got[i], n)
	}
}

// batch sends one packet after the other and returns nanoseconds for each.
func (s *sender) batch(t testenv.TB, before func()) float64 {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	begin := threadTime()
	for range flowBatch {
		before()
		if err := s.send(); err != nil {
			t.Fatalf("send packet: %v", err)
		}
	}
	return float64((threadTime() - begin).Nanoseconds()) / flowBatch
}

// threadTime is the processor time that the calling thread has used.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) // cannot fail
	return time.Duration(ts.Nano())
}

// interval is where the median lies, of whatever the values are taken from,
// with a certainty of 95 %: between two of the values in order (binomial, by its
// normal approximation).
func interval(all []float64) (lo, hi float64) {
	all = slices.Sorted(slices.Values(all))
	n := float64(len(all))
	d := 0.98 * math.Sqrt(n)
	return all[int(max(math.Floor(n/2-d), 0))], all[int(min(math.Ceil(n/2+d), n-1))]
}
