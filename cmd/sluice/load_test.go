package main

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/admin"
	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestLoad: of thousands of connections, while as many come and go, none is
// counted twice or left out.
func TestLoad(t *testing.T) {
	t.Parallel()
	const held, passing = 5_000, 2_500
	h := newHost(t)
	d := h.start(t, h.configure(t, web("min = 2\nmax = 2\nflows_per_replica = 100000", "", "")))
	d.untilReady(t, "web", 2)
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	dialer := net.Dialer{Timeout: patient}
	dialer.SetMultipathTCP(false)
	err := h.Client.Do(func() error {
		for i := range held + passing {
			c, err := dialer.Dial("tcp", address+":80")
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
			// Its end is to depend on nobody else: a container may not have the
			// descriptors to accept and close them all.
			if err := c.(*net.TCPConn).SetLinger(0); err != nil {
				return err
			}
			if i%3 == 2 { // every third does not stay
				_ = c.Close()
				continue
			}
			conns = append(conns, c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(conns) != held {
		t.Fatalf("%d connections", len(conns))
	}
	st := d.until(t, "the count", func(st control.ServiceStatus) bool { return st.Flows == held })
	// Those that were reset are in the table for another 10 s.
	if all, live := h.tracked(t, unix.IPPROTO_TCP, netip.AddrPort{}); live != held {
		t.Errorf("conntrack has %d live flows of %v", live, all.flows)
	}
	// Each is counted, or, should events have been lost, found by a dump.
	if st.FlowsTotal != held+passing {
		t.Errorf("%d flows so far, %d were made", st.FlowsTotal, held+passing)
	}
	t.Logf("%v resyncs", h.metrics(t)["sluice_conntrack_resyncs_total"])
	for _, c := range conns {
		_ = c.Close()
	}
	st = d.until(t, "the end of all", func(st control.ServiceStatus) bool { return st.Flows == 0 })
	if st.FlowsTotal != held+passing || st.Ready != 2 {
		t.Errorf("in the end: %+v", st)
	}
}

// TestEventsLost: a daemon that was kept from running until the kernel had no
// room for more events, and so has heard neither of the beginning of the flows
// that are there nor of the end of others, harms none and counts right again.
func TestEventsLost(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.Sysctl(t, "net.netfilter.nf_conntrack_udp_timeout", "600")
	h.Host.IP(t, "route add 198.18.0.0/15 via "+h.ClientAddr4.String())
	sink, err := h.Host.ListenPacket("udp", h.HostAddr4.String()+":9999")
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	flood := fmt.Sprintf("[service.flood]\nlisten = [\"%s:53/udp\"]\nhealth = { type = \"none\" }\n[[service.flood.backend]]\naddress = \"%s:9999\"\n",
		address, h.HostAddr4)
	d := h.start(t, h.configure(t, web(quick+"max = 2\nflows_per_replica = 4", "", "[service.web.drain]\ntimeout = \"5m\"")+flood))
	d.untilReady(t, "flood", 1)
	status := func(service string) control.ServiceStatus {
		t.Helper()
		st, err := admin.Dial(h.admin()).Status(t.Context(), service)
		if err != nil {
			t.Fatal(err)
		}
		return st.Services[0]
	}
	var heard []net.Conn
	for range 8 {
		heard = append(heard, h.hold(t))
	}
	testenv.Eventually(t, patient, func() (bool, string) {
		st := status("web")
		return st.Ready == 2 && st.Flows == 8, fmt.Sprintf("two replicas: %+v", st)
	})
	before := h.metrics(t)["sluice_conntrack_resyncs_total"]

	d.signal(t, syscall.SIGSTOP)
	t.Cleanup(func() { d.signal(t, syscall.SIGCONT) }) // whatever fails below, it can end
	const batch = 20_000
	sent := 0
	for h.drops(t) == 0 {
		if sent >= 10*batch {
			t.Fatalf("no event was lost with %d flows", sent)
		}
		h.spoof(t, sent, batch)
		sent += batch
	}
	for _, c := range heard {
		_ = c.Close()
	}
	unheard := []net.Conn{h.hold(t), h.hold(t)} // kernel-direct: nobody else is there
	from := d.mark()
	d.signal(t, syscall.SIGCONT)
	d.waitFrom(t, from, func(l line) bool { return l.field("message") == "flows are counted anew" })

	testenv.Eventually(t, patient, func() (bool, string) {
		web, flood := status("web"), status("flood")
		all := 0
		for _, f := range testenv.Conntrack(t, h.Host) {
			if f.Proto == unix.IPPROTO_UDP && f.Orig.Dst.Port() == 53 {
				all++
			}
		}
		return web.Flows == 2 && flood.Flows == all && all > 0,
			fmt.Sprintf("%d flows, want 2; %d, conntrack lists %d", web.Flows, flood.Flows, all)
	})
	if n := h.metrics(t)["sluice_conntrack_resyncs_total"]; n <= before {
		t.Errorf("%v resyncs, %v before", n, before)
	}
	// What is not needed goes; what has flows does not, however long it takes.
	testenv.Eventually(t, patient, func() (bool, string) {
		st := status("web")
		serving := 0
		for _, b := range st.Backends {
			if b.Weight > 0 && b.State == "ready" {
				serving++
			}
		}
		return serving == 1, fmt.Sprintf("one replica: %+v", st)
	})
	for i, c := range unheard {
		for range 3 { // there is one every 200 ms
			if err := c.SetReadDeadline(time.Now().Add(patient)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Errorf("connection %d was cut: %v", i, err)
			}
		}
		_ = c.Close()
	}
	testenv.Eventually(t, patient, func() (bool, string) {
		st := status("web")
		return asleep(st), fmt.Sprintf("sleep: %+v", st)
	})
	t.Logf("%d flows made", sent)
}

// drops is how many messages the kernel could not deliver to netlink sockets on
// the host.
func (h *host) drops(t *testing.T) (n int) {
	t.Helper()
	for i, text := range strings.Split(strings.TrimSpace(h.Host.Run(t, "cat", "/proc/net/netlink")), "\n") {
		f := strings.Fields(text) // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if i == 0 || len(f) < 9 || f[1] != fmt.Sprint(unix.NETLINK_NETFILTER) {
			continue
		}
		var d int
		if _, err := fmt.Sscan(f[8], &d); err != nil {
			t.Fatalf("line %q: %v", text, err)
		}
		n += d
	}
	return n
}

// spoof sends a datagram each of n clients that do not exist, the first-th and
// those that follow, to the service's UDP port.
func (h *host) spoof(t *testing.T, first, n int) {
	t.Helper()
	err := h.Client.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		to := netip.MustParseAddr(address).As4()
		p := make([]byte, 29) // the kernel fills in length, id and checksum; UDP's is 0, none
		p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
		copy(p[16:], to[:])
		binary.BigEndian.PutUint16(p[22:], 53)
		binary.BigEndian.PutUint16(p[24:], 9)
		for i := first; i < first+n; i++ {
			copy(p[12:], []byte{198, 18, byte(i >> 8), byte(i)})
			binary.BigEndian.PutUint16(p[20:], uint16(1024+i>>16)) //nolint:gosec // a port
			if err := unix.Sendto(fd, p, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
