package conntrack

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sampleEntry(src, dst, to string) Entry {
	return Entry{
		Orig:    Tuple{Src: addrPort(src), Dst: addrPort(dst), Proto: unix.IPPROTO_TCP},
		Backend: addrPort(to),
		Mark:    0x51000007, Timeout: 5 * time.Hour, State: StateEstablished,
		OrigScale: 7, ReplyScale: 9,
		OrigFlags: FlagWindowScale | FlagLiberal, ReplyFlags: FlagWindowScale | FlagLiberal,
		ReplySeqAdj: SeqAdj{0, 0xfffffc18, 0xfffffc18},
	}
}

// asRequested is what a create request says when read back as a flow: the reply
// tuple is not translated yet.
func (e *Entry) asRequested() Flow {
	return Flow{
		Orig:  e.Orig,
		Reply: Tuple{Src: e.Orig.Dst, Dst: e.Orig.Src, Proto: e.Orig.Proto, Zone: e.Orig.Zone},
		Mark:  e.Mark, Status: e.status(), State: e.State,
		Timeout:   time.Duration(seconds(e.Timeout)) * time.Second,
		OrigScale: e.OrigScale, ReplyScale: e.ReplyScale, OrigFlags: e.OrigFlags, ReplyFlags: e.ReplyFlags,
		OrigSeqAdj: e.OrigSeqAdj, ReplySeqAdj: e.ReplySeqAdj,
	}
}

func FuzzEntry(f *testing.F) {
	f.Add([]byte("abcd"), []byte("efgh"), []byte("ijkl"), uint16(1), uint16(2), uint16(3), uint32(4), uint32(5), uint8(3), uint8(7), uint8(9), uint32(6), true, uint16(0))
	f.Add(make([]byte, 16), []byte("efghefghefghefgh"), []byte("ijklijklijklijkl"), uint16(1), uint16(2), uint16(3), uint32(4), uint32(5), uint8(3), uint8(7), uint8(9), uint32(6), true, uint16(7))
	f.Add([]byte("abcdabcdabcdabcd"), []byte("efghefghefghefgh"), []byte("ijklijklijklijkl"), uint16(1), uint16(2), uint16(3), uint32(4), uint32(5), uint8(0), uint8(0), uint8(0), uint32(0), false, uint16(0))
	f.Fuzz(func(t *testing.T, src, dst, to []byte, sport, dport, bport uint16, mark, timeout uint32, state, scale, flags uint8, seq uint32, tcp bool, zone uint16) {
		addr := func(b []byte, port uint16) netip.AddrPort {
			a, _ := netip.AddrFromSlice(b)
			return netip.AddrPortFrom(a, port)
		}
		e := Entry{
			Orig:    Tuple{Src: addr(src, sport), Dst: addr(dst, dport), Proto: unix.IPPROTO_UDP, Zone: zone},
			Backend: addr(to, bport), Mark: mark, Timeout: time.Duration(timeout) * time.Millisecond,
		}
		if tcp {
			e.Orig.Proto = unix.IPPROTO_TCP
			e.State, e.OrigScale, e.ReplyScale = State(state), scale, scale/2
			e.OrigFlags, e.ReplyFlags = flags, ^flags
			e.OrigSeqAdj, e.ReplySeqAdj = SeqAdj{seq, seq + 1, seq + 2}, SeqAdj{seq, -seq, seq}
		}
		var b Batch
		err := b.Create(e)
		if err != nil {
			if !errors.Is(err, ErrEntry) || b.Len() != 0 || len(b.enc.b) != 0 {
				t.Fatalf("refused entry left traces: %v", err)
			}
			return
		}
		m, rest, err := nextMessage(b.enc.b)
		if err != nil || len(rest) != 0 {
			t.Fatalf("message: %v, %d bytes left", err, len(rest))
		}
		var got Flow
		if err := decode(m.data, &got); err != nil {
			t.Fatal(err)
		}
		if want := e.asRequested(); got != want {
			t.Fatalf("got\n%+v, want\n%+v", got, want)
		}
		if nat := readNAT(t, m.data, ctaNatDst); nat != e.Backend {
			t.Fatalf("destination %s, want %s", nat, e.Backend)
		}
		if nat := readNAT(t, m.data, ctaNatSrc); nat != e.Orig.Src {
			t.Fatalf("source %s, want %s", nat, e.Orig.Src)
		}
	})
}

// readNAT reads a range attribute of one address and one port.
func readNAT(t *testing.T, b []byte, typ uint16) netip.AddrPort {
	t.Helper()
	var lo, hi netip.Addr
	var ports []uint16
	a := attrs{rest: b[nfgenLen:]}
	for a.next() {
		if a.typ != typ {
			continue
		}
		n := a.nested()
		for n.next() {
			switch n.typ {
			case ctaNatMinIP:
				lo = n.addr4()
			case ctaNatMaxIP:
				hi = n.addr4()
			case ctaNatMinV6:
				lo = n.addr6()
			case ctaNatMaxV6:
				hi = n.addr6()
			case ctaNatProto:
				p := n.nested()
				for p.next() {
					ports = append(ports, binary.BigEndian.Uint16(p.data))
				}
			}
		}
		if n.bad {
			t.Fatal("malformed range")
		}
	}
	if lo != hi || len(ports) != 2 || ports[0] != ports[1] {
		t.Fatalf("range %s-%s ports %v", lo, hi, ports)
	}
	return netip.AddrPortFrom(lo, ports[0])
}

func TestEntryValid(t *testing.T) {
	t.Parallel()
	good := sampleEntry("198.51.100.7:40000", "192.0.2.10:80", "10.88.0.5:8080")
	if err := good.Valid(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Entry){
		"no backend":        func(e *Entry) { e.Backend = netip.AddrPort{} },
		"no port":           func(e *Entry) { e.Orig.Dst = netip.AddrPortFrom(e.Orig.Dst.Addr(), 0) },
		"mixed families":    func(e *Entry) { e.Backend = addrPort("[fd99::1]:80") },
		"mapped":            func(e *Entry) { e.Backend = addrPort("[::ffff:10.0.0.1]:80") },
		"unspecified":       func(e *Entry) { e.Backend = addrPort("0.0.0.0:80") },
		"bad source":        func(e *Entry) { e.Source = addrPort("[fd99::1]:80") },
		"no timeout":        func(e *Entry) { e.Timeout = 0 },
		"endless timeout":   func(e *Entry) { e.Timeout = 1 << 62 },
		"no state":          func(e *Entry) { e.State = StateNone },
		"unknown state":     func(e *Entry) { e.State = 10 },
		"scale":             func(e *Entry) { e.ReplyScale = 15 },
		"protocol":          func(e *Entry) { e.Orig.Proto = unix.IPPROTO_ICMP },
		"UDP with state":    func(e *Entry) { e.Orig.Proto = unix.IPPROTO_UDP },
		"UDP with sequence": func(e *Entry) { e.Orig.Proto, e.State = unix.IPPROTO_UDP, StateNone },
	} {
		e := good
		spoil(&e)
		if err := e.Valid(); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
