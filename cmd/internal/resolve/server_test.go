package resolve

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// server is a DNS server on a loopback port, UDP and TCP. It answers from its
// records alone, as an authoritative server of the root would.
type server struct {
	testing.TB
	addr netip.AddrPort

	mu      sync.Mutex
	records []dns.RR
	rcode   map[string]int // by name: instead of an answer
	glue    bool
	mute    bool
	noEDNS  bool
	shallow bool                                          // aliases are not followed
	forge   func(q, m *dns.Msg, udp bool) (wire [][]byte) // instead of m
	asked   []string                                      // network, type, name
}

func newServer(t testing.TB, records ...string) *server {
	t.Helper()
	s := &server{TB: t, rcode: map[string]int{}}
	s.set(records...)
	var pc net.PacketConn
	var ln net.Listener
	for pc == nil {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err != nil {
			ln.Close()
			if !errors.Is(err, unix.EADDRINUSE) {
				t.Fatal(err)
			}
		}
	}
	s.addr = ln.Addr().(*net.TCPAddr).AddrPort()
	s.serve(&dns.Server{PacketConn: pc, Handler: s})
	s.serve(&dns.Server{Listener: ln, Handler: s})
	return s
}

func (s *server) serve(d *dns.Server) {
	started, ended := make(chan struct{}), make(chan error, 1)
	d.NotifyStartedFunc = func() { close(started) }
	go func() { ended <- d.ActivateAndServe() }()
	<-started
	s.Cleanup(func() {
		if err := errors.Join(d.Shutdown(), <-ended); err != nil {
			s.Error(err)
		}
	})
}

// set replaces the records.
func (s *server) set(records ...string) {
	s.Helper()
	list := parse(s, records...)
	s.with(func() { s.records = list })
}

func (s *server) with(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// fail makes the server answer with a code about a name; 0 ends that.
func (s *server) fail(name string, rcode int) { s.with(func() { s.rcode[name] = rcode }) }

// questions returns, and forgets, what was asked.
func (s *server) questions() (asked []string) {
	s.with(func() { asked, s.asked = s.asked, nil })
	return asked
}

func parse(t testing.TB, records ...string) []dns.RR {
	t.Helper()
	list := make([]dns.RR, 0, len(records))
	for _, r := range records {
		rr, err := dns.NewRR(r)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, rr)
	}
	return list
}

func (s *server) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	network := w.LocalAddr().Network()
	s.asked = append(s.asked, fmt.Sprintf("%s %s %s", network, dns.TypeToString[q.Question[0].Qtype], q.Question[0].Name))
	if s.mute {
		return
	}
	m := s.answer(q)
	if network == "udp" {
		size := uint16(dns.MinMsgSize)
		if o := q.IsEdns0(); o != nil {
			size = o.UDPSize()
		}
		m.Truncate(int(size))
	}
	if s.forge != nil {
		for _, b := range s.forge(q, m, network == "udp") {
			_, _ = w.Write(b)
		}
		return
	}
	_ = w.WriteMsg(m)
}

func (s *server) answer(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(q)
	m.Authoritative = true
	name, typ := q.Question[0].Name, q.Question[0].Qtype
	if s.noEDNS && q.IsEdns0() != nil {
		m.Rcode = dns.RcodeFormatError
		return m
	}
	if m.Rcode = s.rcode[name]; m.Rcode != 0 {
		return m
	}
	exists := false
	for hops := 0; hops < 20; hops++ {
		alias := ""
		for _, rr := range s.records {
			if !strings.EqualFold(rr.Header().Name, name) {
				continue
			}
			exists = true
			if c, ok := rr.(*dns.CNAME); ok {
				alias = c.Target
				m.Answer = append(m.Answer, rr)
			} else if rr.Header().Rrtype == typ {
				m.Answer = append(m.Answer, rr)
			}
		}
		if alias == "" || s.shallow {
			break
		}
		name = alias
	}
	if !exists {
		m.Rcode = dns.RcodeNameError
	}
	if s.glue {
		for _, rr := range m.Answer {
			srv, ok := rr.(*dns.SRV)
			if !ok {
				continue
			}
			m.Extra = append(m.Extra, slices.DeleteFunc(slices.Clone(s.records), func(rr dns.RR) bool {
				return rr.Header().Name != srv.Target
			})...)
		}
	}
	return m
}
