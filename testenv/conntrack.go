package testenv

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// CTFlow is an entry of the connection tracking table as the program
// conntrack(8) prints it.
type CTFlow struct {
	Proto   uint8
	Timeout int    // seconds; 0 where the kernel holds the entry for ever
	State   string // of TCP and SCTP: ESTABLISHED and so on; otherwise empty
	Orig    CTTuple
	Reply   CTTuple
	Mark    uint32

	// What was carried, zero unless net.netfilter.nf_conntrack_acct was on when
	// the flow began.
	OrigCount, ReplyCount CTCount

	Flags []string // as printed in brackets: UNREPLIED, ASSURED, OFFLOAD
	Line  string
}

// CTTuple is one direction of a flow. The ports are 0 for protocols without.
type CTTuple struct {
	Src, Dst netip.AddrPort
}

// CTCount counts IP packets and their bytes, headers included.
type CTCount struct{ Packets, Bytes uint64 }

// Has says whether the entry is printed with [flag].
func (f CTFlow) Has(flag string) bool { return slices.Contains(f.Flags, flag) }

// DNAT says whether the reply comes from elsewhere than the client called.
func (f CTFlow) DNAT() bool { return f.Reply.Src != f.Orig.Dst }

func (f CTFlow) String() string { return f.Line }

// Conntrack lists the connection tracking table of a namespace, both families.
// A namespace without a rule that tracks has an empty one.
func Conntrack(t TB, ns *NS) []CTFlow {
	t.Helper()
	var flows []CTFlow
	for _, family := range []string{"ipv4", "ipv6"} {
		for line := range strings.Lines(ns.Run(t, "conntrack", "-L", "-f", family, "-o", "extended")) {
			f, err := parseCTFlow(strings.TrimSpace(line))
			if err != nil {
				t.Fatalf("in %s: %v", ns.Name, err)
			}
			flows = append(flows, f)
		}
	}
	return flows
}

// Ruleset is the whole nftables ruleset of a namespace as nft(8) prints it.
func Ruleset(t TB, ns *NS) string {
	t.Helper()
	return ns.Run(t, "nft", "list", "ruleset")
}

// parseCTFlow reads a line such as
//
//	ipv4 2 tcp 6 431999 ESTABLISHED src=A dst=B sport=1 dport=2 src=B dst=A sport=2 dport=1 [ASSURED] mark=0 use=1
func parseCTFlow(line string) (CTFlow, error) {
	f := CTFlow{Line: line}
	words := strings.Fields(line)
	if len(words) < 5 {
		return f, fmt.Errorf("parse conntrack line %q: too short", line)
	}
	proto, err := strconv.ParseUint(words[3], 10, 8)
	if err != nil {
		return f, fmt.Errorf("parse conntrack line %q: %w", line, err)
	}
	f.Proto = uint8(proto)
	var src, dst [2]netip.Addr
	var sport, dport [2]uint16
	var counts [2]CTCount
	dir := -1 // each "src=" begins the next tuple
	for i, w := range words[4:] {
		key, value, pair := strings.Cut(w, "=")
		if key == "src" && dir < 1 {
			dir++
		}
		switch {
		case strings.HasPrefix(w, "["):
			f.Flags = append(f.Flags, strings.Trim(w, "[]"))
		case !pair && i == 0 && isNumber(w):
			f.Timeout, err = strconv.Atoi(w)
		case !pair && dir < 0:
			f.State = w
		case key == "mark":
			var m uint64
			m, err = strconv.ParseUint(value, 0, 32)
			f.Mark = uint32(m)
		case dir < 0:
		case key == "src":
			src[dir], err = netip.ParseAddr(value)
		case key == "dst":
			dst[dir], err = netip.ParseAddr(value)
		case key == "sport":
			sport[dir], err = parsePort(value)
		case key == "dport":
			dport[dir], err = parsePort(value)
		case key == "packets":
			counts[dir].Packets, err = strconv.ParseUint(value, 10, 64)
		case key == "bytes":
			counts[dir].Bytes, err = strconv.ParseUint(value, 10, 64)
		}
		if err != nil {
			return f, fmt.Errorf("parse conntrack line %q: %w", line, err)
		}
	}
	if dir != 1 {
		return f, fmt.Errorf("parse conntrack line %q: want two tuples", line)
	}
	f.OrigCount, f.ReplyCount = counts[0], counts[1]
	f.Orig = CTTuple{netip.AddrPortFrom(src[0], sport[0]), netip.AddrPortFrom(dst[0], dport[0])}
	f.Reply = CTTuple{netip.AddrPortFrom(src[1], sport[1]), netip.AddrPortFrom(dst[1], dport[1])}
	return f, nil
}

func isNumber(s string) bool {
	_, err := strconv.Atoi(s)
	return err == nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err
}
