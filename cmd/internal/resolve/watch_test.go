package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"sluice/testenv"
)

const name = "_pg._tcp.example.org"

// news is what was posted.
type news struct {
	targets []Target
	err     error
	at      time.Duration // since the start of the watch
}

// watching is a Watch in the background, in a bubble of synctest: servers are
// outside of it and take their time, while time between look-ups passes at once.
type watching struct {
	*testing.T
	news chan news
}

// bubble runs f with a Watch that asks the servers.
func bubble(t *testing.T, opt Options, f func(w *watching)) {
	t.Helper()
	if opt.Timeout == 0 {
		opt.Timeout = 20 * time.Second
	}
	synctest.Test(t, func(t *testing.T) {
		w := &watching{T: t, news: make(chan news, 64)}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		start := time.Now()
		go func() {
			defer close(done)
			Watch(ctx, name, opt, func(list []Target, err error) { w.news <- news{list, err, time.Since(start)} })
		}()
		defer func() { cancel(); <-done }()
		f(w)
	})
}

func servers(s ...*server) (list []netip.AddrPort) {
	for _, s := range s {
		list = append(list, s.addr)
	}
	return list
}

// next returns what is posted within the next day.
func (w *watching) next() news {
	w.Helper()
	select {
	case n := <-w.news:
		return n
	case <-time.After(24 * time.Hour):
		w.Fatal("no news")
		panic("unreachable")
	}
}

// is checks that the next news are these targets, in the form of show, and
// this error, nil or a part of its text.
func (w *watching) is(wrong string, want ...string) news {
	w.Helper()
	n := w.next()
	if got := show(n.targets); !slices.Equal(got, want) {
		w.Fatalf("targets %q, want %q (error %v)", got, want, n.err)
	}
	if (n.err == nil) != (wrong == "") || n.err != nil && !strings.Contains(n.err.Error(), wrong) {
		w.Fatalf("error %v, want %q", n.err, wrong)
	}
	return n
}

// quiet lets time pass in which nothing may be posted.
func (w *watching) quiet(d time.Duration) {
	w.Helper()
	select {
	case n := <-w.news:
		w.Fatalf("posted %q, %v", show(n.targets), n.err)
	case <-time.After(d):
	}
}

func show(list []Target) (words []string) {
	for _, t := range list {
		words = append(words, fmt.Sprintf("%s/%d/%d", t.Addr, t.Priority, t.Weight))
	}
	return words
}

func srv(ttl, priority, weight, port int, host string) string {
	return fmt.Sprintf("%s. %d SRV %d %d %d %s.", name, ttl, priority, weight, port, host)
}

// What changes is found when the least TTL is over, and only what changes is
// posted.
func TestChanges(t *testing.T) {
	t.Parallel()
	s := newServer(t, srv(60, 10, 1, 5432, "a.example.org"), "a.example.org. 30 A 10.0.0.1", "a.example.org. 90 AAAA fd00::1")
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		first := w.is("", "10.0.0.1:5432/10/100", "[fd00::1]:5432/10/100")
		if first.at != 0 {
			t.Errorf("first answer after %s", first.at)
		}
		w.quiet(10*time.Minute + time.Second)
		// One look-up at the start and one every 30 s.
		if asked := s.questions(); len(asked) != 3*21 {
			t.Errorf("%d questions in 10 minutes, want 63", len(asked))
		}
		s.set(srv(60, 10, 1, 5432, "a.example.org"), srv(60, 5, 3, 5433, "b.example.org"),
			"a.example.org. 30 A 10.0.0.1", "b.example.org. 3600 A 10.0.0.2")
		if n := w.is("", "10.0.0.2:5433/5/300", "10.0.0.1:5432/10/100"); n.at != 630*time.Second {
			t.Errorf("change found after %s", n.at)
		}
		s.set(srv(60, 10, 1, 5432, "b.example.org"), "b.example.org. 3600 A 10.0.0.2")
		if n := w.is("", "10.0.0.2:5432/10/100"); n.at != 660*time.Second {
			t.Errorf("change found after %s", n.at)
		}
	})
}

func TestTTL(t *testing.T) {
	t.Parallel()
	for ttls, want := range map[[3]uint32]time.Duration{
		{0, 100, 100}:               time.Second,
		{100, 0, 100}:               time.Second,
		{1, 100, 100}:               time.Second,
		{100, 7, 100}:               7 * time.Second,
		{100, 100, 7}:               7 * time.Second,
		{7, 100, 100}:               7 * time.Second,
		{1 << 20, 1 << 20, 1 << 20}: 5 * time.Minute,
		{1 << 31, 100, 100}:         time.Second,
	} {
		records := func(port int) []string {
			return []string{srv(0, 1, 0, port, "alias.example.org"), "alias.example.org. 1 CNAME a.example.org.", "a.example.org. 1 A 10.0.0.1"}
		}
		s := newServer(t)
		set := func(port int) {
			list := parse(t, records(port)...)
			for i, rr := range list {
				rr.Header().Ttl = ttls[i]
			}
			s.with(func() { s.records = list })
		}
		set(1)
		bubble(t, Options{Servers: servers(s)}, func(w *watching) {
			w.is("", "10.0.0.1:1/1/100")
			set(2)
			if n := w.is("", "10.0.0.1:2/1/100"); n.at != want {
				t.Errorf("TTLs %d: asked again after %s, want %s", ttls, n.at, want)
			}
		})
	}
}

// Failures keep what there is, are told once, and are tried again.
func TestFailure(t *testing.T) {
	t.Parallel()
	s := newServer(t, srv(5, 1, 1, 80, "a.example.org"), "a.example.org. 5 A 10.0.0.1")
	s.fail(name+".", dns.RcodeServerFailure)
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		if n := w.is("SERVFAIL"); n.targets != nil || !strings.Contains(n.err.Error(), "look up "+name+".: ask "+s.addr.String()) {
			t.Errorf("first failure: %v, %v", n.targets, n.err)
		}
		w.quiet(2 * time.Hour)
		s.fail(name+".", dns.RcodeRefused)
		w.is("REFUSED")
		s.fail(name+".", 0)
		n := w.is("", "10.0.0.1:80/1/100")
		s.fail(name+".", dns.RcodeServerFailure)
		failed := w.is("SERVFAIL", "10.0.0.1:80/1/100")
		if failed.at != n.at+5*time.Second {
			t.Errorf("failed after %s", failed.at-n.at)
		}
		s.fail(name+".", 0)
		// Soon after the first failure; seldom after many.
		if n := w.is("", "10.0.0.1:80/1/100"); n.at != failed.at+time.Second {
			t.Errorf("tried again after %s", n.at-failed.at)
		}
		s.fail(name+".", dns.RcodeServerFailure)
		w.is("SERVFAIL", "10.0.0.1:80/1/100")
		s.questions()
		w.quiet(time.Hour)
		if n := len(s.questions()); n < 2*60 || n > 2*66 {
			t.Errorf("%d questions in an hour of failure", n)
		}
	})
}

func TestFailOver(t *testing.T) {
	t.Parallel()
	records := []string{srv(5, 1, 1, 80, "a.example.org"), "a.example.org. 5 A 10.0.0.1"}
	good := newServer(t, records...)
	// Not the address of the servers of other tests, one of which may get this port.
	nobody, err := net.ListenPacket("udp", "127.1.2.3:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := nobody.LocalAddr().(*net.UDPAddr).AddrPort()
	nobody.Close()
	mute, failing := newServer(t), newServer(t)
	mute.with(func() { mute.mute = true })
	failing.fail(name+".", dns.RcodeServerFailure)
	lame := newServer(t)
	lame.with(func() {
		lame.forge = func(_, m *dns.Msg, _ bool) [][]byte {
			m.Authoritative, m.Rcode = false, dns.RcodeSuccess
			b, _ := m.Pack()
			return [][]byte{b}
		}
	})
	list := append([]netip.AddrPort{refused}, servers(mute, failing, lame, good)...)
	bubble(t, Options{Servers: list, Timeout: 500 * time.Millisecond}, func(w *watching) {
		w.is("", "10.0.0.1:80/1/100")
		for _, s := range []*server{mute, failing, lame} {
			if s.questions() == nil {
				t.Errorf("%s was not asked", s.addr)
			}
		}
		// The server that answered is asked first from now on.
		w.quiet(time.Minute)
		if asked := append(mute.questions(), failing.questions()...); asked != nil {
			t.Errorf("asked again: %q", asked)
		}
		// It fails, another has recovered.
		failing.set(srv(5, 1, 1, 81, "a.example.org"), "a.example.org. 5 A 10.0.0.1")
		failing.fail(name+".", 0)
		good.with(func() { good.mute = true })
		w.is("", "10.0.0.1:81/1/100")
		failing.with(func() { failing.mute = true })
		if n := w.is("i/o timeout", "10.0.0.1:81/1/100"); !errors.Is(n.err, os.ErrDeadlineExceeded) {
			t.Errorf("no server answers: %v", n.err)
		}
	})
}

// A hundred targets do not fit UDP.
func TestTruncated(t *testing.T) {
	t.Parallel()
	var records, want []string
	for i := range 100 {
		host := fmt.Sprintf("host-with-a-long-name-%d.example.org", i)
		records = append(records, srv(60, i/50, i, 1000+i, host), fmt.Sprintf("%s. 60 A 10.0.1.%d", host, i))
	}
	for i := range 100 {
		want = append(want, fmt.Sprintf("10.0.1.%d:%d/%d/%d", i, 1000+i, i/50, max(100*i, 1)))
	}
	s := newServer(t, records...)
	for _, glue := range []bool{false, true} {
		s.with(func() { s.glue = glue })
		bubble(t, Options{Servers: servers(s)}, func(w *watching) {
			w.is("", want...)
			if asked := s.questions(); !slices.Contains(asked, "tcp SRV "+name+".") {
				t.Errorf("not asked by TCP: %q", asked)
			}
		})
	}
}

func TestGlue(t *testing.T) {
	t.Parallel()
	s := newServer(t, srv(60, 1, 1, 80, "a.example.org"), srv(60, 1, 1, 80, "b.example.org"),
		"a.example.org. 60 A 10.0.0.1", "a.example.org. 60 AAAA fd00::1", "b.example.org. 60 A 10.0.0.2")
	s.with(func() { s.glue = true })
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		w.is("", "10.0.0.1:80/1/100", "10.0.0.2:80/1/100", "[fd00::1]:80/1/100")
		if asked := s.questions(); !slices.Equal(asked, []string{"udp SRV " + name + ".", "udp AAAA b.example.org."}) {
			t.Errorf("asked %q", asked)
		}
	})
}

func TestAliases(t *testing.T) {
	t.Parallel()
	s := newServer(t, name+". 60 CNAME services.example.net.", "services.example.net. 60 SRV 1 1 80 A.example.org.",
		"a.example.org. 60 CNAME b.example.org.", "b.example.org. 60 CNAME c.example.org.", "c.example.org. 60 A 10.0.0.1")
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		w.is("", "10.0.0.1:80/1/100")
		s.with(func() { s.shallow = true })
		w.quiet(5 * time.Minute)
		if asked := s.questions(); !slices.Contains(asked, "udp A c.example.org.") {
			t.Errorf("alias not followed: %q", asked)
		}
		s.set(name + ". 60 CNAME " + name + ".")
		w.is("no such name", "10.0.0.1:80/1/100")
		s.set(name+". 60 CNAME loop.example.org.", "loop.example.org. 60 CNAME "+name+".")
		w.is("more than 8 aliases", "10.0.0.1:80/1/100")
	})
}

// A name that is gone is believed to be after a while, hosts too; if it comes
// back sooner nothing has happened.
func TestAbsence(t *testing.T) {
	t.Parallel()
	zone := []string{srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 A 10.0.0.1"}
	for what, bad := range map[string][]string{
		"no name":    {"other.example.org. 60 A 10.0.0.1"},
		"no records": {name + ". 60 TXT gone", "a.example.org. 60 A 10.0.0.1"},
		"no host":    {srv(60, 1, 1, 80, "a.example.org")},
		"no address": {srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 TXT gone"},
		"other host": {srv(60, 1, 1, 80, "b.example.org")},
		"port 0":     {srv(60, 1, 1, 0, "a.example.org"), "a.example.org. 60 A 10.0.0.1"},
		"no target":  {name + ". 60 SRV 1 1 80 .", name + ". 60 SRV 1 1 81 ."},
	} {
		t.Run(what, func(t *testing.T) {
			s := newServer(t, zone...)
			bubble(t, Options{Servers: servers(s)}, func(w *watching) {
				w.is("", "10.0.0.1:80/1/100")
				s.set(bad...)
				if n := w.is("no such name", "10.0.0.1:80/1/100"); !errors.Is(n.err, ErrNotFound) {
					t.Errorf("error %v", n.err)
				}
				w.quiet(4 * time.Minute)
				s.set(zone...)
				w.is("", "10.0.0.1:80/1/100")
				s.set(bad...)
				begin := w.is("no such name", "10.0.0.1:80/1/100")
				end := w.is("no such name")
				if end.targets == nil || end.at < begin.at+Absence || end.at > begin.at+Absence+time.Minute {
					t.Errorf("believed after %s: %v", end.at-begin.at, end.targets)
				}
				w.quiet(time.Hour)
				s.set(zone...)
				w.is("", "10.0.0.1:80/1/100")
			})
		})
	}
	s := newServer(t)
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		if n := w.is("no such name"); n.targets != nil {
			t.Errorf("a name that never was: %v", n.targets)
		}
		w.quiet(time.Hour)
	})
}

// A target of "." says that there is no service, and is believed.
func TestNoService(t *testing.T) {
	t.Parallel()
	s := newServer(t, srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 A 10.0.0.1")
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		n := w.is("", "10.0.0.1:80/1/100")
		s.set(name + ". 60 SRV 0 0 0 .")
		if end := w.is(""); end.targets == nil || end.at != n.at+time.Minute {
			t.Errorf("believed after %s: %v", end.at-n.at, end.targets)
		}
	})
}

// Some hosts cannot be looked up: theirs are remembered, the rest is news.
func TestHostFails(t *testing.T) {
	t.Parallel()
	zone := []string{srv(60, 1, 1, 80, "a.example.org"), srv(60, 1, 1, 80, "b.example.org"),
		"a.example.org. 60 A 10.0.0.1", "b.example.org. 60 A 10.0.0.2", "b.example.org. 60 AAAA fd00::2"}
	s := newServer(t, zone...)
	s.fail("b.example.org.", dns.RcodeServerFailure)
	bubble(t, Options{Servers: servers(s)}, func(w *watching) {
		w.is("host b.example.org.: ask "+s.addr.String()+": SERVFAIL", "10.0.0.1:80/1/100")
		s.fail("b.example.org.", 0)
		all := []string{"10.0.0.1:80/1/100", "10.0.0.2:80/1/100", "[fd00::2]:80/1/100"}
		w.is("", all...)
		s.fail("b.example.org.", dns.RcodeServerFailure)
		w.is("host b.example.org.", all...)
		w.quiet(time.Hour)
		s.set(append(zone, "a.example.org. 60 A 10.0.0.3")...)
		w.is("host b.example.org.", "10.0.0.1:80/1/50", "10.0.0.2:80/1/100", "10.0.0.3:80/1/50", "[fd00::2]:80/1/100")
		s.set(srv(60, 1, 1, 80, "b.example.org"))
		w.is("host b.example.org.", all[1:]...)
		// A family is gone, the other not: that is a change like any.
		s.set(srv(60, 1, 1, 80, "b.example.org"), "b.example.org. 60 AAAA fd00::2")
		s.fail("b.example.org.", 0)
		w.is("", all[2])
	})
}

// Whatever a server sends, if it is not the answer another server is asked.
func TestForged(t *testing.T) {
	t.Parallel()
	pack := func(m *dns.Msg) []byte {
		b, err := m.Pack()
		if err != nil {
			t.Error(err)
		}
		return b
	}
	for what, forge := range map[string]func(q, m *dns.Msg, udp bool) [][]byte{
		"other question": func(_, m *dns.Msg, _ bool) [][]byte {
			m.Question[0].Name = "x.example.org."
			return [][]byte{pack(m)}
		},
		"no question": func(_, m *dns.Msg, _ bool) [][]byte { m.Question = nil; return [][]byte{pack(m)} },
		"cut off":     func(_, m *dns.Msg, _ bool) [][]byte { b := pack(m); return [][]byte{b[:len(b)-3]} },
		"truncated for ever": func(_, m *dns.Msg, _ bool) [][]byte {
			m.Truncated = true
			return [][]byte{pack(m)}
		},
		"garbage by tcp": func(_, m *dns.Msg, udp bool) [][]byte {
			m.Truncated = true
			if udp {
				return [][]byte{pack(m)}
			}
			return [][]byte{{1, 2, 3}}
		},
		"other id by tcp": func(_, m *dns.Msg, udp bool) [][]byte {
			m.Truncated = udp
			if !udp {
				m.Id++
			}
			return [][]byte{pack(m)}
		},
		"extended code": func(_, m *dns.Msg, _ bool) [][]byte {
			m.SetEdns0(1232, false)
			m.Rcode = 4000
			return [][]byte{pack(m)}
		},
	} {
		t.Run(what, func(t *testing.T) {
			bad, good := newServer(t, srv(60, 1, 1, 66, "a.example.org"), "a.example.org. 60 A 10.6.6.6"),
				newServer(t, srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 A 10.0.0.1")
			bad.with(func() { bad.forge = forge })
			bubble(t, Options{Servers: servers(bad, good)}, func(w *watching) {
				w.is("", "10.0.0.1:80/1/100")
				if bad.questions() == nil {
					t.Error("the bad server was not asked")
				}
			})
		})
	}
	// Datagrams before the answer that are none.
	s := newServer(t, srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 A 10.0.0.1")
	s.with(func() {
		s.forge = func(q, m *dns.Msg, _ bool) [][]byte {
			other := m.Copy()
			other.Id++
			other.Answer = nil
			return [][]byte{{}, {1}, []byte(strings.Repeat("x", 40)), pack(other), pack(q), pack(m)}
		}
	})
	bubble(t, Options{Servers: servers(s)}, func(w *watching) { w.is("", "10.0.0.1:80/1/100") })
}

func TestOldServer(t *testing.T) {
	t.Parallel()
	s := newServer(t, srv(60, 1, 1, 80, "a.example.org"), "a.example.org. 60 A 10.0.0.1")
	s.with(func() { s.noEDNS = true })
	bubble(t, Options{Servers: servers(s)}, func(w *watching) { w.is("", "10.0.0.1:80/1/100") })
}

// Watch returns when ctx is done, though a server keeps it waiting.
func TestCancel(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	asked := make(chan struct{}, 1)
	s.with(func() {
		s.forge = func(_, _ *dns.Msg, _ bool) [][]byte {
			select {
			case asked <- struct{}{}:
			default:
			}
			return nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watch(ctx, name, Options{Servers: servers(s), Timeout: time.Hour}, func(list []Target, err error) { t.Errorf("posted %v, %v", list, err) })
	}()
	<-asked
	cancel()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("Watch goes on")
	}
}

func TestNoName(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"", ".", "a..b", strings.Repeat("x", 64) + ".org"} {
		var got error
		Watch(t.Context(), name, Options{}, func(_ []Target, err error) { got = err })
		if got == nil {
			t.Errorf("%q was looked up", name)
		}
	}
}

// The servers come from the file, or, without it, are the one of this machine;
// the file is read anew each time.
func TestResolvConf(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	serve := func(addr string, port int) {
		pc, err := ns.ListenPacket("udp", addr+":53")
		if err != nil {
			t.Fatal(err)
		}
		s := &server{TB: t, rcode: map[string]int{}, glue: true}
		s.set(srv(60, 1, 1, port, "a.example.org"), "a.example.org. 60 A 10.0.0.1", "a.example.org. 60 AAAA fd00::1")
		s.serve(&dns.Server{PacketConn: pc, Handler: s})
	}
	serve("127.0.0.1", 1)
	serve("127.0.0.2", 2)
	serve("[::1]", 3)
	path := filepath.Join(t.TempDir(), "resolv.conf")
	a := &asker{opt: Options{ResolvConf: path}}
	port := func() (port uint16) {
		err := ns.Do(func() error {
			m, err := a.ask(t.Context(), name+".", dns.TypeSRV)
			if err == nil {
				port = m.Answer[0].(*dns.SRV).Port
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := port(); got != 1 {
		t.Errorf("without a file: server %d", got)
	}
	write("# nothing\nsearch example.org\n")
	if got := port(); got != 1 {
		t.Errorf("without a server: server %d", got)
	}
	write("nameserver 127.0.0.2\nnameserver bad\n")
	if got := port(); got != 2 {
		t.Errorf("server %d, want 2", got)
	}
	write("nameserver 127.0.0.3\nnameserver ::1\noptions timeout:7 attempts:3\n")
	if got := port(); got != 3 {
		t.Errorf("server %d, want 3", got)
	}
	list, attempts, timeout, err := a.servers()
	want := []netip.AddrPort{netip.MustParseAddrPort("[::1]:53"), netip.MustParseAddrPort("127.0.0.3:53")}
	if err != nil || !slices.Equal(list, want) || attempts != 3 || timeout != 7*time.Second {
		t.Errorf("%v, %d attempts, %s, %v", list, attempts, timeout, err)
	}
	if _, err := (&asker{opt: Options{ResolvConf: t.TempDir()}}).ask(t.Context(), name+".", dns.TypeSRV); err == nil {
		t.Error("a file that cannot be read is none")
	}
}
