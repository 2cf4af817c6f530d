package datagram

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"
)

var (
	flow4 = flow{netip.MustParseAddrPort("10.99.0.2:40000"), service4}
	flow6 = flow{netip.MustParseAddrPort("[fd99::2]:40000"), service6}
)

// assemble is a receiver: it puts packets together and checks them.
func assemble(t *testing.T, list [][]byte, fl flow, mtu int) (d datagram, id uint32) {
	t.Helper()
	var udp []byte
	last := false
	for i, p := range list {
		if len(p) > mtu || last {
			t.Fatalf("packet %d of %d bytes, at most %d; after the last: %v", i, len(p), mtu, last)
		}
		var src, dst netip.Addr
		var place int
		if p[0] == 0x45 {
			if int(binary.BigEndian.Uint16(p[2:])) != len(p) || p[9] != 17 {
				t.Fatalf("header %x", p[:20])
			}
			d.tos, d.hops, id = p[1], p[8], uint32(binary.BigEndian.Uint16(p[4:]))
			src, dst = netip.AddrFrom4([4]byte(p[12:])), netip.AddrFrom4([4]byte(p[16:]))
			flags := binary.BigEndian.Uint16(p[6:])
			place, last = int(flags&0x1fff)*8, flags&0x2000 == 0
			p = p[20:]
		} else {
			if p[0]>>4 != 6 || int(binary.BigEndian.Uint16(p[4:])) != len(p)-40 {
				t.Fatalf("header %x", p[:40])
			}
			d.tos, d.hops = p[0]<<4|p[1]>>4, p[7]
			src, dst = netip.AddrFrom16([16]byte(p[8:])), netip.AddrFrom16([16]byte(p[24:]))
			last = true
			next := p[6]
			p = p[40:]
			if next == 44 {
				next = p[0]
				flags := binary.BigEndian.Uint16(p[2:])
				place, last, id = int(flags&^7), flags&1 == 0, binary.BigEndian.Uint32(p[4:])
				p = p[8:]
			}
			if next != 17 {
				t.Fatalf("protocol %d", next)
			}
		}
		if src != fl.client.Addr() || dst != fl.service.Addr() || place != len(udp) || !last && len(p)%8 != 0 {
			t.Fatalf("packet %d: %v > %v at %d, %d bytes before", i, src, dst, place, len(udp))
		}
		udp = append(udp, p...)
	}
	if !last || int(binary.BigEndian.Uint16(udp[4:])) != len(udp) ||
		binary.BigEndian.Uint16(udp) != fl.client.Port() || binary.BigEndian.Uint16(udp[2:]) != fl.service.Port() {
		t.Fatalf("UDP header %x of %d bytes", udp[:8], len(udp))
	}
	sum := add(add(add(17+uint64(len(udp)), fl.client.Addr().AsSlice()), fl.service.Addr().AsSlice()), udp)
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff || udp[6] == 0 && udp[7] == 0 {
		t.Fatalf("checksum %x leaves %#x", udp[6:8], sum)
	}
	d.data = udp[8:]
	return d, id
}

func FuzzPackets(f *testing.F) {
	f.Add([]byte("x"), uint16(3), uint8(64), uint8(2), uint32(7), uint16(1500))
	f.Add([]byte("0123456789abcdef"), uint16(4000), uint8(1), uint8(0), uint32(0), uint16(1280))
	f.Add([]byte{}, uint16(0), uint8(255), uint8(255), uint32(1<<16), uint16(65535))
	f.Add([]byte{0xff}, uint16(65507), uint8(9), uint8(0), uint32(1<<31), uint16(1281))
	f.Fuzz(func(t *testing.T, seed []byte, n uint16, hops, tos uint8, id uint32, mtu uint16) {
		data := make([]byte, min(int(n), largest4))
		for i := range data {
			if len(seed) > 0 {
				data[i] = seed[i%len(seed)] + byte(i>>8)
			}
		}
		limit := max(int(mtu), smallMTU)
		for _, fl := range []flow{flow4, flow6} {
			want := datagram{data: data, hops: hops, tos: tos}
			var list [][]byte
			buf, err := packets(bytes.Repeat([]byte{0xaa}, 90), fl, want, id, limit, func(p []byte) error {
				list = append(list, bytes.Clone(p))
				return nil
			})
			if err != nil || len(buf) == 0 {
				t.Fatal(err)
			}
			got, gotID := assemble(t, list, fl, limit)
			if !bytes.Equal(got.data, data) || got.hops != hops || got.tos != tos {
				t.Fatalf("%d bytes, hops %d, tos %#x, want %d, %d, %#x", len(got.data), got.hops, got.tos, len(data), hops, tos)
			}
			if len(list) > 1 && gotID != id && (fl == flow6 || gotID != uint32(max(1, uint16(id)))) {
				t.Fatalf("fragments of %#x, want %#x", gotID, id)
			}
		}
	})
}

// A checksum that comes out as zero is sent as all ones.
func TestChecksumZero(t *testing.T) {
	t.Parallel()
	for i := range 1 << 16 {
		if b := appendUDP(nil, flow4, []byte{byte(i >> 8), byte(i)}); b[6] == 0 && b[7] == 0 {
			t.Fatalf("no checksum with %#x", i)
		}
	}
}

// FuzzStore does anything in any order, and adds up what is held afterwards.
func FuzzStore(f *testing.F) {
	f.Add([]byte{1, 2, 3, 250, 4, 5, 251, 1, 1, 1, 1, 252})
	f.Fuzz(func(t *testing.T, ops []byte) {
		shared := room{limit: 5000}
		s := newStore(Limits{Client: 1000, Clients: 4, Total: 2000}, &shared)
		var id uint64
		for _, op := range ops {
			switch {
			case op >= 250:
				s.forget(func(c *client) bool { return c.id%6 == uint64(op-250) })
			case op >= 240:
				for _, c := range s.order {
					s.drop(c, len(c.data)*int(op-240)/9)
				}
			default:
				fl := flow{netip.AddrPortFrom(flow4.client.Addr(), uint16(op%8)), service4}
				n := int(op/8) * 40
				if fits := s.room(fl, n); fits {
					s.add(fl, datagram{data: make([]byte, n)}, func() uint64 { id++; return id })
				}
			}
			size, count, holding := 0, 0, 0
			var before uint64
			for _, c := range s.order {
				own := 0
				for _, d := range c.data {
					own += max(len(d.data), minCharge)
				}
				if own != c.size || own > 1000 || s.by[c.flow] != c || s.ids[c.id] != c || c.id <= before {
					t.Fatalf("client %+v holds %d", c, own)
				}
				before = c.id
				size += own
				count += len(c.data)
				if len(c.data) > 0 {
					holding++
				}
			}
			if size != s.size || count != s.count || size > 2000 || len(s.order) > 4 ||
				len(s.by) != len(s.order) || len(s.ids) != len(s.order) || shared.used.Load() != int64(size+holding*clientCharge) {
				t.Fatalf("%d bytes in %d, counted %d in %d, %d clients", size, count, s.size, s.count, len(s.order))
			}
		}
	})
}

// FuzzParse takes what no kernel sends.
func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0}, 3))
	f.Fuzz(func(t *testing.T, oob []byte) { parse(oob) })
}

// The pause grows to its end and no further.
func TestLater(t *testing.T) {
	t.Parallel()
	l := &Listener{}
	c := &client{}
	was := time.Duration(-1)
	for range 100 {
		l.later(c)
		pause := c.due.Sub(c.seen)
		if pause < was || pause > lastPause {
			t.Fatalf("pause %v after %v", pause, was)
		}
		was = pause
	}
	if was != lastPause {
		t.Errorf("pause ends at %v", was)
	}
}
