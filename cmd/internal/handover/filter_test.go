package handover

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/net/bpf"
)

// passes runs a filter over a packet as the kernel would.
func passes(t *testing.T, filter []bpf.Instruction, s segment) bool {
	t.Helper()
	packet := s.append(nil)
	prog := make([]bpf.Instruction, len(filter))
	for i, in := range filter {
		// Go's interpreter knows no extensions: put their numbers in.
		switch in {
		case bpf.LoadExtension{Num: bpf.ExtProto}:
			in = bpf.LoadConstant{Dst: bpf.RegA, Val: 0x86dd}
			if s.src.Addr().Is4() {
				in = bpf.LoadConstant{Dst: bpf.RegA, Val: 0x0800}
			}
		case bpf.LoadExtension{Num: bpf.ExtLen}:
			in = bpf.LoadConstant{Dst: bpf.RegA, Val: uint32(len(packet))}
		}
		prog[i] = in
	}
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

var (
	other4 = netip.MustParseAddrPort("10.98.0.12:8080")
	other6 = netip.MustParseAddrPort("[fd98::12]:8080")
)

// manyAddrs are more than a filter holds, and none of the others here.
func manyAddrs() []netip.Addr {
	many := make([]netip.Addr, 0, maxFilterAddrs+1)
	for a := netip.MustParseAddr("10.1.0.0"); len(many) <= maxFilterAddrs; a = a.Next() {
		many = append(many, a)
	}
	return many
}

func TestAnswerFilter(t *testing.T) {
	t.Parallel()
	packets := []segment{
		{src: b4, dst: a4, flags: flagSYN | flagACK}, {src: b4, dst: a4, flags: flagRST}, {src: b4, dst: a4, flags: flagACK | flagRST},
		{src: b4, dst: a4, flags: flagACK}, {src: b4, dst: a4, flags: flagACK | flagPSH | flagFIN | flagECE | flagCWR | flagURG},
		{src: other4, dst: a4, flags: flagSYN | flagACK}, {src: a4, dst: b4, flags: flagRST},
		{src: b6, dst: a6, flags: flagSYN | flagACK}, {src: b6, dst: a6, flags: flagACK}, {src: other6, dst: a6, flags: flagSYN | flagACK},
	}
	for _, tt := range []struct {
		name string
		from []netip.Addr
		want string
	}{
		{"nothing", nil, "0000000000"},
		{"one of each", []netip.Addr{b4.Addr(), b6.Addr(), b4.Addr()}, "1110000100"},
		{"the other", []netip.Addr{other4.Addr(), other6.Addr()}, "0000010001"},
		{"many", manyAddrs(), "1110011000"},
		{"as many as fit", append(manyAddrs()[2:], b4.Addr()), "1110000000"},
	} {
		filter := answerFilter(tt.from)
		got := ""
		for _, s := range packets {
			got += digit(passes(t, filter, s))
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

func digit(b bool) string {
	if b {
		return "1"
	}
	return "0"
}

func TestProgressFilter(t *testing.T) {
	t.Parallel()
	next := netip.AddrPortFrom(a4.Addr(), a4.Port()+1)
	packets := []segment{
		{src: b4, dst: a4, flags: flagACK}, {src: b4, dst: next}, {src: other4, dst: a4}, {src: a4, dst: b4}, {src: a4, dst: other4},
		{src: b6, dst: a6, flags: flagACK}, {src: other6, dst: a6}, {src: a6, dst: b6}, {src: a6, dst: other6},
		{src: b4, dst: a4, data: make([]byte, maxPlain-ipHeader-tcpLen)}, {src: b4, dst: a4, data: make([]byte, maxPlain)},
	}
	of4, of6 := pair{b4, a4}, pair{b6, a6}
	for _, tt := range []struct {
		name              string
		from              []netip.Addr
		watched, followed []pair
		want              string
	}{
		{"nothing", nil, nil, nil, "00000000000"},
		{"nobody watched", []netip.Addr{b4.Addr(), b6.Addr()}, nil, nil, "00000000000"},
		{"one of each", []netip.Addr{b4.Addr(), b6.Addr()}, []pair{of4, of6}, nil, "10000100010"},
		{"the other family", []netip.Addr{b4.Addr(), b6.Addr()}, []pair{of6}, nil, "00000100000"},
		{"many backends", manyAddrs(), []pair{of4}, nil, "10100000010"},
		{"followed", []netip.Addr{b4.Addr()}, []pair{of4}, []pair{of4}, "10010000010"},
		{"another followed", []netip.Addr{b6.Addr()}, []pair{of6}, []pair{{other4, a4}, of6}, "00001101000"},
	} {
		filter := progressFilter(tt.from, tt.watched, tt.followed)
		got := ""
		for _, s := range packets {
			got += digit(passes(t, filter, s))
		}
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// Any set of ports is passed, whatever its size, and up to a size no other.
func TestProgressFilterPorts(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	from := append(manyAddrs()[2:], b4.Addr(), b6.Addr())
	for _, n := range []int{1, 2, 5, 128, 130, 257, 300, 400, maxFilterPorts, maxFilterPorts + 1, 3000, 65536} {
		perm := r.Perm(65536)[:n]
		watched := make([]pair, 0, 2*n)
		is := make(map[int]bool, n)
		for _, port := range perm {
			watched = append(watched,
				pair{b4, netip.AddrPortFrom(a4.Addr(), uint16(port))},
				pair{b6, netip.AddrPortFrom(a6.Addr(), uint16(port))})
			is[port] = true
		}
		var followed []pair
		for i := range min(maxFollowed, len(watched)) {
			followed = append(followed, watched[i])
		}
		filter := progressFilter(from, watched, followed)
		if raw, err := bpf.Assemble(filter); err != nil || len(raw) > 4096 {
			t.Fatalf("%d ports: %d instructions, %v", n, len(raw), err)
		}
		for i := range 60 {
			port := r.IntN(65536)
			if i%2 == 0 {
				port = perm[r.IntN(n)]
			}
			s := segment{src: b4, dst: netip.AddrPortFrom(a4.Addr(), uint16(port))}
			if i%4 < 2 {
				s = segment{src: b6, dst: netip.AddrPortFrom(a6.Addr(), uint16(port))}
			}
			if got := passes(t, filter, s); got != is[port] && (is[port] || n <= maxFilterPorts) {
				t.Fatalf("%d ports: port %d passes %v", n, port, got)
			}
		}
	}
}
