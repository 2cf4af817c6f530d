package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sluice/testenv"
)

// dialIn is DialPrepared in a namespace.
func dialIn(ctx context.Context, ns *testenv.NS, backend netip.AddrPort, timeout time.Duration, prepare Prepare) (c *net.TCPConn, err error) {
	err = ns.Do(func() (err error) {
		c, err = DialPrepared(ctx, backend, timeout, prepare)
		return err
	})
	return c, err
}

// free says whether a port can be had by another socket.
func free(t *testing.T, ns *testenv.NS, port uint16) bool {
	t.Helper()
	ln, err := ns.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		if !errors.Is(err, unix.EADDRINUSE) {
			t.Fatal(err)
		}
		return false
	}
	ln.Close()
	return true
}

// What is prepared is there from before the first packet to the end of the
// dialling, and the port belongs to nobody else meanwhile.
func TestDialPrepared(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	for _, addr := range []string{"127.0.0.1:0", "[::1]:0"} {
		ln, err := ns.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ln.Close() })
		backend := ln.Addr().(*net.TCPAddr).AddrPort()
		var port uint16
		var calls []string
		c, err := dialIn(t.Context(), ns, backend, patience, func(local uint16) (func(), error) {
			port = local
			calls = append(calls, "prepare")
			if free(t, ns, local) {
				t.Errorf("%s: port %d is not held", addr, local)
			}
			if s := ns.Run(t, "ss", "-Htan", "state", "connected", fmt.Sprintf("sport = :%d", local)); strings.TrimSpace(s) != "" {
				t.Errorf("%s: before prepare: %s", addr, s)
			}
			return func() { calls = append(calls, "undo") }, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		accepted, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		if got := accepted.RemoteAddr().(*net.TCPAddr).Port; got != int(port) || port == 0 {
			t.Errorf("%s: came from port %d, prepared %d", addr, got, port)
		}
		if !slices.Equal(calls, []string{"prepare", "undo"}) {
			t.Errorf("%s: %v", addr, calls)
		}
	}
}

// However dialling fails, what was prepared is undone while the port is held.
// Not parallel, for a process that another test is just starting has all of this
// one's sockets until it executes its program, and so holds the port longer.
func TestDialPreparedFails(t *testing.T) {
	ns := testenv.NewNS(t, "host")
	ns.IP(t, "link add silent type veth peer name other", "addr add 192.0.2.1/24 dev silent", "link set silent up", "link set other up")
	const refused = "refused"
	refuse := errors.New("no element")
	cancelled, cancel := context.WithCancel(t.Context())
	for _, c := range []struct {
		name    string
		ctx     context.Context
		backend string
		err     error // of prepare
		during  func()
		want    func(error) bool
		undone  int
	}{
		{refused, t.Context(), "127.0.0.1:1", nil, nil, func(err error) bool { return errors.Is(err, unix.ECONNREFUSED) }, 1},
		{"silent", t.Context(), "192.0.2.9:80", nil, nil, func(err error) bool {
			var n net.Error
			return errors.As(err, &n) && n.Timeout()
		}, 1},
		{"cancelled", cancelled, "192.0.2.9:80", nil, cancel, func(err error) bool { return err != nil }, 1},
		{"unprepared", t.Context(), "127.0.0.1:1", refuse, nil, func(err error) bool { return errors.Is(err, refuse) }, 0},
	} {
		var port uint16
		undone := 0
		conn, err := dialIn(c.ctx, ns, netip.MustParseAddrPort(c.backend), 50*time.Millisecond, func(local uint16) (func(), error) {
			port = local
			if c.during != nil {
				c.during()
			}
			if c.err != nil {
				return nil, c.err
			}
			return func() {
				undone++
				if c.name != refused && free(t, ns, port) {
					t.Errorf("%s: port %d is free before undo", c.name, port)
				}
			}, nil
		})
		if conn != nil || !c.want(err) {
			t.Errorf("%s: %v, %v", c.name, conn, err)
		}
		if undone != c.undone {
			t.Errorf("%s: undone %d times, want %d", c.name, undone, c.undone)
		}
		if !free(t, ns, port) {
			t.Errorf("%s: port %d is still held", c.name, port)
		}
	}
}

// Two connections to one backend never hold one port at a time, and without a
// port there is an error.
func TestDialPreparedPorts(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	ns.Sysctl(t, "net.ipv4.ip_local_port_range", "40000 40003")
	ln, err := ns.Listen("tcp", "127.0.0.1:80")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	seen := map[uint16]bool{}
	dial := func() error {
		c, err := dialIn(t.Context(), ns, netip.MustParseAddrPort("127.0.0.1:80"), patience, func(local uint16) (func(), error) {
			if seen[local] {
				t.Errorf("port %d is held twice", local)
			}
			seen[local] = true
			return nil, nil
		})
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	}
	for range 4 {
		if err := dial(); err != nil {
			t.Fatal(err)
		}
	}
	if err := dial(); !errors.Is(err, unix.EADDRINUSE) || len(seen) != 4 {
		t.Errorf("fifth connection from four ports: %v, ports %v", err, seen)
	}
}

// The use it is made for: a rule keyed by the port makes the backend see
// another source, from the very first packet.
func TestDialPreparedSource(t *testing.T) {
	t.Parallel()
	ns := testenv.NewNS(t, "host")
	ns.AddAddr(t, "192.0.2.7/32", "lo")
	ns.RunInput(t, `table ip test {
		map sources { type inet_service : ipv4_addr . inet_service; }
		chain out { type nat hook postrouting priority srcnat; meta l4proto tcp snat ip to tcp sport map @sources; }
	}`, "nft", "-f", "-")
	ln, err := ns.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	c, err := dialIn(t.Context(), ns, ln.Addr().(*net.TCPAddr).AddrPort(), patience, func(local uint16) (func(), error) {
		element := fmt.Sprintf("element ip test sources { %d : 192.0.2.7 . 5000 }", local)
		ns.RunInput(t, "add "+element, "nft", "-f", "-")
		return func() { ns.RunInput(t, "delete "+element, "nft", "-f", "-") }, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	accepted, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	if got := accepted.RemoteAddr().String(); got != "192.0.2.7:5000" {
		t.Errorf("backend sees %s", got)
	}
	if rules := testenv.Ruleset(t, ns); strings.Contains(rules, "elements") {
		t.Errorf("not undone:\n%s", rules)
	}
}
