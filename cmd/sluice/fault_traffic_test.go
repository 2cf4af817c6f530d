package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sluice/testenv"
)

// A contact is one connection of a client, from its SYN to its end.
type contact struct {
	service string
	kind    string // short, long, bulk
	began   time.Time
	ended   time.Time // zero: still open
	heard   time.Time // when the container spoke last
	excused bool      // it may be lost without having found out, see settle
	server  string    // the container that answered; "" if none has
	err     error     // nil: it went as the client wanted
}

func (c contact) String() string {
	end := "open"
	if !c.ended.IsZero() {
		end = fmt.Sprintf("after %s", c.ended.Sub(c.began).Round(time.Millisecond))
	}
	return fmt.Sprintf("%s connection to %s (%s), begun %s, %s: %v", c.kind, c.service, c.server, c.began.Format("05.000"), end, c.err)
}

// A crowd is the clients of the services: each connection of theirs is
// accounted for, whatever becomes of it.
type crowd struct {
	from  *testenv.NS
	addrs map[string]string // address and port by service

	mu    sync.Mutex
	calls []*contact
	news  chan struct{} // closed and renewed when a contact ends or is answered
}

func newCrowd(from *testenv.NS, addrs map[string]string) *crowd {
	return &crowd{from: from, addrs: addrs, news: make(chan struct{})}
}

// patience of a client: what takes longer counts as failed.
const clientPatience = 45 * time.Second

func (c *crowd) begin(service, kind string) *contact {
	x := &contact{service: service, kind: kind, began: time.Now()}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls = append(c.calls, x)
	return x
}

func (c *crowd) answered(x *contact, server string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x.heard, x.excused = time.Now(), false
	if x.server != server {
		x.server = server
		c.tell()
	}
}

func (c *crowd) end(x *contact, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	x.ended, x.err = time.Now(), err
	c.tell()
}

func (c *crowd) tell() {
	close(c.news)
	c.news = make(chan struct{})
}

// since returns the calls that were open at a time or have begun later.
func (c *crowd) since(at time.Time) (list []contact) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, x := range c.calls {
		if x.ended.IsZero() || x.ended.After(at) {
			list = append(list, *x)
		}
	}
	return list
}

// await waits until a number of the calls are ok.
func (c *crowd) await(ctx context.Context, n int, ok func(contact) bool) error {
	for {
		c.mu.Lock()
		have := 0
		for _, x := range c.calls {
			if ok(*x) {
				have++
			}
		}
		news := c.news
		c.mu.Unlock()
		if have >= n {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return fmt.Errorf("%d of %d connections: %w", have, n, ctx.Err())
		}
	}
}

// settle waits until each call that began before a time has ended or was
// answered since. It does not wait for those that may be lost, as the client
// that is silent finds out late: they are excused until they are heard of.
func (c *crowd) settle(t *testing.T, at time.Time, may func(contact) bool) {
	t.Helper()
	testenv.Eventually(t, patient, func() (bool, string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		var silent []*contact
		for _, x := range c.calls {
			if !x.ended.IsZero() || !x.began.Before(at) || !x.heard.Before(at) {
				continue
			}
			if !may(*x) {
				return false, x.String()
			}
			silent = append(silent, x)
		}
		for _, x := range silent {
			x.excused = true
		}
		return true, ""
	})
}

// forget drops the calls that have ended before a time.
func (c *crowd) forget(before time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.calls[:0]
	for _, x := range c.calls {
		if x.ended.IsZero() || !x.ended.Before(before) {
			kept = append(kept, x)
		}
	}
	c.calls = kept
}

// callers are the clients of one service for a while.
type callers struct {
	stop context.CancelFunc // no new connections, and long ones end
	done sync.WaitGroup
}

func (s *callers) end() {
	s.stop()
	s.done.Wait()
}

// visit has clients come to a service until the callers are ended: short
// connections one after the other, and long ones, opened again when they have
// ended of themselves.
func (c *crowd) visit(service string, short, long int, every time.Duration) *callers {
	ctx, cancel := context.WithCancel(context.Background())
	s := &callers{stop: cancel}
	for range short {
		s.done.Go(func() {
			for ctx.Err() == nil {
				c.short(service)
				pause(ctx, every)
			}
		})
	}
	for i := range long {
		s.done.Go(func() {
			for ctx.Err() == nil {
				if i%2 == 0 {
					c.long(ctx, service, nil)
				} else {
					c.bulk(ctx, service)
				}
				pause(ctx, every) // after a failure
			}
		})
	}
	return s
}

// connect opens a connection that a client is patient with.
func (c *crowd) connect(service string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), clientPatience)
	defer cancel()
	conn, err := c.from.Dial(ctx, "tcp", c.addrs[service])
	if err != nil {
		return nil, err
	}
	return conn, conn.SetDeadline(time.Now().Add(clientPatience))
}

// short asks for the name of the container, once.
func (c *crowd) short(service string) {
	x := c.begin(service, "short")
	c.end(x, func() error {
		conn, err := c.connect(service)
		if err != nil {
			return err
		}
		defer conn.Close()
		name, err := askName(conn, bufio.NewReader(conn), true)
		if err == nil {
			c.answered(x, name)
		}
		return err
	}())
}

// askName makes one request and reads the whole answer.
func askName(conn net.Conn, r *bufio.Reader, last bool) (string, error) {
	more := "keep-alive"
	if last {
		more = "close"
	}
	if _, err := fmt.Fprintf(conn, "GET /who HTTP/1.1\r\nHost: x\r\nConnection: %s\r\n\r\n", more); err != nil {
		return "", err
	}
	if err := skipHeader(r); err != nil {
		return "", err
	}
	var who struct{ Name string }
	text, err := r.ReadString('\n')
	if err != nil {
		return "", cutShort(err)
	}
	return who.Name, errors.Join(json.Unmarshal([]byte(text), &who), func() error {
		if who.Name == "" {
			return fmt.Errorf("answer %q names nobody", text)
		}
		return nil
	}())
}

func skipHeader(r *bufio.Reader) error {
	status, err := r.ReadString('\n')
	if err != nil {
		return cutShort(err)
	}
	if !strings.HasPrefix(status, "HTTP/1.1 200 ") {
		return fmt.Errorf("answer %q", status)
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return cutShort(err)
		}
		if line == "\r\n" {
			return nil
		}
	}
}

func cutShort(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// long asks again and again on one connection, which has to stay with its
// container, until ctx ends. It closes up when it was answered first.
func (c *crowd) long(ctx context.Context, service string, up chan<- string) {
	x := c.begin(service, "long")
	c.end(x, func() error {
		conn, err := c.connect(service)
		if err != nil {
			return err
		}
		defer conn.Close()
		r, first := bufio.NewReader(conn), ""
		for first == "" || ctx.Err() == nil {
			if err := conn.SetDeadline(time.Now().Add(clientPatience)); err != nil {
				return err
			}
			name, err := askName(conn, r, false)
			switch {
			case err != nil:
				return err
			case first == "":
				first = name
				if up != nil {
					up <- name
				}
			case name != first:
				return fmt.Errorf("answered by %s, before by %s", name, first)
			}
			c.answered(x, name)
			pause(ctx, 100*time.Millisecond)
		}
		return nil
	}())
}

// bulk downloads slowly until ctx ends and holds each byte against what was
// asked for.
func (c *crowd) bulk(ctx context.Context, service string) {
	x := c.begin(service, "bulk")
	c.end(x, func() error {
		conn, err := c.connect(service)
		if err != nil {
			return err
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		name, err := askName(conn, r, false)
		if err != nil {
			return err
		}
		c.answered(x, name)
		const size, rate, seed = 1 << 40, 20_000, 5
		if _, err := fmt.Fprintf(conn, "GET /bytes?n=%d&rate=%d&seed=%d HTTP/1.1\r\nHost: x\r\n\r\n", int64(size), rate, seed); err != nil {
			return err
		}
		if err := skipHeader(r); err != nil {
			return err
		}
		want := testenv.Bytes(size, seed)
		have, expected := make([]byte, 4096), make([]byte, 4096)
		for ctx.Err() == nil {
			if err := conn.SetReadDeadline(time.Now().Add(clientPatience)); err != nil {
				return err
			}
			n, err := r.Read(have)
			if err != nil {
				return cutShort(err)
			}
			if _, err := io.ReadFull(want, expected[:n]); err != nil {
				return err
			}
			if string(have[:n]) != string(expected[:n]) {
				return errors.New("other bytes than were asked for")
			}
			c.answered(x, name)
		}
		return nil
	}())
}

// lost says whether a connection has failed as it does when nobody serves it
// any more, or not yet: the client is told at once, or in time.
func (c contact) lost() bool {
	return errors.Is(c.err, syscall.ECONNRESET) || errors.Is(c.err, syscall.ECONNREFUSED) ||
		errors.Is(c.err, syscall.EPIPE) || errors.Is(c.err, syscall.ETIMEDOUT) || errors.Is(c.err, syscall.EHOSTUNREACH) || errors.Is(c.err, syscall.ENETUNREACH) || errors.Is(c.err, io.ErrUnexpectedEOF) ||
		errors.Is(c.err, context.DeadlineExceeded) || errors.Is(c.err, os.ErrDeadlineExceeded)
}
