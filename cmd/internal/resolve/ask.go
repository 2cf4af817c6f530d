package resolve

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
)

// payload is the size of UDP answers that is asked for: what passes any
// network without being fragmented. Longer ones are fetched by TCP.
const payload = 1232

// asker puts questions to the servers of a resolv.conf(5).
type asker struct {
	opt Options

	mu   sync.Mutex
	good netip.AddrPort // the server that answered last; it is asked first
}

// servers are those to be asked, and how often and how long each.
func (a *asker) servers() (list []netip.AddrPort, attempts int, timeout time.Duration, err error) {
	// As in glibc, but for the rounds: one more costs little.
	attempts, timeout = 2, 5*time.Second
	if list = slices.Clone(a.opt.Servers); len(list) == 0 {
		// Each time anew: the file changes with the network.
		c, err := dns.ClientConfigFromFile(a.opt.ResolvConf)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, 0, 0, fmt.Errorf("read servers: %w", err)
		}
		if err == nil {
			attempts = min(max(c.Attempts, 1), 5)
			timeout = min(max(time.Duration(c.Timeout)*time.Second, time.Second), 30*time.Second)
			for _, s := range c.Servers {
				if ip, err := netip.ParseAddr(s); err == nil {
					list = append(list, netip.AddrPortFrom(ip, 53))
				}
			}
		}
	}
	if len(list) == 0 { // resolv.conf(5): the name server on the local machine
		list = append(list, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 53))
	}
	if a.opt.Timeout > 0 {
		timeout = a.opt.Timeout
	}
	a.mu.Lock()
	good := a.good
	a.mu.Unlock()
	if i := slices.Index(list, good); i > 0 {
		list = slices.Insert(slices.Delete(list, i, i+1), 0, good)
	}
	return list, attempts, timeout, nil
}

// ask asks one server after the other until one has an answer. That a name or
// a record does not exist is an answer. The error is that of the first server.
func (a *asker) ask(ctx context.Context, name string, typ uint16) (*dns.Msg, error) {
	list, attempts, timeout, err := a.servers()
	if err != nil {
		return nil, err
	}
	var first error
	for range attempts {
		for _, s := range list {
			m, err := exchange(ctx, s, name, typ, timeout)
			if err == nil {
				a.mu.Lock()
				a.good = s
				a.mu.Unlock()
				return m, nil
			}
			if first == nil {
				first = fmt.Errorf("ask %s: %w", s, err)
			}
			if ctx.Err() != nil {
				return nil, first
			}
		}
	}
	return nil, first
}

// exchange asks one server, by UDP and if need be by TCP, each for at most
// timeout.
func exchange(ctx context.Context, server netip.AddrPort, name string, typ uint16, timeout time.Duration) (*dns.Msg, error) {
	q := new(dns.Msg).SetQuestion(name, typ)
	q.SetEdns0(payload, false)
	m, err := once(ctx, "udp", server, q, timeout)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		q.Extra = nil // a server from before 1999
		m, err = once(ctx, "udp", server, q, timeout)
	}
	if err == nil && m.Truncated {
		m, err = once(ctx, "tcp", server, q, timeout)
	}
	if err != nil {
		return nil, explain(err)
	}
	switch {
	case m.Truncated:
		return nil, errors.New("truncated answer by tcp")
	case m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError:
		return nil, errors.New(rcode(m.Rcode))
	case m.Rcode == dns.RcodeSuccess && len(m.Answer) == 0 && !m.Authoritative && !m.RecursionAvailable:
		return nil, errors.New("referral to other servers")
	}
	return m, nil
}

func rcode(n int) string {
	if s, ok := dns.RcodeToString[n]; ok {
		return s
	}
	return fmt.Sprintf("rcode %d", n)
}

// once sends a question and waits for its answer. The client of the library
// would not heed the end of ctx while it waits.
func once(ctx context.Context, network string, server netip.AddrPort, q *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	d := net.Dialer{Timeout: timeout, KeepAlive: -1}
	d.SetMultipathTCP(false)
	nc, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	c := &dns.Conn{Conn: nc, UDPSize: payload}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	q.Id = dns.Id()
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		m, err := c.ReadMsg()
		if m == nil {
			if network == "udp" && errors.Is(err, dns.ErrShortRead) {
				continue
			}
			return nil, err
		}
		// By UDP anybody may send anything; what is not the answer to this
		// question is not it, however broken it is.
		if m.Id != q.Id || !m.Response {
			if network == "udp" {
				continue
			}
			return nil, dns.ErrId
		}
		if err != nil {
			// A truncated answer need not be whole.
			if m.Truncated && network == "udp" {
				return m, nil
			}
			return nil, fmt.Errorf("malformed answer: %w", err)
		}
		// Servers leave out the question with some errors.
		if len(m.Question) == 0 && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			return m, nil
		}
		if len(m.Question) != 1 || m.Question[0].Qtype != q.Question[0].Qtype || m.Question[0].Qclass != dns.ClassINET ||
			dns.CanonicalName(m.Question[0].Name) != q.Question[0].Name {
			return nil, errors.New("answer to another question")
		}
		return m, nil
	}
}

// explain words an error of the network without its ephemeral port, so that
// the same failure has the same words.
func explain(err error) error {
	var ne net.Error
	var errno syscall.Errno
	var oe *net.OpError
	switch {
	case errors.As(err, &ne) && ne.Timeout():
		return os.ErrDeadlineExceeded
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &oe):
		return oe.Err
	}
	return err
}
