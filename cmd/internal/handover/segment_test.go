package handover

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"reflect"
	"testing"
)

var (
	a4 = netip.MustParseAddrPort("10.99.0.2:40000")
	b4 = netip.MustParseAddrPort("10.98.0.11:8080")
	a6 = netip.MustParseAddrPort("[fd99::2]:40000")
	b6 = netip.MustParseAddrPort("[fd98::11]:8080")
)

// checksum adds up what a receiver would: 0 if all is well.
func checksum(b []byte) uint16 {
	if b[0]>>4 == 4 {
		if s := fold(add(0, b[:ipHeader])); s != 0 {
			return s
		}
		return fold(add(add(protoTCP+uint32(len(b)-ipHeader), b[12:20]), b[ipHeader:]))
	}
	return fold(add(add(protoTCP+uint32(len(b)-v6Header), b[8:40]), b[v6Header:]))
}

func TestSegment(t *testing.T) {
	t.Parallel()
	// As tcpdump printed it: a SYN of Linux without timestamps.
	want := "45000034000040004006268f0a6300020a62000b9c401f90fe4bfe0d000000008002fc00" +
		"68b20000020405b4010104020103030a"
	s := segment{src: a4, dst: b4, seq: 0xfe4bfe0d, flags: flagSYN, window: 64512,
		opts: options{mss: 1460, sack: true, scaled: true, scale: 10}}
	got := s.append(nil)
	if checksum(got) != 0 {
		t.Errorf("checksum of %x", got)
	}
	// The checksums are the kernel's word for it elsewhere: it takes the packets.
	got[10], got[11], got[36], got[37] = 0, 0, 0, 0
	w, _ := hex.DecodeString(want)
	w[10], w[11], w[36], w[37] = 0, 0, 0, 0
	if !bytes.Equal(got, w) {
		t.Errorf("got  %x\nwant %x", got, w)
	}
}

func FuzzSegment(f *testing.F) {
	f.Add(true, uint32(1), uint32(2), uint8(flagACK), uint16(3), uint16(1460), true, uint8(7), true, []byte("x"))
	f.Add(false, uint32(1<<31), uint32(0), uint8(flagSYN), uint16(0), uint16(0), false, uint8(0), false, []byte(nil))
	f.Fuzz(func(t *testing.T, is4 bool, seq, ack uint32, flags uint8, window, mss uint16, scaled bool, scale uint8, sack bool, data []byte) {
		if len(data) > 60000 {
			return
		}
		s := segment{src: a6, dst: b6, seq: seq, ack: ack, flags: flags, window: window, data: data,
			opts: options{mss: mss, scaled: scaled, sack: sack}}
		if scaled {
			s.opts.scale = scale % 15
		}
		if is4 {
			s.src, s.dst = a4, b4
		}
		b := s.append([]byte("prefix"))[len("prefix"):]
		if checksum(b) != 0 {
			t.Errorf("checksum of %x", b)
		}
		got, err := parse(append(b, "padding"...))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.data) == 0 {
			got.data = s.data
		}
		if !reflect.DeepEqual(got, s) {
			t.Errorf("got %+v, want %+v", got, s)
		}
		// The headers alone, as the tap reads them.
		if cut, err := parse(b[:len(b)-len(data)]); err != nil || cut.ack != ack || cut.opts != s.opts {
			t.Errorf("cut: %+v, %v", cut, err)
		}
	})
}

func FuzzParse(f *testing.F) {
	s := segment{src: a4, dst: b4, opts: options{mss: 1, sack: true, scaled: true}}
	f.Add(s.append(nil))
	s.src, s.dst = a6, b6
	f.Add(s.append(nil))
	f.Add([]byte{0x4f})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parse(b)
		if err == nil && len(s.data) > len(b) {
			t.Errorf("%d bytes of data in %d", len(s.data), len(b))
		}
	})
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in   string
		want options
	}{
		{"", options{}},
		{"020405b40402080a00000001000000000103030a", options{mss: 1460, sack: true, stamped: true, scaled: true, scale: 10}},
		{"03030f", options{scaled: true, scale: 14}},
		{"00020405b4", options{}},                               // behind the end
		{"1e0c0001020304050607080902040200", options{mss: 512}}, // Multipath TCP before it
		{"2202020405b4", options{mss: 1460}},                    // a request for a Fast Open cookie
		{"0204", options{}},                                     // cut
		{"0200", options{}},                                     // no length
		{"020305b4", options{}},                                 // wrong length
	} {
		b, err := hex.DecodeString(tt.in)
		if err != nil {
			t.Fatal(err)
		}
		if got := parseOptions(b); got != tt.want {
			t.Errorf("%s: got %+v, want %+v", tt.in, got, tt.want)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	told := held{mss: 1460, advmss: 1460, scaled: true, theirs: 7, ours: 10, sack: true}
	says := segment{src: b4, flags: flagSYN | flagACK, opts: options{mss: 1460, scaled: true, scale: 10, sack: true}}
	for _, tt := range []struct {
		name string
		edit func(*held, *segment)
		want Reason
	}{
		{"alike", func(*held, *segment) {}, ""},
		{"takes more", func(_ *held, s *segment) { s.opts.mss = 9000 }, ""},
		{"takes less", func(_ *held, s *segment) { s.opts.mss = 1459 }, Options},
		{"says nothing of its size", func(_ *held, s *segment) { s.opts.mss = 0 }, Options},
		{"the least, unsaid", func(h *held, s *segment) { h.advmss, s.opts.mss = 536, 0 }, ""},
		{"the least, unsaid, IPv6", func(h *held, s *segment) { h.advmss, s.opts.mss, s.src = 1220, 0, b6 }, ""},
		{"other scale", func(_ *held, s *segment) { s.opts.scale = 9 }, Options},
		{"no scale", func(_ *held, s *segment) { s.opts.scaled, s.opts.scale = false, 0 }, Options},
		{"scale unasked", func(h *held, _ *segment) { h.scaled = false }, Options},
		{"no SACK", func(_ *held, s *segment) { s.opts.sack = false }, Options},
		{"SACK unasked", func(h *held, _ *segment) { h.sack = false }, Options},
		{"timestamps", func(_ *held, s *segment) { s.opts.stamped = true }, Options},
		{"ECN", func(h *held, s *segment) { h.ecn, s.flags = true, s.flags|flagECE }, ""},
		{"no ECN", func(h *held, _ *segment) { h.ecn = true }, Options},
		{"ECN unasked", func(_ *held, s *segment) { s.flags |= flagECE }, Options},
	} {
		h, s := told, says
		tt.edit(&h, &s)
		if got := h.compare(&s); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
