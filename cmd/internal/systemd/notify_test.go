package systemd

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNotifier: messages arrive in order, with their descriptors, also those that
// were not sent yet when Close was called; and what the manager says is taken out
// of the environment.
func TestNotifier(t *testing.T) { // not parallel: the environment
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("FDSTORE", "7")
	t.Setenv("WATCHDOG_USEC", "3000000")
	n, err := Open(func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	if n.Watchdog() != 3*time.Second || n.Room() != 7 {
		t.Errorf("watchdog %s, room %d", n.Watchdog(), n.Room())
	}
	if again, err := Open(nil); again != nil || err != nil {
		t.Errorf("the environment still tells of a manager: %v", err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	n.Ready("one\nline")
	n.Store("a/b", p[1])
	unix.Close(p[1]) // the caller may
	n.Remove("a/b")
	n.Reloading()
	n.Feed()
	n.Stopping()
	ended := make(chan error, 1)
	go func() { ended <- n.Close() }()
	if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"READY=1\nSTATUS=one line", "FDSTORE=1\nFDNAME=a/b", "FDSTOREREMOVE=1\nFDNAME=a/b", "RELOADING=1\nMONOTONIC_USEC=", "WATCHDOG=1", "STOPPING=1"} {
		b, oob := make([]byte, 200), make([]byte, 100)
		k, ok, _, _, err := conn.ReadMsgUnix(b, oob)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(b[:k]), want) {
			t.Errorf("%q, want %q", b[:k], want)
		}
		if !strings.HasPrefix(want, "FDSTORE=1") {
			if ok != 0 {
				t.Errorf("%q comes with a descriptor", want)
			}
			continue
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:ok])
		if err != nil || len(msgs) != 1 {
			t.Fatalf("control messages: %d, %v", len(msgs), err)
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			t.Fatalf("descriptors: %v, %v", fds, err)
		}
		if _, err := unix.Write(fds[0], []byte("x")); err != nil {
			t.Errorf("what was stored: %v", err)
		}
		unix.Close(fds[0])
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	// Its last writer has gone: neither the queue nor Close has left one open.
	if k, err := unix.Read(p[0], make([]byte, 9)); k != 1 || err != nil {
		t.Errorf("read %d, %v", k, err)
	}
	if k, err := unix.Read(p[0], make([]byte, 9)); k != 0 || err != nil {
		t.Errorf("read %d, %v, want the end", k, err)
	}
	unix.Close(p[0])
}

// TestNoManager: without one nothing happens.
func TestNoManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := Open(nil)
	if n != nil || err != nil {
		t.Fatalf("%v, %v", n, err)
	}
	n.Ready("")
	n.Store("a", 0)
	n.Feed()
	if n.Watchdog() != 0 || n.Close() != nil {
		t.Error("a manager out of nothing")
	}
}
