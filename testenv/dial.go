package testenv

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Dial connects from within the namespace. addr must be a literal address.
func (ns *NS) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	return ns.DialFrom(ctx, netip.AddrPort{}, network, addr)
}

// DialFrom is Dial from the given local address; its zero value, or its port 0,
// leaves the choice to the kernel. SO_REUSEADDR is not set.
func (ns *NS) DialFrom(ctx context.Context, local netip.AddrPort, network, addr string) (net.Conn, error) {
	// A name would be resolved on goroutines outside the namespace.
	if _, err := netip.ParseAddrPort(addr); err != nil {
		return nil, fmt.Errorf("dial %s: %w", addr, err)
	}
	d := net.Dialer{LocalAddr: localAddr(network, local)}
	d.SetMultipathTCP(false)
	var c net.Conn
	err := ns.bound(ctx, func() (err error) {
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", ns.Name, err)
	}
	return c, nil
}

func localAddr(network string, local netip.AddrPort) net.Addr {
	switch {
	case !local.Addr().IsValid():
		return nil
	case network == "udp" || network == "udp4" || network == "udp6":
		return net.UDPAddrFromAddrPort(local)
	default:
		return net.TCPAddrFromAddrPort(local)
	}
}

// Listen opens a stream listener inside the namespace, without Multipath TCP
// (which Go turns on by default and which makes another kind of socket). The
// caller closes it.
func (ns *NS) Listen(network, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var l net.Listener
	err := ns.bound(context.Background(), func() (err error) {
		l, err = lc.Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", ns.Name, err)
	}
	return l, nil
}

// ListenPacket opens a datagram socket inside the namespace; the caller closes it.
func (ns *NS) ListenPacket(network, addr string) (net.PacketConn, error) {
	var c net.PacketConn
	err := ns.bound(context.Background(), func() (err error) {
		c, err = net.ListenPacket(network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", ns.Name, err)
	}
	return c, nil
}

// bound is Do for what binds a port. A child between fork and exec holds a copy
// of every descriptor, so a port that a test has just closed is in use for as
// long as another test is starting a program: such a port is asked for again,
// for a second at the most.
func (ns *NS) bound(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	for {
		err := ns.Do(f)
		if !errors.Is(err, unix.EADDRINUSE) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Millisecond):
		}
	}
}

// HTTPOptions are for HTTPClient; the zero value is one connection per request
// from any address, with no limit but the request's context.
type HTTPOptions struct {
	KeepAlive bool
	Timeout   time.Duration // of a whole request, body included; 0 is none
	Local     netip.Addr    // source address
	HTTP2     bool          // only: by prior knowledge, or over TLS
}

// HTTPClient returns a client whose sockets are made inside the namespace. It
// follows no proxy, asks for no compression and trusts any certificate.
func (ns *NS) HTTPClient(o HTTPOptions) *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return ns.DialFrom(ctx, netip.AddrPortFrom(o.Local, 0), network, addr)
		},
		DisableKeepAlives:  !o.KeepAlive,
		DisableCompression: true,
		IdleConnTimeout:    10 * time.Second,
		TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
	}
	if o.HTTP2 {
		tr.Protocols = new(http.Protocols)
		tr.Protocols.SetHTTP2(true)
		tr.Protocols.SetUnencryptedHTTP2(true)
	}
	return &http.Client{Timeout: o.Timeout, Transport: tr}
}
