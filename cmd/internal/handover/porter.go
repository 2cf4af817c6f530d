package handover

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"sluice/conntrack"
	"sluice/nft"
)

// Held is an accepted connection whose bytes nobody has read or written yet.
type Held struct {
	// FD is a TCP socket that nothing else reads, writes, polls for or closes
	// during the attempt. It is closed unless the Reason says relay.
	FD      int
	Client  netip.AddrPort
	Service netip.AddrPort // the address the client connected to
	Backend netip.AddrPort
}

// Result says how an attempt ended.
type Result struct {
	Reason Reason
	Err    error // what went wrong, if anything did; may be set with any Reason
	Bytes  int   // received from the client before and delivered to the backend
}

// Freezer keeps the packets of moving connections from the connection tracker,
// as [nft.Table] does.
type Freezer interface {
	Freeze([]nft.Tuple, time.Duration) error
	Unfreeze([]nft.Tuple) error
}

// Tracker changes the connection tracking table, as [conntrack.Conn] does.
type Tracker interface {
	Do(*conntrack.Batch) ([]error, error)
}

// Limits of an attempt.
const (
	// maxMoving connections are under way at once.
	maxMoving = 128
	// answerTimeout is how long a backend has for its SYN-ACK. On an idle
	// machine that takes 0.2 ms; on one with a run queue of 15, up to a second.
	answerTimeout = 1500 * time.Millisecond
	// freezeTimeout must outlast an attempt up to its commit.
	freezeTimeout = 4 * time.Second
	// deliverTimeout is how long a backend may answer nothing.
	deliverTimeout = 5 * time.Second
	// firstResend doubles up to lastResend. The way is one virtual cable long.
	firstResend = 20 * time.Millisecond
	lastResend  = 200 * time.Millisecond
)

// Porter hands connections over. Its methods may be called concurrently.
type Porter struct {
	freezer Freezer
	thaw    group[nft.Tuple]
	replace group[conntrack.Entry]
	wire    *wire
	routes  *router
	accECN  bool

	mu     sync.Mutex
	moving map[pair]bool
}

// Open makes a Porter for the network namespace of the calling thread, in which
// Handover must be called too. Its own packets carry [nft.PacketMark]. It needs
// CAP_NET_ADMIN and CAP_NET_RAW.
func Open(f Freezer, t Tracker) (*Porter, error) {
	w, err := openWire(nft.PacketMark)
	if err != nil {
		return nil, err
	}
	r, err := openRouter()
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	p := &Porter{freezer: f, wire: w, routes: r, accECN: accurateECN(), moving: make(map[pair]bool)}
	p.thaw.do = func(ts []nft.Tuple) []error { return all(len(ts), f.Unfreeze(ts)) }
	p.replace.do = func(es []conntrack.Entry) []error { return replace(t, es) }
	return p, nil
}

// Close must not be called during Handover.
func (p *Porter) Close() error {
	return errors.Join(p.wire.close(), p.routes.close())
}

// accurateECN tells whether listeners here may have agreed on accurate ECN
// (RFC 9768, Linux 6.18), which does not show in a socket's info.
func accurateECN() bool {
	b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_ecn")
	s := strings.TrimSpace(string(b))
	return err != nil || s != "0" && s != "1" && s != "2"
}

// Handover moves connections to their backends and returns when all attempts
// have ended. Each is reported by done with its index in batch as soon as it has,
// possibly by several goroutines at once: a connection to be relayed need not
// wait for others.
//
// When ctx ends, connections that are not past their commit are left to the
// relay. Others have what the client has sent delivered first; how long this
// takes is up to the backend, as long as it is there: the end of ctx then leaves
// it five seconds.
func (p *Porter) Handover(ctx context.Context, batch []Held, done func(int, Result)) {
	batch = slices.Clone(batch)
	todo := p.sort(batch, done)
	if len(todo) == 0 {
		return
	}
	pairs := make([]pair, len(todo))
	for j, i := range todo {
		pairs[j] = batch[i].pair()
	}
	t, err := openTap(pairs)
	if err != nil {
		for j, i := range todo {
			p.release(pairs[j])
			done(i, Result{Reason: Unable, Err: err})
		}
		return
	}
	defer t.close()

	var moving sync.WaitGroup
	defer moving.Wait()
	slots := make(chan struct{}, maxMoving)
	for len(todo) > 0 {
		n := take(slots, len(todo))
		var now []int
		now, todo = todo[:n], todo[n:]
		tuples := make([]nft.Tuple, n)
		for j, i := range now {
			tuples[j] = batch[i].tuple()
		}
		if err := p.freezer.Freeze(tuples, freezeTimeout); err != nil {
			for _, i := range now {
				t.forget(batch[i].pair())
				p.release(batch[i].pair())
				done(i, Result{Reason: Unable, Err: fmt.Errorf("freeze: %w", err)})
				<-slots
			}
			continue
		}
		for _, i := range now {
			moving.Go(func() {
				done(i, p.move(ctx, t, &batch[i], func() { <-slots }))
			})
		}
	}
}

// take waits for one slot and takes up to n that are free.
func take(slots chan struct{}, n int) int {
	slots <- struct{}{}
	for i := 1; i < n; i++ {
		select {
		case slots <- struct{}{}:
		default:
			return i
		}
	}
	return n
}

// sort reports what can be told without freezing, and returns the rest.
func (p *Porter) sort(batch []Held, done func(int, Result)) []int {
	w := ways{router: p.routes, known: make(map[netip.Addr]way)}
	todo := make([]int, 0, len(batch))
	for i := range batch {
		h := &batch[i]
		h.Client, h.Service, h.Backend = unmap(h.Client), unmap(h.Service), unmap(h.Backend)
		reason, err := w.refuse(h)
		if reason == "" {
			var info tcpInfo
			if info, err = readInfo(h.FD); err != nil {
				reason = Unable
			} else {
				reason = info.refuse()
			}
		}
		if reason == "" && !p.claim(h.pair()) {
			reason = Refused
		}
		switch reason {
		case "":
			todo = append(todo, i)
			continue
		case Gone:
			err = closeSocket(h.FD)
		}
		done(i, Result{Reason: reason, Err: err})
	}
	return todo
}

// claim takes a pair of addresses for one attempt, until release. A client may call
// two addresses of a service from the same port: to the backend both would be one.
func (p *Porter) claim(k pair) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.moving[k] {
		return false
	}
	p.moving[k] = true
	return true
}

func (p *Porter) release(k pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.moving, k)
}

func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (h *Held) tuple() nft.Tuple {
	return nft.Tuple{Client: h.Client, Service: h.Service, Backend: h.Backend}
}

func (h *Held) pair() pair { return pair{h.Backend, h.Client} }
