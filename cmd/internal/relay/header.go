package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// ErrHeader reports what no PROXY protocol header can say.
var ErrHeader = errors.New("no PROXY protocol header")

// Header is what tells a backend that speaks the PROXY protocol, version 1
// (text) or 2 (binary), who its client is and which address it called. It goes
// first on the connection, see [RunWith].
//
// With addresses of two families both are told as IPv6, the IPv4 one mapped.
// With neither address given the header says that the connection is sluice's
// own (LOCAL, or UNKNOWN in version 1), as a health check has to. The error is
// ErrHeader.
func Header(version int, client, service netip.AddrPort) ([]byte, error) {
	if version != 1 && version != 2 {
		return nil, fmt.Errorf("version %d: %w", version, ErrHeader) // the library would take 2
	}
	var src, dst net.Addr
	switch {
	case client.IsValid() && service.IsValid():
		src, dst = tcpAddr(client), tcpAddr(service)
	case client.IsValid() || service.IsValid():
		return nil, fmt.Errorf("client %s, service %s: %w", client, service, ErrHeader)
	}
	b, err := proxyproto.HeaderProxyFromAddrs(byte(version), src, dst).Format()
	if err != nil {
		return nil, fmt.Errorf("client %s, service %s: %w: %w", client, service, ErrHeader, err)
	}
	return b, nil
}

func tcpAddr(a netip.AddrPort) net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.Addr().Unmap(), a.Port()))
}
