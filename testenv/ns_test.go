package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestLab(t *testing.T) {
	t.Parallel()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			l := NewLab(t)
			l.Host.AddAddr(t, "192.0.2.10/32", "lo")
			l.Host.AddAddr(t, "2001:db8::10/128", "lo")
			bn := NewBackendNet(t, l.Host, 2)
			for _, to := range []struct {
				ns   *NS
				addr netip.Addr
			}{
				{l.Host, netip.MustParseAddr("192.0.2.10")},
				{l.Host, netip.MustParseAddr("2001:db8::10")},
				{bn.Backends[0].NS, bn.Backends[0].Addr4},
				{bn.Backends[1].NS, bn.Backends[1].Addr6},
			} {
				want := l.ClientAddr4
				if to.addr.Is6() {
					want = l.ClientAddr6
				}
				if got := remote(t, l.Client, to.ns, to.addr); got != want {
					t.Errorf("dial %s: remote = %s, want %s", to.addr, got, want)
				}
			}
		})
	}
}

// remote dials addr from one namespace and returns who the other saw.
func remote(t *testing.T, from, to *NS, addr netip.Addr) netip.Addr {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	ln, err := to.Listen("tcp", netip.AddrPortFrom(addr, 8080).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := from.Dial(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	return s.RemoteAddr().(*net.TCPAddr).AddrPort().Addr()
}

func TestNSDo(t *testing.T) {
	t.Parallel()
	ns := NewNS(t, "do")
	before := threadLink(t)
	want := fmt.Sprintf("net:[%d]", ns.Inode())
	err := ns.Do(func() error {
		if got := threadLink(t); got != want {
			t.Errorf("inside: %s, want %s", got, want)
		}
		return os.ErrExist
	})
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("error = %v", err)
	}
	if got := threadLink(t); got != before || got == want {
		t.Errorf("afterwards: %s, want %s", got, before)
	}
	if got := strings.TrimSpace(ns.Run(t, "readlink", "/proc/self/ns/net")); got != want {
		t.Errorf("command in %s, want %s", got, want)
	}
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed namespace: error = %v", err)
	}
}

func TestNSDoGoexit(t *testing.T) {
	t.Parallel()
	ns := NewNS(t, "goexit")
	done := make(chan bool, 1)
	go func() {
		passed := false
		defer func() { done <- passed }()
		_ = ns.Do(func() error { runtime.Goexit(); return nil })
		passed = true
	}()
	if <-done {
		t.Error("caller went on after Goexit inside")
	}
}

func TestNSRefusesOrigin(t *testing.T) {
	t.Parallel()
	Require(t)
	f, err := threadNS()
	if err != nil {
		t.Fatal(err)
	}
	ino, err := inode(f)
	if err != nil {
		t.Fatal(err)
	}
	ns := &NS{Name: "forged", inode: ino, file: f}
	defer ns.Close()
	ran := false
	if err := ns.Do(func() error { ran = true; return nil }); !errors.Is(err, ErrOrigin) || ran {
		t.Errorf("error = %v, ran = %v", err, ran)
	}
	if _, err := sysctlPath("kernel.panic"); !errors.Is(err, ErrOrigin) {
		t.Errorf("kernel sysctl: error = %v", err)
	}
}

func threadLink(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	link, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

// An address that was added receives, also while the kernel is busy with the
// links of other namespaces.
func TestAddrReceives(t *testing.T) {
	t.Parallel()
	ns, busy := NewNS(t, "receives"), NewNS(t, "busy")
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			_, err := run(busy.Command(context.Background(), "ip", "-batch", "-"), "link add name a0 type veth peer name b0\nlink del a0\n")
			if err != nil {
				stopped <- err
				return
			}
		}
	}()
	for i := range 100 {
		ns.AddAddr(t, fmt.Sprintf("2001:db8::%x/128", i+1), "")
		if missing, err := ns.unrouted(); len(missing) != 0 || err != nil {
			t.Errorf("not received at: %v, %v", missing, err)
		}
	}
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
