package relay

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net/netip"
	"testing"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// TestHeaderBytes holds headers against the examples and layouts of the
// specification, which the library's own parser cannot stand in for.
func TestHeaderBytes(t *testing.T) {
	t.Parallel()
	sig := "\r\n\r\n\x00\r\nQUIT\n"
	for _, c := range []struct {
		version         int
		client, service string
		want            string
	}{
		{1, "192.0.2.7:56324", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"},
		{1, "[::ffff:192.0.2.7]:56324", "198.51.100.1:443", "PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n"},
		{1, "[2001:db8::7]:1", "[2001:db8::1]:65535", "PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n"},
		{1, "[fe80::7%eth0]:1", "[2001:db8::1]:2", "PROXY TCP6 fe80::7 2001:db8::1 1 2\r\n"},
		{1, "[2001:db8::7]:1", "192.0.2.1:2", "PROXY TCP6 2001:db8::7 ::ffff:192.0.2.1 1 2\r\n"},
		{1, "", "", "PROXY UNKNOWN\r\n"},
		{2, "192.0.2.7:258", "198.51.100.1:772", sig + "\x21\x11\x00\x0c\xc0\x00\x02\x07\xc6\x33\x64\x01\x01\x02\x03\x04"},
		{2, "[2001:db8::7]:258", "[2001:db8::1]:772", sig + "\x21\x21\x00\x24" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
			"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x01\x02\x03\x04"},
		{2, "", "", sig + "\x20\x00\x00\x00"},
	} {
		got, err := Header(c.version, optional(c.client), optional(c.service))
		if err != nil || string(got) != c.want {
			t.Errorf("version %d of %s to %s: %q, %v, want %q", c.version, c.client, c.service, got, err, c.want)
		}
	}
	some := netip.MustParseAddrPort("192.0.2.7:1")
	for _, version := range []int{-1, 0, 3, 257, 258} {
		if _, err := Header(version, some, some); !errors.Is(err, ErrHeader) {
			t.Errorf("version %d: %v", version, err)
		}
	}
	for _, version := range []int{1, 2} {
		_, noService := Header(version, some, netip.AddrPort{})
		_, noClient := Header(version, netip.AddrPort{}, some)
		if !errors.Is(noService, ErrHeader) || !errors.Is(noClient, ErrHeader) {
			t.Errorf("version %d with one address: %v, %v", version, noService, noClient)
		}
	}
}

func optional(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func FuzzHeader(f *testing.F) {
	f.Add(true, []byte{192, 0, 2, 7}, uint16(1), []byte{192, 0, 2, 1}, uint16(80))
	f.Add(false, netip.MustParseAddr("2001:db8::1").AsSlice(), uint16(0), []byte{192, 0, 2, 1}, uint16(65535))
	f.Fuzz(func(t *testing.T, text bool, client []byte, cport uint16, service []byte, sport uint16) {
		c, okC := netip.AddrFromSlice(client)
		s, okS := netip.AddrFromSlice(service)
		if !okC || !okS {
			return
		}
		version := 2
		if text {
			version = 1
		}
		b, err := Header(version, netip.AddrPortFrom(c, cport), netip.AddrPortFrom(s, sport))
		if err != nil {
			t.Fatal(err)
		}
		h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b)))
		if err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		said(t, h, version, netip.AddrPortFrom(c.Unmap(), cport), netip.AddrPortFrom(s.Unmap(), sport))
	})
}

func said(t *testing.T, h *proxyproto.Header, version int, client, service netip.AddrPort) {
	t.Helper()
	src, dst, ok := h.TCPAddrs()
	if !ok || int(h.Version) != version || h.Command != proxyproto.PROXY {
		t.Fatalf("header %+v", h)
	}
	plain := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
	if got := plain(src.AddrPort()); got != client {
		t.Errorf("client %s, want %s", got, client)
	}
	if got := plain(dst.AddrPort()); got != service {
		t.Errorf("service %s, want %s", got, service)
	}
}

// The backend, which may be the first to speak, has the header before the
// client has sent anything, then the client's bytes.
func TestRunWith(t *testing.T) {
	t.Parallel()
	client, service := netip.MustParseAddrPort("192.0.2.7:5000"), netip.MustParseAddrPort("192.0.2.1:80")
	client6, service6 := netip.MustParseAddrPort("[2001:db8::7]:5000"), netip.MustParseAddrPort("[2001:db8::1]:80")
	for _, c := range []struct {
		name            string
		version         int
		client, service netip.AddrPort
	}{
		{"v1/ipv4", 1, client, service},
		{"v1/ipv6", 1, client6, service6},
		{"v2/ipv4", 2, client, service},
		{"v2/ipv6", 2, client6, service6},
	} {
		t.Run(c.name, func(t *testing.T) {
			header, err := Header(c.version, c.client, c.service)
			if err != nil {
				t.Fatal(err)
			}
			r := newRigWith(t, header)
			in := bufio.NewReader(r.backend)
			h, err := proxyproto.Read(in)
			r.must(err)
			said(t, h, c.version, c.client, c.service)
			r.write(r.backend, "220 ready")
			r.read(r.client, "220 ready")
			r.write(r.client, "hello")
			r.must(r.client.CloseWrite())
			if b, err := io.ReadAll(in); err != nil || string(b) != "hello" {
				t.Fatalf("after the header %q, %v", b, err)
			}
			r.must(r.backend.Close())
			r.finished()
			r.must(r.err)
			if r.stats != (Stats{ToBackend: 5, ToClient: 9}) {
				t.Errorf("%+v: the header counts", r.stats)
			}
		})
	}
}

// A backend that is gone by the time of the header is the backend's fault.
func TestRunWithDeadBackend(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	client, near := pair(t, ns)
	backend, far := pair(t, ns)
	if err := errors.Join(backend.SetLinger(0), backend.Close()); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, patience, func() (bool, string) {
		info, err := tcpInfo(far)
		return err == nil && info.State == tcpClose, "connection lives"
	})
	_, err := RunWith(context.Background(), []byte("header"), near, far)
	var p *PeerError
	if !errors.As(err, &p) || p.Peer != "backend" {
		t.Errorf("error %v, want one of the backend", err)
	}
	if n, err := client.Read(make([]byte, 1)); n != 0 || !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("client read %d bytes, %v, want a reset", n, err)
	}
}
