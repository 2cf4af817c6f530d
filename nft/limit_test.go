package nft_test

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"
)

// refused fails if a flow from the address gets through, and waits until the
// kernel has counted a drop that it had not counted before.
func (l *lab) refused(t *testing.T, from *testenv.NS, local netip.Addr, network, addr string, at nft.Endpoint) {
	t.Helper()
	before := l.limited(t, at)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		c, err := from.DialFrom(ctx, netip.AddrPortFrom(local, 0), network, addr)
		if err == nil && network == "udp" {
			_, err = c.Write([]byte("?"))
			_ = c.Close()
		} else if err == nil {
			t.Errorf("%s %s from %s: got through", network, addr, local)
			_ = c.Close()
		}
		done <- err
	}()
	testenv.Eventually(t, patience, func() (bool, string) { return l.limited(t, at) > before, "nothing was dropped" })
	cancel()
	<-done
}

func (l *lab) limited(t *testing.T, at nft.Endpoint) uint64 {
	t.Helper()
	n, err := l.table.Limited(at)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestMaxFlows: no more flows live at a time than may, of the service and of a
// client, and one that ends makes room.
func TestMaxFlows(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	list4, list6 := l.clients(t, 3)
	for _, c := range []struct {
		network, addr string
		at            nft.Endpoint
		to            *nft.Service
		clients       []netip.Addr
	}{
		{"tcp", "192.0.2.10:80", tcp("192.0.2.10:80"), l.to4(0, 1), list4},
		{"tcp", "[2001:db8::10]:80", tcp("[2001:db8::10]:80"), l.to6(0), list6},
		{"udp", "192.0.2.10:81", udp("192.0.2.10:81"), l.to4(0), list4},
		{"tcp", "192.0.2.11:82", tcp("0.0.0.0:82"), l.to4(0), list4},
		{"udp", "[fd99::1]:83", udp("[::]:83"), l.to6(0), list6},
	} {
		t.Run(c.network+" "+c.at.String(), func(t *testing.T) {
			c.to.Limits = nft.Limits{MaxFlows: 4, MaxFlowsPerClient: 2}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{c.at: c.to})
			flow := func(client int) *conn {
				t.Helper()
				return dialFrom(t, l.Client, netip.AddrPortFrom(c.clients[client], 0), c.network, c.addr)
			}
			flows := []*conn{flow(0), flow(0)}
			l.refused(t, l.Client, c.clients[0], c.network, c.addr, c.at)
			flows = append(flows, flow(1), flow(2))
			l.refused(t, l.Client, c.clients[1], c.network, c.addr, c.at)
			l.refused(t, l.Client, c.clients[2], c.network, c.addr, c.at)
			if c.network == "tcp" {
				for _, f := range flows {
					if err := f.echo("still here"); err != nil {
						t.Errorf("an established flow: %v", err)
					}
				}
				// The client's next SYN finds room.
				before := l.limited(t, c.at)
				got := make(chan error, 1)
				go func() {
					late, err := tryDialFrom(l.Client, netip.AddrPortFrom(c.clients[1], 0), c.network, c.addr)
					if err == nil {
						_ = late.Close()
					}
					got <- err
				}()
				testenv.Eventually(t, patience, func() (bool, string) { return l.limited(t, c.at) > before, "nothing was dropped" })
				_ = flows[0].Close()
				if err := <-got; err != nil {
					t.Errorf("after another has gone: %v", err)
				}
			}
			// A client without flows is forgotten.
			if c.network == "tcp" {
				for _, f := range flows {
					_ = f.Close()
				}
				testenv.Eventually(t, patience, func() (bool, string) {
					set := map[bool]string{true: "flows-of4", false: "flows-of6"}[c.at.Addr.Is4()]
					list := l.Host.Run(t, "nft", "list", "set", "inet", "sluice", set)
					return !strings.Contains(list, netip.MustParseAddrPort(c.addr).Addr().String()+" "), list
				})
			}
			c.to.Limits = nft.Limits{}
			apply(t, l.table, map[nft.Endpoint]*nft.Service{c.at: c.to})
			flow(0)
			flow(0)
			if n := l.limited(t, c.at); n != 0 {
				t.Errorf("%d dropped of a service without limits", n)
			}
		})
	}
}

// TestNewPerSecond: what comes too fast is dropped, and comes through later; a
// service at the same address is not concerned, a client at another neither.
func TestNewPerSecond(t *testing.T) {
	t.Parallel()
	l := newLab(t, 1)
	list4, _ := l.clients(t, 2)
	whole, each, any := l.to4(0), l.to6(0), l.to4(0)
	whole.Limits.NewPerSecond, each.Limits.NewPerSecondPerClient, any.Limits.NewPerSecondPerClient = 1, 1, 1
	cold := &nft.Service{Limits: nft.Limits{NewPerSecond: 1}}
	serve(t, l.Host, "192.0.2.11:80", "host")
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): whole, tcp("[2001:db8::10]:80"): each, udp("0.0.0.0:81"): any,
		tcp("192.0.2.10:82"): l.to4(0), tcp("192.0.2.11:80"): cold,
	})
	// Dials at once, so that some are too many whatever the machine does: each
	// second lets one in, and a SYN is sent again after 1 and 3 seconds.
	burst := func(from *testenv.NS, local netip.Addr, network, addr string) {
		t.Helper()
		const n = 4
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := make(chan bool, n)
		for range n {
			go func() {
				c, err := from.DialFrom(ctx, netip.AddrPortFrom(local, 0), network, addr)
				if err == nil {
					_, _ = c.Write([]byte("?"))
					defer c.Close()
				}
				got <- err == nil
			}()
		}
		if !<-got {
			t.Errorf("%s %s: nobody got through", network, addr)
		}
		if network == "tcp" && !<-got {
			t.Errorf("%s %s: nobody else got through later", network, addr)
		}
	}
	for _, c := range []struct {
		from          *testenv.NS
		network, addr string
		at            nft.Endpoint
	}{
		{l.Client, "tcp", "192.0.2.10:80", tcp("192.0.2.10:80")},
		{l.Host, "tcp", "192.0.2.10:80", tcp("192.0.2.10:80")},
		{l.Client, "tcp", "[2001:db8::10]:80", tcp("[2001:db8::10]:80")},
		{l.Client, "udp", "10.99.0.1:81", udp("0.0.0.0:81")},
		{l.Client, "tcp", "192.0.2.11:80", tcp("192.0.2.11:80")},
	} {
		before := l.limited(t, c.at)
		deadline := time.Now().Add(patience)
		for burst(c.from, netip.Addr{}, c.network, c.addr); l.limited(t, c.at) == before; burst(c.from, netip.Addr{}, c.network, c.addr) {
			if time.Now().After(deadline) {
				t.Fatalf("%s %s: nothing was dropped", c.network, c.at)
			}
		}
	}
	for range 10 {
		dial(t, l.Client, "tcp", "192.0.2.10:82")
	}
	if n := l.limited(t, tcp("192.0.2.10:82")); n != 0 {
		t.Errorf("%d dropped of a service without limits", n)
	}
	askFrom(t, l.Client, netip.AddrPortFrom(list4[0], 0), "udp", "10.99.0.1:81")
	askFrom(t, l.Client, netip.AddrPortFrom(list4[1], 0), "udp", "10.99.0.1:81")

	// A later process finds the limits and the count.
	before, err := l.table.AllLimited()
	if err != nil {
		t.Fatal(err)
	}
	tab := open(t, l.Host)
	if s := tab.Services()[udp("0.0.0.0:81")]; s.Limits != any.Limits {
		t.Errorf("limits %+v", s.Limits)
	}
	if n, err := tab.Limited(tcp("192.0.2.10:80")); err != nil || n == 0 || n != before[tcp("192.0.2.10:80")] {
		t.Errorf("%d dropped, %v", n, err)
	}
	l.Host.Run(t, "nft", "flush set inet sluice rates4")
	if changed, err := tab.Restore(); err != nil || !changed {
		t.Errorf("restore: %v, %v", changed, err)
	}
	if changed, err := tab.Restore(); err != nil || changed {
		t.Errorf("restore again: %v, %v", changed, err)
	}
}
