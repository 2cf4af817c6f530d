package inherit

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestName: every address comes back from its name, and no name has what the
// service manager refuses.
func TestName(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"192.0.2.10:80", "[2001:db8::10]:443", "[::]:53", "0.0.0.0:1", "[::ffff:192.0.2.1]:7"} {
		addr := netip.MustParseAddrPort(s)
		name := Name(Datagrams, addr)
		if k, got := parse(name); k != Datagrams || got != addr {
			t.Errorf("%s: name %s, back %s %v", s, name, k, got)
		}
		if long := Name(Held, addr, addr); strings.ContainsAny(long, ": \n") || len(long) > 255 {
			t.Errorf("name %q", long)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"tcp/192.0.2.10/80", "held/2001-db8--10/80/2001-db8--2/46574", "datagrams/--/0", "", "/", "udp/x/99999", "admin//run/sluice/admin.sock"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		k, addr := parse(name)
		if !addr.IsValid() || addr.Addr().Zone() != "" {
			return
		}
		if k2, again := parse(Name(k, addr)); k2 != k || again != addr {
			t.Errorf("%q is %s %v, and its name %q is %s %v", name, k, addr, Name(k, addr), k2, again)
		}
	})
}

// pair is two connected unix sockets.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends []*net.UnixConn
	for _, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		ends = append(ends, c.(*net.UnixConn))
	}
	return ends[0], ends[1]
}

func rawFD(t *testing.T, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	fd := -1
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		t.Fatal(err)
	}
	return fd
}

// TestPass: hundreds of sockets are passed, each under its name, and the one who
// gives knows how it ended.
func TestPass(t *testing.T) {
	t.Parallel()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), "tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp4", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const connections = 300
	at := netip.MustParseAddrPort(ln.Addr().String())
	socks := []Socket{{Name: "another", FD: rawFD(t, ln.(*net.TCPListener))}, {Name: Of(Admin, "/run/x y"), FD: rawFD(t, ln.(*net.TCPListener))}}
	for range connections {
		socks = append(socks, Socket{Name: Name(Held, at, at), FD: rawFD(t, conn.(*net.TCPConn))})
	}
	for _, commits := range []bool{true, false} {
		old, young := pair(t)
		given := make(chan error, 1)
		go func() { given <- errors.Join(Await(old), Give(old, socks)) }()
		set, err := Take(young)
		if err != nil {
			t.Fatal(err)
		}
		if n := set.Len(); n != len(socks) {
			t.Errorf("%d of %d passed", n, len(socks))
		}
		named, ok := set.Named("admin//run/x y")
		if !ok {
			t.Fatal("not found by its name")
		}
		sock, ok := set.Listener(TCP, at) // whatever it is called
		if !ok {
			t.Fatal("the listener is not known by its address")
		}
		held := set.Held()
		if len(held) != connections {
			t.Errorf("%d of %d connections", len(held), connections)
		}
		for _, s := range append(held, sock, named) {
			if s.FD < 1024 {
				t.Errorf("%s is descriptor %d", s.Name, s.FD)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := len(set.Rest()); n != 0 {
			t.Errorf("%d more", n)
		}
		if commits {
			err = Commit(young)
		} else {
			err = young.Close()
		}
		if err != nil {
			t.Error(err)
		}
		if err := <-given; (err == nil) != commits {
			t.Errorf("committed: %v, and who gave was told: %v", commits, err)
		}
	}
}

// TestTakenBack: a successor whose predecessor goes on by itself is told so.
func TestTakenBack(t *testing.T) {
	t.Parallel()
	old, young := pair(t)
	given := make(chan error, 1)
	go func() { given <- errors.Join(Await(old), Give(old, nil)) }()
	if _, err := Take(young); err != nil {
		t.Fatal(err)
	}
	if err := old.CloseRead(); err != nil {
		t.Fatal(err)
	}
	if err := <-given; err == nil {
		t.Error("given away without a word of the other")
	}
	_ = old.Close()
	if err := Commit(young); err == nil {
		t.Error("both go on")
	}
}

// TestTakeNonsense: what another program may say is an error.
func TestTakeNonsense(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "tcp/192.0.2.10/80\n", "end", strings.Repeat("x", 5000) + "\n"} {
		old, young := pair(t)
		if _, err := io.WriteString(old, text); err != nil {
			t.Fatal(err)
		}
		if err := old.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if set, err := Take(young); err == nil {
			t.Errorf("%.20q: %d sockets and no error", text, set.Len())
		}
	}
}
