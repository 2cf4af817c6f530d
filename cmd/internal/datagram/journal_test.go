package datagram

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

// TestJournal: what is written is read by another, up to where it was cut short.
func TestJournal(t *testing.T) {
	t.Parallel()
	at := netip.MustParseAddrPort("[2001:db8::10]:53")
	j, err := newJournal(at)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(j.fd)
	flows := []flow{
		{netip.MustParseAddrPort("[2001:db8::1]:1"), at},
		{netip.MustParseAddrPort("192.0.2.1:2"), netip.MustParseAddrPort("192.0.2.2:3")},
	}
	for i := range 100 {
		if err := j.append(flows[i%2], datagram{data: bytes.Repeat([]byte{byte(i)}, i*600), hops: uint8(i), tos: 7}); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Ftruncate(j.fd, j.size-1); err != nil {
		t.Fatal(err)
	}
	again, list, err := openJournal(j.fd)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 99 {
		t.Fatalf("%d of 99 whole records", len(list))
	}
	if err := again.append(flows[1], datagram{data: bytes.Repeat([]byte{99}, 99*600), hops: 99, tos: 7}); err != nil {
		t.Fatal(err)
	}
	if _, list, err = openJournal(j.fd); err != nil || len(list) != 100 {
		t.Fatalf("%d records, want the one too that was written behind a cut one: %v", len(list), err)
	}
	for i, r := range list {
		if r.flow != flows[i%2] || r.d.hops != uint8(i) || r.d.tos != 7 || !bytes.Equal(r.d.data, bytes.Repeat([]byte{byte(i)}, i*600)) {
			t.Errorf("record %d: %v, %d bytes", i, r.flow, len(r.d.data))
		}
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0, recordHead})
	f.Add(append([]byte{0, 0, 0, recordHead + 1}, make([]byte, 2*recordHead)...))
	f.Add(append([]byte{255, 255, 255, 255}, make([]byte, 100)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		total := 0
		list, size := records(b)
		for _, r := range list {
			total += 4 + recordHead + len(r.d.data)
			_ = r.flow.usable()
		}
		if total > len(b) || total != size {
			t.Errorf("%d bytes of records in %d, %d by its own account", total, len(b), size)
		}
	})
}
