package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// path is a way to the container.
type path struct {
	to   netip.AddrPort
	from netip.Addr
}

// workers is how many connections a run has at a time.
const workers = 8

// run asks for so long, over connections that last or over a fresh one each
// time, and returns answers per second.
func (p path) run(ctx context.Context, ns *testenv.NS, length time.Duration, fresh bool) (float64, error) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	var total int
	var errs []error
	begin := time.Now()
	end := begin.Add(length)
	for range workers {
		wg.Go(func() {
			n := 0
			// Blocking system calls on the namespace's own thread: a
			// connection costs the client no more than it must.
			err := ns.Do(func() error {
				for ctx.Err() == nil && time.Now().Before(end) {
					m, err := p.connection(fresh, end)
					n += m
					if err != nil {
						return err
					}
				}
				return ctx.Err()
			})
			mu.Lock()
			defer mu.Unlock()
			total += n
			errs = append(errs, err)
		})
	}
	wg.Wait()
	return float64(total) / time.Since(begin).Seconds(), errors.Join(errs...)
}

// connection asks over one connection: once, and until the server closes it, if
// it is to be fresh each time, else until end.
func (p path) connection(fresh bool, end time.Time) (answers int, err error) {
	c, err := p.dial()
	if err != nil {
		return 0, err
	}
	defer c.Close()
	if fresh {
		if err := c.last(); err != nil {
			return 0, err
		}
		return 1, nil
	}
	return c.until(end)
}

// client is the client's side of one connection, by blocking system calls.
type client struct {
	fd  int
	buf []byte
}

// dial connects from the namespace of the calling thread. The connection may
// then be used anywhere.
func (p path) dial() (*client, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open socket: %w", err)
	}
	c := &client{fd: fd, buf: make([]byte, 4096)}
	limit := unix.Timeval{Sec: 10}
	for _, err := range []error{
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit),
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1),
		unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Addr: p.from.As4()}),
	} {
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("set up socket: %w", err)
		}
	}
	if err := again(func() error {
		return unix.Connect(fd, &unix.SockaddrInet4{Addr: p.to.Addr().As4(), Port: int(p.to.Port())})
	}); err != nil {
		c.Close()
		return nil, fmt.Errorf("connect: %w", err)
	}
	return c, nil
}

func (c *client) Close() { unix.Close(c.fd) }

// until asks who is there, again and again, until end and at least once.
func (c *client) until(end time.Time) (answers int, err error) {
	for {
		if err := c.ask(); err != nil {
			return answers, err
		}
		answers++
		if !time.Now().Before(end) {
			return answers, nil
		}
	}
}

const who = "GET /who HTTP/1.1\r\nHost: bench\r\n"

// ask asks who is there and leaves the connection open.
func (c *client) ask() error {
	return c.answer(who+"\r\n", func(got []byte) bool { return bytes.HasSuffix(got, []byte("}\n")) })
}

// last asks who is there and takes what comes until the server closes.
func (c *client) last() error {
	return c.answer(who+"Connection: close\r\n\r\n", func([]byte) bool { return false })
}

func (c *client) answer(request string, complete func(got []byte) bool) error {
	if err := c.write(request); err != nil {
		return err
	}
	n := 0
	for {
		m, err := c.read(c.buf[n:])
		if err != nil {
			return err
		}
		n += m
		if m == 0 || complete(c.buf[:n]) {
			break
		}
	}
	if got := c.buf[:n]; !bytes.HasPrefix(got, []byte("HTTP/1.1 200 ")) || !bytes.HasSuffix(got, []byte("}\n")) {
		return fmt.Errorf("unexpected answer %q", got)
	}
	return nil
}

// download takes an answer of size bytes and leaves the connection open.
func (c *client) download(size int64) error {
	if err := c.write("GET /bytes?n=" + strconv.FormatInt(size, 10) + " HTTP/1.1\r\nHost: bench\r\n\r\n"); err != nil {
		return err
	}
	if len(c.buf) < 256<<10 {
		c.buf = make([]byte, 256<<10)
	}
	n, head := 0, -1
	for head < 0 {
		m, err := c.read(c.buf[n:])
		if err != nil {
			return err
		}
		n += m
		head = bytes.Index(c.buf[:n], []byte("\r\n\r\n"))
		if head < 0 && (m == 0 || n == len(c.buf)) || n >= 13 && !bytes.HasPrefix(c.buf, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("unexpected answer %q", c.buf[:min(n, 1000)])
		}
	}
	for have := int64(n - head - 4); have != size; {
		m, err := c.read(c.buf)
		if err != nil {
			return err
		}
		if have += int64(m); m == 0 || have > size {
			return fmt.Errorf("download ended after %d of %d bytes", have, size)
		}
	}
	return nil
}

func (c *client) write(s string) error {
	if err := again(func() error { _, err := unix.Write(c.fd, []byte(s)); return err }); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	return nil
}

func (c *client) read(p []byte) (n int, err error) {
	if err := again(func() (err error) { n, err = unix.Read(c.fd, p); return err }); err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	return n, nil
}

// again repeats f when a signal has interrupted it; the runtime sends some.
func again(f func() error) error {
	for {
		if err := f(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
