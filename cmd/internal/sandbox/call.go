package sandbox

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"sluice/testenv"
)

// Call is one request over a connection of its own, with its moments.
type Call struct {
	SYN, Connected, FirstByte time.Time

	Local  netip.AddrPort // the client's
	Answer testenv.Answer
}

// Call asks who answers at addr, from a namespace. The clock starts inside it,
// right before the connect system call.
func (s *Sandbox) Call(ctx context.Context, from *testenv.NS, addr string) (Call, error) {
	var c Call
	var conn net.Conn
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := from.Do(func() (err error) {
		var d net.Dialer
		d.SetMultipathTCP(false)
		c.SYN = time.Now()
		conn, err = d.DialContext(ctx, "tcp", addr)
		c.Connected = time.Now()
		return err
	})
	if err != nil {
		return c, err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return c, err
		}
	}
	c.Local = netip.MustParseAddrPort(conn.LocalAddr().String())
	if _, err := fmt.Fprintf(conn, "GET /who HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", addr); err != nil {
		return c, err
	}
	r := bufio.NewReader(conn)
	if _, err := r.Peek(1); err != nil {
		return c, fmt.Errorf("read answer: %w", err)
	}
	c.FirstByte = time.Now()
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return c, fmt.Errorf("read answer: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return c, fmt.Errorf("answer: %s", resp.Status)
	}
	if err := json.NewDecoder(resp.Body).Decode(&c.Answer); err != nil {
		return c, fmt.Errorf("read answer: %w", err)
	}
	return c, nil
}
