package datagram

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/nft"
)

// A backend sees no difference between the datagrams that were held and those
// that the kernel forwards: not in their hops, nor in class and ECN.
func TestHeader(t *testing.T) {
	t.Parallel()
	l := newLab(t, Limits{})
	for i, service := range []netip.AddrPort{service4, service6} {
		b := l.net.Backends[0]
		at := netip.AddrPortFrom(b.Addr4, 5400)
		level, hops, class := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_TOS
		if service.Addr().Is6() {
			at = netip.AddrPortFrom(b.Addr6, 5400)
			level, hops, class = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_TCLASS
		}
		var fd int
		l.must(b.Do(func() (err error) {
			fd, _, err = socket(at, nil)
			return err
		}))
		defer unix.Close(fd)
		l.must(unix.SetNonblock(fd, false))
		l.must(unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(patience / time.Second)}))

		ln := l.listen(uint64(i), service)
		p := l.dial(l.Client, service, 0)
		raw, err := p.Conn.(syscall.Conn).SyscallConn()
		l.must(err)
		l.must(raw.Control(func(fd uintptr) {
			l.must(unix.SetsockoptInt(int(fd), level, hops, 33))
			l.must(unix.SetsockoptInt(int(fd), level, class, 0xba))
		}))
		p.send("held")
		h := l.next()
		e := nft.Endpoint{Addr: service.Addr(), Proto: unix.IPPROTO_UDP, Port: service.Port()}
		l.must(l.table.Apply(map[nft.Endpoint]*nft.Service{e: {Slots: []netip.AddrPort{at}}}))
		l.released(ln, h.ID)
		p.send("forwarded")
		for _, want := range []string{"held", "forwarded"} {
			var buf, oob [256]byte
			n, on, _, from, err := unix.Recvmsg(fd, buf[:], oob[:], 0)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			a := parse(oob[:on])
			if string(buf[:n]) != want || addrPort(from) != p.addr() || a.hops != 32 || a.tos != 0xba || a.to != at.Addr() {
				t.Errorf("%q from %v: %+v, want %s", buf[:n], addrPort(from), a, want)
			}
		}
	}
}
