package nft_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"os"
	"testing"
	"time"

	"sluice/nft"
	"sluice/testenv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// alarms opens the log group and returns a function that waits for a message
// and says where its packet was going; nowhere if there is none for a while.
func alarms(t *testing.T, ns *testenv.NS) func(wait time.Duration) netip.Addr {
	t.Helper()
	f, err := ns.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: int(f.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	const (
		config           = unix.NFNL_SUBSYS_ULOG<<8 | 1 // NFULNL_MSG_CONFIG
		attrCmd, cmdBind = 1, 1
		attrMode         = 2
		attrPrefix       = 10
		attrPayload      = 9
	)
	for _, a := range []netlink.Attribute{
		{Type: attrCmd, Data: []byte{cmdBind}},
		{Type: attrMode, Data: []byte{0, 0, 0, 0, 2, 0}}, // whole packets
	} {
		b, err := netlink.MarshalAttributes([]netlink.Attribute{a})
		if err != nil {
			t.Fatal(err)
		}
		head := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, 0}, nft.LogGroup)
		if _, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: config, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(head, b...),
		}); err != nil {
			t.Fatal(err)
		}
	}
	return func(wait time.Duration) netip.Addr {
		t.Helper()
		if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
			t.Fatal(err)
		}
		msgs, err := c.Receive()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return netip.Addr{}
		} else if err != nil {
			t.Fatal(err)
		}
		attrs, err := netlink.UnmarshalAttributes(msgs[0].Data[4:])
		if err != nil {
			t.Fatal(err)
		}
		var to netip.Addr
		for _, a := range attrs {
			switch p := a.Data; a.Type {
			case attrPrefix:
				if got := string(bytes.TrimRight(p, "\x00")); got != nft.LogPrefix {
					t.Errorf("prefix %q", got)
				}
			case attrPayload:
				if p[0]>>4 == 4 {
					to, _ = netip.AddrFromSlice(p[16:20])
				} else {
					to, _ = netip.AddrFromSlice(p[24:40])
				}
			}
		}
		return to
	}
}

// TestAsleep: a packet to a backend that sleeps is an alarm, on flows old and
// new, from outside and from the host; one to another is not.
func TestAsleep(t *testing.T) {
	t.Parallel()
	l := newLab(t, 2)
	next := alarms(t, l.Host)
	b := l.net.Backends
	apply(t, l.table, map[nft.Endpoint]*nft.Service{
		tcp("192.0.2.10:80"): l.to4(0), udp("192.0.2.10:80"): l.to4(0), tcp("192.0.2.11:80"): l.to4(1),
		tcp("[2001:db8::10]:80"): l.to6(0),
	})
	for _, c := range []struct {
		from          *testenv.NS
		network, addr string
		backend       nft.Endpoint
	}{
		{l.Client, "tcp", "192.0.2.10:80", tcp(netip.AddrPortFrom(b[0].Addr4, 8080).String())},
		{l.Host, "tcp", "192.0.2.10:80", tcp(netip.AddrPortFrom(b[0].Addr4, 8080).String())},
		{l.Client, "udp", "192.0.2.10:80", udp(netip.AddrPortFrom(b[0].Addr4, 8080).String())},
		{l.Client, "tcp", "[2001:db8::10]:80", tcp(netip.AddrPortFrom(b[0].Addr6, 8080).String())},
	} {
		sleep := func(yes bool) {
			t.Helper()
			if err := l.table.Asleep(map[nft.Endpoint]bool{c.backend: yes}); err != nil {
				t.Fatal(err)
			}
		}
		old := dial(t, c.from, c.network, c.addr)
		awake := dial(t, l.Client, "tcp", "192.0.2.11:80")
		say := func(c *conn) {
			t.Helper()
			if _, err := c.Write([]byte("hello\n")); err != nil {
				t.Fatal(err)
			}
		}
		sleep(true)
		sleep(true) // no error
		if got := l.table.Sleeping(); !maps.Equal(got, map[nft.Endpoint]bool{c.backend: true}) {
			t.Errorf("asleep: %v", got)
		}
		say(awake)
		say(old)
		if got := next(patience); got != c.backend.Addr {
			t.Errorf("%v: alarm for %v", c, got)
		}
		// The rest of the burst: not more than five, whatever comes.
		for range 200 {
			say(old)
		}
		n := 1
		for next(50*time.Millisecond) != (netip.Addr{}) {
			n++
		}
		if n > 60 {
			t.Errorf("%v: %d alarms for 201 packets", c, n)
		}
		sleep(false)
		sleep(false)
		say(old)
		if got := next(50 * time.Millisecond); got.IsValid() {
			t.Errorf("%v: alarm though awake, for %v", c, got)
		}
		_ = old.Close()
		for next(10*time.Millisecond) != (netip.Addr{}) {
		}
	}
	// A flow to another's address that nobody translated is none of ours.
	sleeper := tcp(netip.AddrPortFrom(b[0].Addr4, 8080).String())
	if err := l.table.Asleep(map[nft.Endpoint]bool{sleeper: true}); err != nil {
		t.Fatal(err)
	}
	ask(t, l.Client, "tcp", netip.AddrPortFrom(b[0].Addr4, 8080).String())
	if got := next(50 * time.Millisecond); got.IsValid() {
		t.Errorf("alarm for a stranger's flow to %v", got)
	}
	ask(t, l.Client, "tcp", "192.0.2.10:80")
	if got := next(patience); got != sleeper.Addr {
		t.Errorf("new flow: alarm for %v", got)
	}

	// It is kept as services are.
	for _, cmd := range []string{
		"flush ruleset",
		"flush set inet sluice asleep4",
		"add element inet sluice asleep4 { 10.0.0.1 . tcp . 80 }",
	} {
		l.Host.Run(t, "nft", cmd)
		if changed, err := l.table.Restore(); err != nil || !changed {
			t.Errorf("after %s: restore: %v, %v", cmd, changed, err)
		}
		if got := open(t, l.Host).Sleeping(); !maps.Equal(got, map[nft.Endpoint]bool{sleeper: true}) {
			t.Errorf("after %s: asleep: %v", cmd, got)
		}
	}
	l.Host.Run(t, "nft", "delete table inet sluice")
	other := tcp("10.98.0.77:80")
	if err := l.table.Asleep(map[nft.Endpoint]bool{sleeper: false, other: true}); err != nil {
		t.Fatal(err)
	}
	if got := l.table.Sleeping(); !maps.Equal(got, map[nft.Endpoint]bool{other: true}) {
		t.Errorf("asleep: %v", got)
	}
	if err := l.table.Asleep(map[nft.Endpoint]bool{{}: true}); !errors.Is(err, nft.ErrInvalid) {
		t.Errorf("nonsense: %v", err)
	}
}
