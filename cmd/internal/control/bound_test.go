package control

import (
	"bytes"
	"net"
	"os"
	"strings"
	"testing"
)

// As Linux 6.18 prints it.
const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  411: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 12345 2 0000000000000000 0
  500: 00000000:14E9 0100007F:0043 07 00000000:00000000 00:00000000 00000000     0        0 12346 2 0000000000000000 0
`

func TestBoundIn(t *testing.T) {
	t.Parallel()
	for port, want := range map[uint16]bool{0x35: true, 0x14e9: true, 0x43: false, 0: false, 0x135: false} {
		if got, err := boundIn(strings.NewReader(udpTable), port); got != want || err != nil {
			t.Errorf("port %d: %v, %v", port, got, err)
		}
	}
	if _, err := boundIn(strings.NewReader(strings.Repeat("x", 1<<20)), 1); err == nil {
		t.Error("a line without an end is no error")
	}
}

// TestBound: a socket of this process is found while it is open.
func TestBound(t *testing.T) {
	t.Parallel()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	port := uint16(conn.LocalAddr().(*net.UDPAddr).Port)
	if ok, err := bound(os.Getpid(), port); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	if _, err := bound(0x7fffffff, port); err == nil {
		t.Error("a process that there is none of is no error")
	}
}

// FuzzBound: a port that a table does not have is not found in it, and one that
// its first line has is.
func FuzzBound(f *testing.F) {
	f.Add([]byte(udpTable), uint16(0x35))
	f.Add([]byte("\n\n: :\n0: :0000"), uint16(0))
	f.Fuzz(func(t *testing.T, table []byte, port uint16) {
		ok, err := boundIn(bytes.NewReader(table), port)
		hex := []byte{':', hexDigit(port >> 12), hexDigit(port >> 8), hexDigit(port >> 4), hexDigit(port)}
		if ok && (err != nil || !bytes.Contains(table, hex)) {
			t.Fatalf("port %d found in %q, %v", port, table, err)
		}
		line := append(append([]byte("1: 0"), hex...), '\n')
		if ok, err := boundIn(bytes.NewReader(append(line, table...)), port); !ok || err != nil {
			t.Fatalf("port %d not found behind %q, %v", port, line, err)
		}
	})
}

func hexDigit(n uint16) byte { return "0123456789ABCDEF"[n&15] }
