package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

// TestWindow: segments far outside of the window, in both directions, do no harm
// to a large transfer, of a handed over connection and of one that was the
// kernel's from the begin. The last part takes the table's guard away, and the
// same segments end the transfer.
func TestWindow(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.Host.RunInput(t, `table inet watcher {
		chain before { type filter hook prerouting priority -151; meta l4proto tcp ct state invalid counter; }
		chain after { type filter hook prerouting priority -149; meta l4proto tcp ct state invalid counter; }
	}`, "nft", "-f", "-")
	d := h.start(t, h.configure(t, web(`idle = "5m"`, "", "")))
	for _, how := range []string{"handed over", "direct"} {
		if err := h.disturbed(t, d.status); err != nil {
			t.Errorf("%s: %v", how, err)
		}
	}
	if st := d.status(t); st.HandedOver != 1 || st.Relayed != 0 {
		t.Errorf("not handed over: %+v", st)
	}
	if n := h.invalid(t, "before"); n == 0 {
		t.Error("conntrack found nothing invalid: the test proves nothing")
	}
	if n := h.invalid(t, "after"); n != 0 {
		t.Errorf("%d invalid segments have passed the guard", n)
	}

	st := d.status(t)
	d.kill(t) // or it would put the rules back
	h.Host.Run(t, "nft", "flush chain inet sluice filter-prerouting")
	if err := h.disturbed(t, func(*testing.T) control.ServiceStatus { return st }); err == nil {
		t.Error("without the guard: the transfer is not harmed either")
	} else {
		t.Logf("without the guard: %v", err)
	}
	d = h.start(t, filepath.Join(h.dir, "sluice.toml"))
	if err := h.disturbed(t, d.status); err != nil {
		t.Errorf("after a restart: %v", err)
	}
}

// invalid is how many segments a chain of the watcher has counted.
func (h *host) invalid(t *testing.T, chain string) int {
	t.Helper()
	text := h.Host.Run(t, "nft", "list", "chain", "inet", "watcher", chain)
	m := regexp.MustCompile(`counter packets (\d+)`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no counter: %s", text)
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// disturbed is a transfer of a second, beside which segments ahead of the window
// are sent in the name of the client and of the container.
func (h *host) disturbed(t *testing.T, status func(*testing.T) control.ServiceStatus) error {
	t.Helper()
	const size, rate, seed = 16 << 20, 16 << 20, 11
	var ear net.PacketConn
	err := h.Client.Do(func() (err error) {
		ear, err = net.ListenPacket("ip4:tcp", h.ClientAddr4.String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Close()
	conn, local := h.dial(t)
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "GET /bytes?n=%d&rate=%d&seed=%d HTTP/1.1\r\nHost: x\r\n\r\n", size, rate, seed); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	st := status(t)
	container := netip.MustParseAddrPort(st.Backends[0].Address)
	inside := h.pod.ContainerNS(t, st.Backends[0].Name)
	seq, ack := overhear(t, ear, local)

	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		service := netip.MustParseAddrPort(address + ":80")
		for i := uint32(0); ; i++ {
			select {
			case <-done:
				return
			case <-time.After(2 * time.Millisecond):
			}
			// Old data is let pass by conntrack; only what lies ahead is
			// invalid, and here always does: by 512 MiB and more.
			ahead := 1<<29 + i*1000
			inject(t, h.Client, local, service, ack+ahead, seq)
			inject(t, inside, container, local, seq+ahead, ack)
		}
	})
	sum, want := sha256.New(), sha256.New()
	n, err := io.Copy(sum, resp.Body)
	close(done)
	wg.Wait()
	if err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, size, err)
	}
	if _, err := io.Copy(want, testenv.Bytes(size, seed)); err != nil {
		t.Fatal(err)
	}
	if [32]byte(sum.Sum(nil)) != [32]byte(want.Sum(nil)) {
		return fmt.Errorf("%d bytes, and not those that were sent", n)
	}
	return nil
}

// overhear returns the numbers of a segment with data to a port.
func overhear(t *testing.T, ear net.PacketConn, to netip.AddrPort) (seq, ack uint32) {
	t.Helper()
	if err := ear.SetReadDeadline(time.Now().Add(patient)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	for {
		n, _, err := ear.ReadFrom(b) // without the IP header
		if err != nil {
			t.Fatalf("no segment of the transfer is heard: %v", err)
		}
		if n > 1000 && binary.BigEndian.Uint16(b[2:]) == to.Port() {
			return binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])
		}
	}
}

// inject sends an empty segment, whosever address its source is.
func inject(t *testing.T, from *testenv.NS, src, dst netip.AddrPort, seq, ack uint32) {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, src.Port())
	binary.BigEndian.PutUint16(b[2:], dst.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, 0x10 // five words, ACK
	binary.BigEndian.PutUint16(b[14:], 1024)
	addrs := append(src.Addr().AsSlice(), dst.Addr().AsSlice()...)
	sum := uint32(unix.IPPROTO_TCP + len(b))
	for p := append(addrs, b...); len(p) > 1; p = p[2:] {
		sum += uint32(binary.BigEndian.Uint16(p))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum)) //nolint:gosec // folded
	err := from.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0} // the kernel adds what is missing
		return unix.Sendto(fd, append(append(ip, addrs...), b...), 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
	})
	if err != nil {
		t.Error(err)
	}
}
