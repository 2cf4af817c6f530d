package main

import (
	"fmt"
	"net"
)

func serveUDP(c net.PacketConn, name string) error {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return fmt.Errorf("read datagram: %w", err)
		}
		// A refusal queued for an earlier client must not end the service.
		_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s %s", name, from, buf[:n]), from)
	}
}
