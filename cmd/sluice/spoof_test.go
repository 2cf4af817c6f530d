package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// spoofed are addresses that packets claim to come from. The host's answers find
// the way to the client, where nobody has asked.
const spoofed = "203.0.113.0/24"

// A flood sends packets that another might have sent, until it is stopped.
type flood struct {
	sent atomic.Int64
	stop func()
}

// flood begins to send TCP segments with these flags, or with 0 datagrams, one
// after the other from ever other addresses and ports to the service. It goes on
// without pause but for one after every 64, so that others find a processor.
func (h *host) flood(t *testing.T, proto byte, flags ...byte) *flood {
	t.Helper()
	var fd int
	err := h.Client.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	f, done := new(flood), make(chan error, 1)
	to := netip.MustParseAddr(address)
	go func() {
		defer unix.Close(fd)
		for n := uint32(0); ctx.Err() == nil; n++ {
			from := netip.AddrFrom4([4]byte{203, 0, 113, byte(n%250 + 1)})
			for _, flag := range flags {
				seq := n * 2_654_435_761
				if flag&flagSYN == 0 {
					seq++ // as after the SYN
				}
				b := packet(from, to, uint16(1024+n/250%60_000), 80, proto, flag, seq)
				err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
				if err != nil && !errors.Is(err, unix.ENOBUFS) {
					done <- err
					return
				}
				f.sent.Add(1)
			}
			if n%64 == 63 {
				select {
				case <-ctx.Done():
				case <-time.After(time.Millisecond):
				}
			}
		}
		done <- nil
	}()
	stopped := false
	f.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("flood: %v", err)
		}
	}
	t.Cleanup(f.stop)
	return f
}

// reaches waits until the flood has sent so many more packets.
func (f *flood) reaches(t *testing.T, n int64) {
	t.Helper()
	from := f.sent.Load()
	testenv.Eventually(t, patient, func() (bool, string) {
		sent := f.sent.Load() - from
		return sent >= n, fmt.Sprintf("%d of %d packets sent", sent, n)
	})
}

// packet is an IPv4 packet with a TCP segment, or a datagram of a few bytes.
func packet(from, to netip.Addr, sport, dport uint16, proto, flags byte, seq uint32) []byte {
	var l4 []byte
	at := 16 // of the checksum
	if proto == unix.IPPROTO_TCP {
		l4 = make([]byte, 24)
		binary.BigEndian.PutUint32(l4[4:], seq)
		binary.BigEndian.PutUint32(l4[8:], ^seq)
		l4[12], l4[13] = 6<<4, flags
		binary.BigEndian.PutUint16(l4[14:], 64_240)
		copy(l4[20:], []byte{2, 4, 5, 0xb4}) // MSS 1460
	} else {
		l4 = append(make([]byte, 8), "flood"...)
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		at = 6
	}
	binary.BigEndian.PutUint16(l4, sport)
	binary.BigEndian.PutUint16(l4[2:], dport)
	pseudo := append(append(from.AsSlice(), to.AsSlice()...), 0, proto, 0, byte(len(l4)))
	binary.BigEndian.PutUint16(l4[at:], sum(append(pseudo, l4...)))

	b := make([]byte, 20, 64)
	b[0], b[8], b[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(l4)))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	binary.BigEndian.PutUint16(b[10:], sum(b))
	return append(b, l4...)
}

// sum is the Internet checksum (RFC 1071).
func sum(b []byte) uint16 {
	var s uint32
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

// counter reads one of the host's counters of TCP, by the name in
// /proc/net/netstat.
func (h *host) counter(t *testing.T, name string) int {
	t.Helper()
	lines := strings.Split(h.Host.Run(t, "cat", "/proc/net/netstat"), "\n")
	for i := 0; i+1 < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		for k := range names {
			if names[k] == name {
				n, err := strconv.Atoi(values[k])
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
		}
	}
	t.Fatalf("no counter %s", name)
	return 0
}

// usage is how many descriptors the daemon has, and how much memory in bytes.
func (d *proc) usage(t *testing.T) (fds int, resident int64) {
	t.Helper()
	pid := strconv.Itoa(d.cmd.Process.Pid)
	out := d.Host.Run(t, "sh", "-c", "ls /proc/"+pid+"/fd | wc -l; awk '/^VmRSS/ {print $2}' /proc/"+pid+"/status")
	var kib int64
	if _, err := fmt.Sscan(out, &fds, &kib); err != nil {
		t.Fatalf("usage of the daemon: %q: %v", out, err)
	}
	return fds, kib << 10
}
