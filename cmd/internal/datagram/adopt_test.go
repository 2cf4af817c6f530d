package datagram

import (
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// A process that has adopted a socket, and does not go on in the end, has taken
// nothing out of it; one that goes on has all.
func TestAdopt(t *testing.T) {
	each(t, func(t *testing.T, l *lab, from *testenv.NS, service netip.AddrPort) {
		old := l.listen(1, service)
		p := l.dial(from, service, 0)
		p.send("one")
		l.next()
		adopt := func() (ln *Listener) {
			file, err := old.Suspend()
			l.must(err)
			fd, err := unix.FcntlInt(uintptr(old.FD()), unix.F_DUPFD_CLOEXEC, 0)
			l.must(err)
			g := l.open(Limits{})
			l.must(l.Host.Do(func() (err error) {
				ln, err = g.Adopt(2, service, fd, file)
				return err
			}))
			if h := l.next(); h.Client != p.addr() {
				t.Fatalf("adopted: %+v", h)
			}
			return ln
		}

		young := adopt()
		p.send("two")
		for range 3 { // a look at the socket between two of them
			if s := l.stats(young); s.Received != 1 {
				t.Fatalf("before it goes on it has received: %+v", s)
			}
		}
		l.must(young.Close())
		old.Resume()
		l.received(old, 2)

		young = adopt()
		p.send("three")
		young.Resume()
		l.received(young, 3)
		l.must(old.Close())
		l.slots(service, 1)
		young.Set(Pass)
		for _, text := range []string{"one", "two", "three"} {
			p.answer(text)
		}
	})
}
