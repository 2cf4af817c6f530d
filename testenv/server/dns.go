package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// A name server (RFC 1035) that knows one record of every name: a TXT that says
// "SERVER CLIENT". The name "N.fill" (below anything) has N such records, so
// that an answer by UDP may have to be cut, with TC set, and fetched by TCP.

const (
	typeTXT = 16
	typeOPT = 41
	classIN = 1
	minUDP  = 512 // what a client takes that does not say how much (EDNS)
	lenHead = 12
	dnsIdle = 30 * time.Second
	flagsQR = 0x8400 // an answer, authoritative
	flagTC  = 0x0200
	flagRD  = 0x0100
)

var errQuery = errors.New("no query")

// query is what is asked for.
type query struct {
	id, flags, typ uint16
	question       []byte // as it stands in the message
	labels         []string
	udp            int // bytes of an answer that the client takes by UDP
}

func parseQuery(b []byte) (q query, err error) {
	if len(b) < lenHead {
		return q, errQuery
	}
	q.id, q.flags, q.udp = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), minUDP
	if q.flags&0x8000 != 0 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return q, errQuery
	}
	extra, rest := binary.BigEndian.Uint16(b[10:]), b[lenHead:]
	for len(rest) > 0 && rest[0] != 0 {
		n := int(rest[0])
		if n > 63 || len(rest) < n+1 {
			return q, errQuery
		}
		q.labels = append(q.labels, string(rest[1:n+1]))
		rest = rest[n+1:]
	}
	if len(rest) < 5 {
		return q, errQuery
	}
	q.typ = binary.BigEndian.Uint16(rest[1:])
	rest = rest[5:]
	q.question = b[lenHead : len(b)-len(rest)]
	// The root's name, OPT, and the size in place of a class (RFC 6891).
	if extra > 0 && len(rest) >= 11 && rest[0] == 0 && binary.BigEndian.Uint16(rest[1:]) == typeOPT {
		q.udp = max(minUDP, int(binary.BigEndian.Uint16(rest[3:])))
	}
	return q, nil
}

// answer is at most limit bytes long.
func (q query) answer(text string, limit int) []byte {
	count := 0
	if q.typ == typeTXT {
		count = 1
		if len(q.labels) > 1 && q.labels[1] == "fill" {
			count, _ = strconv.Atoi(q.labels[0])
		}
	}
	b := make([]byte, lenHead, limit)
	binary.BigEndian.PutUint16(b, q.id)
	binary.BigEndian.PutUint16(b[4:], 1)
	b = append(b, q.question...)
	flags, n := flagsQR|q.flags&flagRD, 0
	for ; n < count; n++ {
		said := fmt.Sprintf("%s %d", text, n)
		if len(b)+12+1+len(said) > limit {
			flags |= flagTC
			break
		}
		b = append(b, 0xc0, lenHead) // the name is that of the question
		b = binary.BigEndian.AppendUint16(b, typeTXT)
		b = binary.BigEndian.AppendUint16(b, classIN)
		b = binary.BigEndian.AppendUint32(b, 0)
		b = binary.BigEndian.AppendUint16(b, uint16(1+len(said)))
		b = append(append(b, byte(len(said))), said...)
	}
	binary.BigEndian.PutUint16(b[2:], flags)
	binary.BigEndian.PutUint16(b[6:], uint16(n))
	return b
}

func serveDNSPackets(c net.PacketConn, name string) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read query: %w", err)
		}
		if q, err := parseQuery(buf[:n]); err == nil {
			_, _ = c.WriteTo(q.answer(name+" "+from.String(), q.udp), from)
		}
	}
}

func serveDNS(l net.Listener, name string) error {
	return each(l, func(c net.Conn) {
		for {
			_ = c.SetDeadline(time.Now().Add(dnsIdle))
			var size [2]byte
			if _, err := io.ReadFull(c, size[:]); err != nil {
				return
			}
			b := make([]byte, binary.BigEndian.Uint16(size[:]))
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			q, err := parseQuery(b)
			if err != nil {
				return
			}
			a := q.answer(strings.Join([]string{name, c.RemoteAddr().String()}, " "), 1<<16-1)
			if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)); err != nil {
				return
			}
		}
	})
}
