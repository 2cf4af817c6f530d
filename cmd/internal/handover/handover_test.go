package handover

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"
)

// serve runs f for each connection to the backend's port 8080.
func (l *lab) serve(t testing.TB, f func(net.Conn)) {
	t.Helper()
	for _, addr := range []netip.Addr{l.backend.Addr4, l.backend.Addr6} {
		ln, err := l.backend.Listen("tcp", netip.AddrPortFrom(addr, 8080).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					f(c)
				}()
			}
		}()
	}
}

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

func (l *lab) dial(t testing.TB, service netip.AddrPort) *net.TCPConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := l.Client.Dial(ctx, "tcp", service.String())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

func TestFirst(t *testing.T) {
	t.Parallel()
	for _, service := range []netip.AddrPort{service4, service6} {
		t.Run(service.String(), func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.serve(t, func(c net.Conn) {
				fmt.Fprintf(c, "hello %s\n", c.RemoteAddr())
				echo(c)
			})
			h := l.hold(t, service)
			c := l.dial(t, service)
			fmt.Fprintf(c, "first line\n")
			held := h.accept()
			waitBytes(t, held, 11)
			r := l.handover(l.porter, held)
			if r[0].Reason != Done || r[0].Err != nil || r[0].Bytes != 11 {
				t.Fatalf("result %+v", r[0])
			}
			b := bufio.NewReader(c)
			fmt.Fprintf(c, "second line\n")
			for _, want := range []string{fmt.Sprintf("hello %s\n", c.LocalAddr()), "first line\n", "second line\n"} {
				got, err := b.ReadString('\n')
				if err != nil || got != want {
					t.Fatalf("got %q %v, want %q", got, err, want)
				}
			}
		})
	}
}
