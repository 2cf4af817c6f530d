package control

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"sluice/cmd/internal/config"
	"sluice/policy"
)

// nothing is told of sockets.
type nothing map[int]uint64

func (n nothing) Add(fd int, id uint64) error { n[fd] = id; return nil }
func (n nothing) Remove(fd int) error {
	if _, ok := n[fd]; !ok {
		return errors.New("not watched")
	}
	delete(n, fd)
	return nil
}

// mute is a socket from which nothing can be read yet.
func mute(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func open(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

// TestSilent: the silent of one service, and of all, are bounded; the oldest of
// the service that has most make room, and each goes when its time is up.
func TestSilent(t *testing.T) { // descriptors are looked at by number: not parallel
	watched := nothing{}
	c := &Control{opt: Options{Silence: watched}, log: zerolog.Nop(), hushed: map[*service]bool{}, owners: map[uint64]*service{}, box: newMailbox()}
	var services []*service
	for range silentMost/silentEach + 1 {
		cfg := config.Service{Name: "s", WakeAfter: config.WakeAfterData, Start: config.Start{Timeout: time.Minute}}
		services = append(services, &service{name: "s", cfg: cfg, policy: policy.New(policy.Spec{}), log: zerolog.Nop(), held: map[uint64]held{}})
	}
	now := time.Now()
	first := services[0]
	var fds []int
	for range silentEach + 2 {
		fds = append(fds, mute(t)) // all first: a number that is closed is given out again
	}
	for i := range fds {
		if !c.silent(first, held{fd: fds[i], at: now}) {
			t.Fatal("a silent connection is not silent")
		}
	}
	if open(fds[0]) || open(fds[1]) || !open(fds[2]) || len(first.silents.by) != silentEach {
		t.Errorf("one service keeps %d, the oldest %v %v %v", len(first.silents.by), open(fds[0]), open(fds[1]), open(fds[2]))
	}
	for _, s := range services[1 : len(services)-1] {
		for range silentEach {
			c.silent(s, held{fd: mute(t), at: now})
		}
	}
	last := services[len(services)-1]
	for range 10 {
		c.silent(last, held{fd: mute(t), at: now.Add(time.Second)})
	}
	if len(c.owners) != silentMost || len(watched) != silentMost || len(last.silents.by) != 10 {
		t.Errorf("%d silent in all, %d watched, %d of the service that has few", len(c.owners), len(watched), len(last.silents.by))
	}

	// Out of order, and each by its own time.
	for id := range last.silents.by {
		c.refuse(c.unhush(last, id))
		break
	}
	c.outwait(now.Add(time.Minute))
	if len(c.owners) != 9 || len(c.hushed) != 1 {
		t.Errorf("%d of %d services left when all but 9 have waited long enough", len(c.owners), len(c.hushed))
	}
	c.silence(last)
	if len(c.owners)+len(c.hushed)+len(watched)+len(last.silents.order) != 0 {
		t.Errorf("left: %d, %d, %d", len(c.owners), len(c.hushed), len(watched))
	}
}

// kept is a keeper that counts.
type kept map[string]int

func (k kept) Store(name string, fd int) { k[name] = fd }
func (k kept) Remove(name string)        { delete(k, name) }

// TestSilentKept: silent connections are left to the next run, only so many in a
// second, and not for longer than they are there.
func TestSilentKept(t *testing.T) { // as TestSilent
	k := kept{}
	c := &Control{opt: Options{Silence: nothing{}, Keep: k}, log: zerolog.Nop(), hushed: map[*service]bool{}, owners: map[uint64]*service{}, box: newMailbox()}
	cfg := config.Service{Name: "s", WakeAfter: config.WakeAfterData, Start: config.Start{Timeout: time.Minute}}
	s := &service{name: "s", cfg: cfg, policy: policy.New(policy.Spec{}), log: zerolog.Nop(), held: map[uint64]held{}}
	now := time.Now()
	for range 2*keepRate + 10 {
		fd := mute(t)
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: 9}); err != nil {
			t.Fatal(err)
		}
		c.silent(s, held{fd: fd, at: now})
	}
	for _, want := range []int{keepRate, 2 * keepRate, 2*keepRate + 10, 2*keepRate + 10} {
		if len(k) != want {
			t.Errorf("%d kept, want %d", len(k), want)
		}
		c.outwait(now)
	}
	c.oust(s)
	if len(k) != 2*keepRate+9 {
		t.Errorf("%d kept after one has gone", len(k))
	}
	c.silence(s)
	if len(k) != 0 {
		t.Errorf("still kept: %v", k)
	}
}

// TestStranger: what the table lets pass is looked at again.
func TestStranger(t *testing.T) {
	t.Parallel()
	s := &service{cfg: config.Service{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("fe80::/10")}}}
	for a, want := range map[string]bool{
		"192.0.2.1": false, "::ffff:192.0.2.1": false, "198.51.100.1": true, "fe80::1%lo": false, "2001:db8::1": true,
	} {
		if got := unknown(s.cfg.Allow, netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: stranger %v, want %v", a, got, want)
		}
	}
	if !s.stranger(held{fd: -1}) {
		t.Error("one whose address cannot be told is let in")
	}
	s.shares = []policy.Share{{Index: 1}}
	s.replicas = map[int]*replica{1: {asleep: true}}
	if !s.stranger(held{fd: -1}) {
		t.Error("a paused service lets strangers in")
	}
	s.replicas[1].asleep = false
	if s.stranger(held{fd: -1}) {
		t.Error("a service that is awake has strangers")
	}
}
