package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

var errHeader = errors.New("no PROXY header")

const headerPatience = 10 * time.Second

// proxied demands a PROXY protocol header, of version 1 or 2, at the begin of
// each connection, and closes those without. The remote address is that of the
// header, or the connection's own after LOCAL and UNKNOWN. It writes a line
// "proxy PORT WHAT": an address, "own" or "none".
type proxied struct {
	net.Listener
	port string
	out  chan net.Conn
	err  chan error
}

func demandHeader(l net.Listener, port string) net.Listener {
	p := &proxied{l, port, make(chan net.Conn), make(chan error, 1)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				p.err <- err
				return
			}
			go p.read(c)
		}
	}()
	return p
}

func (p *proxied) Accept() (net.Conn, error) {
	select {
	case c := <-p.out:
		return c, nil
	case err := <-p.err:
		return nil, err
	}
}

func (p *proxied) read(c net.Conn) {
	_ = c.SetReadDeadline(time.Now().Add(headerPatience))
	r := bufio.NewReader(c)
	from, err := readHeader(r)
	_ = c.SetReadDeadline(time.Time{})
	switch {
	case err != nil:
		log.Printf("proxy %s none", p.port)
		_ = c.Close()
		return
	case !from.IsValid():
		log.Printf("proxy %s own", p.port)
	default:
		log.Printf("proxy %s %s", p.port, from)
	}
	p.out <- &named{c, r, from}
}

// named is a connection whose header has been read.
type named struct {
	net.Conn
	r    *bufio.Reader
	from netip.AddrPort
}

func (n *named) Read(b []byte) (int, error) { return n.r.Read(b) }

func (n *named) RemoteAddr() net.Addr {
	if !n.from.IsValid() {
		return n.Conn.RemoteAddr()
	}
	return net.TCPAddrFromAddrPort(n.from)
}

// readHeader returns the client's address, or none for a connection of the
// proxy's own.
func readHeader(r *bufio.Reader) (from netip.AddrPort, err error) {
	const magic = "\r\n\r\n\x00\r\nQUIT\n"
	start, err := r.Peek(len("PROXY "))
	if err != nil {
		return from, err
	}
	if string(start) == "PROXY " {
		line, err := r.ReadString('\n')
		if err != nil {
			return from, err
		}
		words := strings.Fields(line)
		if len(words) == 2 && words[1] == "UNKNOWN" {
			return from, nil
		}
		if len(words) != 6 || words[1] != "TCP4" && words[1] != "TCP6" {
			return from, errHeader
		}
		addr, err := netip.ParseAddr(words[2])
		if err != nil {
			return from, err
		}
		port, err := strconv.ParseUint(words[4], 10, 16)
		return netip.AddrPortFrom(addr, uint16(port)), err
	}
	head := make([]byte, len(magic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return from, err
	}
	if string(head[:len(magic)]) != magic {
		return from, errHeader
	}
	rest := make([]byte, binary.BigEndian.Uint16(head[14:]))
	if _, err := io.ReadFull(r, rest); err != nil {
		return from, err
	}
	size := 0
	switch command, family := head[12], head[13]; {
	case command == 0x20: // LOCAL
		return from, nil
	case command != 0x21:
		return from, fmt.Errorf("command %#x: %w", command, errHeader)
	case family == 0x11: // TCP over IPv4
		size = 4
	case family == 0x21: // TCP over IPv6
		size = 16
	default:
		return from, fmt.Errorf("family %#x: %w", family, errHeader)
	}
	if len(rest) < 2*size+4 {
		return from, errHeader
	}
	addr, _ := netip.AddrFromSlice(rest[:size])
	return netip.AddrPortFrom(addr, binary.BigEndian.Uint16(rest[2*size:])), nil
}
