package main

import (
	"fmt"
	"io"
	"net"
)

// serveEcho sends back what it gets. After the client's FIN it sends the rest
// and its own FIN, so a client may close one direction first.
func serveEcho(l net.Listener) error {
	return each(l, echo)
}

// serveGreeting speaks before it has read anything, as SMTP and SSH servers do.
func serveGreeting(l net.Listener, name string) error {
	return each(l, func(c net.Conn) {
		if _, err := fmt.Fprintf(c, "220 %s %s\r\n", name, c.RemoteAddr()); err != nil {
			return
		}
		echo(c)
	})
}

func echo(c net.Conn) {
	_, _ = io.Copy(c, c) // fails when the client leaves
}

func each(l net.Listener, handle func(net.Conn)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer c.Close()
			handle(c)
		}()
	}
}
