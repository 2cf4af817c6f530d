package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// addresses gives the client more of them, as if there were so many clients.
func (h *host) addresses(t *testing.T, n int) (list []netip.Addr) {
	t.Helper()
	for i := range n {
		addr := fmt.Sprintf("10.99.0.%d", 20+i)
		h.Client.AddAddr(t, addr+"/24", "eth0")
		list = append(list, netip.MustParseAddr(addr))
	}
	return list
}

// TestLimits: what is beyond max_flows waits in the kernel until there is room,
// and is counted.
func TestLimits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	text := strings.Replace(web("min = 1", "", ""), "[service.web.container]", "max_flows = 2\n[service.web.container]", 1)
	d := h.start(t, h.configure(t, text))
	d.untilReady(t, "web", 1)
	first, second := h.hold(t), h.hold(t)
	third := make(chan error, 1)
	go func() {
		_, err := h.tryGet("/who")
		third <- err
	}()
	testenv.Eventually(t, patient, func() (bool, string) {
		n := h.metrics(t)[`sluice_limited_total{service="web"}`]
		return n > 0, "no packet was dropped for the limit"
	})
	select {
	case err := <-third:
		t.Fatalf("the third connection was not held up: %v", err)
	default:
	}
	_ = first.Close()
	_ = second.Close()
	if err := <-third; err != nil {
		t.Errorf("the third connection, once there was room: %v", err)
	}
}

// limited is how many packets of a service the kernel has dropped for a limit.
func (h *host) limited(t *testing.T, service string) float64 {
	t.Helper()
	return h.metrics(t)[fmt.Sprintf("sluice_limited_total{service=%q}", service)]
}

// TestClientLimits: max_flows_per_client holds up a client that has so many, and
// no other; max_new_per_second holds up whoever comes too soon, and
// max_new_per_second_per_client only who comes too often himself.
func TestClientLimits(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	n := testenv.NewBackendNet(t, h.Host, 1)
	testenv.StartServer(t, n.Backends[0].NS)
	const few, many = 4, 8
	text := ""
	for port, key := range map[int]string{81: "max_flows_per_client", 82: "max_new_per_second", 83: "max_new_per_second_per_client"} {
		text += fmt.Sprintf("[service.s%d]\nlisten = [\"%s:%[1]d/tcp\"]\n%[3]s = %[4]d\n[[service.s%[1]d.backend]]\naddress = \"%[5]s:8080\"\n",
			port, address, key, few, n.Backends[0].Addr4)
	}
	d := h.start(t, h.configure(t, text))
	for _, name := range []string{"s81", "s82", "s83"} {
		d.untilReady(t, name, 1)
	}
	clients := h.addresses(t, many)

	// Those that live.
	var open []net.Conn
	for range few {
		c, _, err := h.enter(clients[0], 81)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, c)
	}
	another := make(chan error, 1)
	go func() {
		c, _, err := h.enter(clients[0], 81)
		if err == nil {
			_ = c.Close()
		}
		another <- err
	}()
	testenv.Eventually(t, patient, func() (bool, string) {
		return h.limited(t, "s81") > 0, "no packet was dropped for max_flows_per_client"
	})
	for _, other := range clients[1:] {
		c, again, err := h.enter(other, 81)
		if err != nil || again > 0 {
			t.Errorf("another client is held up too: %d SYNs more, %v", again, err)
			continue
		}
		_ = c.Close()
	}
	select {
	case err := <-another:
		t.Fatalf("a client with %d connections was not held up: %v", few, err)
	default:
	}
	for _, c := range open {
		_ = c.Close()
	}
	if err := <-another; err != nil {
		t.Errorf("once there was room: %v", err)
	}

	// Those that begin: so many at once, from one address or from one each.
	for _, x := range []struct {
		port  int
		apart bool
		held  bool
	}{
		{82, true, true},
		{83, true, false},
		{83, false, true},
	} {
		var mu sync.Mutex
		var wg sync.WaitGroup
		held := 0
		for i := range many {
			from := clients[0]
			if x.apart {
				from = clients[i]
			}
			wg.Go(func() {
				c, again, err := h.enter(from, x.port)
				if err != nil {
					t.Errorf("s%d: %v", x.port, err)
					return
				}
				_ = c.Close()
				mu.Lock()
				defer mu.Unlock()
				if again > 0 {
					held++
				}
			})
		}
		wg.Wait()
		if held > 0 != x.held {
			t.Errorf("s%d, clients apart: %v: %d of %d connections were held up", x.port, x.apart, held, many)
		}
		if n := h.limited(t, fmt.Sprintf("s%d", x.port)); n > 0 != x.held {
			t.Errorf("s%d, clients apart: %v: %v packets were dropped for a limit", x.port, x.apart, n)
		}
	}
}

// enter opens a connection from an address of the client and is answered on it.
// It tells how many times the SYN had to be sent again.
func (h *host) enter(from netip.Addr, port int) (c net.Conn, again uint32, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patient)
	defer cancel()
	c, err = h.Client.DialFrom(ctx, netip.AddrPortFrom(from, 0), "tcp", fmt.Sprintf("%s:%d", address, port))
	if err != nil {
		return nil, 0, err
	}
	if err = c.SetDeadline(time.Now().Add(patient)); err == nil {
		if _, err = fmt.Fprint(c, "GET /hold?for=300s HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
			_, err = c.Read(make([]byte, 1))
		}
	}
	if err != nil {
		_ = c.Close()
		return nil, 0, err
	}
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		return c, 0, err
	}
	cerr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			again = info.Total_retrans
		}
	})
	if cerr != nil {
		err = cerr
	}
	return c, again, err
}
