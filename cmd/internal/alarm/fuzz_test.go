package alarm

import (
	"testing"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
)

// FuzzLogged: whatever the kernel's log sends, a destination is told of a
// packet alone, and it is that of its payload.
func FuzzLogged(f *testing.F) {
	packet := uint16(netfilter.NFSubsysULOG)<<8 | msgPacket
	for _, p := range [][]byte{unhex(v4, ports), unhex(v6, ports), nil} {
		ae := netlink.NewAttributeEncoder()
		ae.Uint32(1, 0x0800)
		ae.Bytes(attrPayload, p)
		b, err := ae.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet, append([]byte{2, 0, 0, 7}, b...))
	}
	f.Add(packet, []byte{2, 0, 0})
	f.Add(uint16(0), []byte{2, 0, 0, 7})
	f.Fuzz(func(t *testing.T, typ uint16, data []byte) {
		to, proto, ok := logged(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ)}, Data: data})
		if ok && (typ != packet || !to.IsValid() || proto == 0) {
			t.Fatalf("type %#x, %x: %s, %d", typ, data, to, proto)
		}
	})
}
