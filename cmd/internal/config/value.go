package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/go-units"
)

// Longest path that fits sockaddr_un with its terminating NUL (unix(7)).
const maxSocketPath = 107

func socketPath(s string) error {
	switch {
	case !strings.HasPrefix(s, "/"):
		return fmt.Errorf("must be an absolute path, got %q", s)
	case strings.ContainsRune(s, 0):
		return errors.New("must not hold a NUL character")
	case len(s) > maxSocketPath:
		return fmt.Errorf("must be at most %d bytes long for a unix socket, got %d", maxSocketPath, len(s))
	}
	return nil
}

func absolutePath(s string) error {
	switch {
	case !strings.HasPrefix(s, "/") || path.Clean(s) == "/":
		return fmt.Errorf("must be an absolute path below /, got %q", s)
	case strings.ContainsRune(s, 0):
		return errors.New("must not hold a NUL character")
	}
	return nil
}

func podmanURI(s string) error {
	p, ok := strings.CutPrefix(s, "unix://")
	if !ok || !strings.HasPrefix(p, "/") {
		return fmt.Errorf("must be unix:// and an absolute path, got %q", s)
	}
	return socketPath(p)
}

// hostPort checks an address to serve on; "" = off.
func hostPort(s string) error {
	if s == "" {
		return nil
	}
	_, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("must be HOST:PORT or \"\", got %q", s)
	}
	_, err = parsePort(port)
	return err
}

func parsePort(s string) (uint16, error) {
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil || p == 0 {
		return 0, fmt.Errorf("port must be 1 to 65535, got %q", s)
	}
	return uint16(p), nil
}

// parseListen reads ADDR:PORT/PROTO or :PORT/PROTO.
func parseListen(s string) (Listen, error) {
	hostport, proto, ok := strings.Cut(s, "/")
	if !ok {
		return Listen{}, fmt.Errorf("%q has no protocol: write %q", s, s+"/tcp")
	}
	l := Listen{Proto: Proto(proto)}
	if l.Proto != TCP && l.Proto != UDP {
		return Listen{}, fmt.Errorf("%q: protocol must be tcp or udp, got %q", s, proto)
	}
	host, port, err := net.SplitHostPort(hostport)
	if err != nil {
		return Listen{}, fmt.Errorf("%q is no address: write ADDR:PORT/%s, an IPv6 address in [ ]", s, proto)
	}
	if l.Port, err = parsePort(port); err != nil {
		return Listen{}, fmt.Errorf("%q: %w", s, err)
	}
	if host == "" {
		return l, nil
	}
	l.Addr, err = netip.ParseAddr(host)
	if err != nil {
		return Listen{}, fmt.Errorf("%q: %q is no IP address", s, host)
	}
	if l.Addr.IsUnspecified() {
		return Listen{}, fmt.Errorf("%q: write %q for every local address", s, Listen{Port: l.Port, Proto: l.Proto})
	}
	if err := unicast(l.Addr); err != nil {
		return Listen{}, fmt.Errorf("%q: %w", s, err)
	}
	return l, nil
}

// unicast refuses addresses that no flow can be sent to from everywhere.
func unicast(a netip.Addr) error {
	switch {
	case a.Is4In6():
		return fmt.Errorf("write %q instead of the mapped address", a.Unmap())
	case a.Zone() != "" || a.Is6() && a.IsLinkLocalUnicast():
		return errors.New("link-local IPv6 addresses are not possible")
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Errorf("%s is no unicast address", a)
	}
	return nil
}

func parseBackend(s string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("must be ADDR:PORT, got %q", s)
	}
	p, err := parsePort(port)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %w", s, err)
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %q is no IP address: for a name, use srv", s, host)
	}
	if err := unicast(a); err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q: %w", s, err)
	}
	return netip.AddrPortFrom(a, p), nil
}

// srvName checks a name as in RFC 2782: _service._proto.domain.
func srvName(s string) error {
	labels := strings.Split(strings.TrimSuffix(s, "."), ".")
	ok := len(s) <= 255 && len(labels) >= 3 && len(labels[0]) > 1 && labels[0][0] == '_' &&
		(labels[1] == "_tcp" || labels[1] == "_udp")
	for _, l := range labels {
		ok = ok && l != "" && len(l) <= 63 && strings.IndexFunc(l, func(c rune) bool {
			return !isAlnum(c) && c != '-' && c != '_'
		}) < 0
	}
	if !ok {
		return fmt.Errorf("must be like \"_pg._tcp.example.org\", got %q", s)
	}
	return nil
}

// parsePrefix reads a CIDR or a single address.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("must be a CIDR such as \"192.0.2.0/24\", got %q", s)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("%q holds IPv4 addresses: write it as an IPv4 CIDR", s)
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set beyond the prefix: write %q", s, p.Masked())
	}
	return p, nil
}

// Container names are sluice-NAME-N, or sluice-NAME-canary-N, and should be
// DNS labels of at most 63 characters with N up to four digits.
const maxServiceName = 40

func serviceName(s string) error {
	ok := s != "" && s[0] != '-' && strings.IndexFunc(s, func(c rune) bool {
		return c != '-' && (c < 'a' || c > 'z') && (c < '0' || c > '9')
	}) < 0
	switch {
	case !ok:
		return fmt.Errorf("service names are a-z, 0-9 and -, not first a -, got %q", s)
	case len(s) > maxServiceName:
		return fmt.Errorf("service names are at most %d characters long, got %d", maxServiceName, len(s))
	}
	return nil
}

// imageName accepts only names with a registry: for a short name Podman would
// ask at a terminal, or try one registry after another.
func imageName(s string) error {
	ref, err := reference.Parse(s)
	if err != nil {
		return fmt.Errorf("%q is no image name: %w", s, err)
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return fmt.Errorf("%q has no name: write REGISTRY/NAME:TAG", s)
	}
	registry := reference.Domain(named)
	if registry != "localhost" && !strings.ContainsAny(registry, ".:") {
		return fmt.Errorf("%q does not name its registry: write REGISTRY/NAME:TAG, or localhost/NAME:TAG for a local image", s)
	}
	return nil
}

func envName(s string) error {
	bad := s == "" || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c == '=' || c == 0x7f })
	if bad {
		return fmt.Errorf("environment variables have no =, space or control character in their name, got %q", s)
	}
	return nil
}

// podmanName is what Podman accepts as the name of a volume or a network.
func podmanName(s string) bool {
	return s != "" && isAlnum(rune(s[0])) && strings.IndexFunc(s, func(c rune) bool {
		return !isAlnum(c) && c != '_' && c != '.' && c != '-'
	}) < 0
}

func networkName(s string) error {
	if slices.Contains([]string{"host", "none", "private", "pasta", "slirp4netns"}, s) {
		return fmt.Errorf("%q gives replicas no address of their own: name a bridge network of Podman", s)
	}
	if !podmanName(s) {
		return fmt.Errorf("%q is no name of a Podman network", s)
	}
	return nil
}

// volumeOptions returns the options that podman-run(1) has for --volume. Each
// line holds those of which a mount takes one.
func volumeOptions() [][]string {
	return [][]string{
		{"rw", "ro"},
		{"z", "Z"},
		{"U"},
		{"O"},
		{"copy", "nocopy"},
		{"dev", "nodev"},
		{"exec", "noexec"},
		{"suid", "nosuid"},
		{"bind", "rbind"},
		{"shared", "rshared", "slave", "rslave", "private", "rprivate", "unbindable", "runbindable"},
		{"idmap"},
	}
}

// parseVolume reads SOURCE:TARGET[:OPTION,...].
func parseVolume(s string) (Volume, error) {
	if err := clean(s); err != nil {
		return Volume{}, err
	}
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return Volume{}, fmt.Errorf("%q: write SOURCE:TARGET or SOURCE:TARGET:OPTIONS", s)
	}
	v := Volume{Source: parts[0], Target: parts[1]}
	if !strings.HasPrefix(v.Source, "/") && !podmanName(v.Source) {
		return Volume{}, fmt.Errorf("%q: source must be an absolute path or the name of a volume, got %q", s, v.Source)
	}
	if !strings.HasPrefix(v.Target, "/") || path.Clean(v.Target) == "/" {
		return Volume{}, fmt.Errorf("%q: target must be an absolute path below /, got %q", s, v.Target)
	}
	if len(parts) < 3 {
		return v, nil
	}
	v.Options = strings.Split(parts[2], ",")
	taken := map[int]string{}
	for _, o := range v.Options {
		name, _, _ := strings.Cut(o, "=")
		if name != "idmap" {
			name = o
		}
		i := slices.IndexFunc(volumeOptions(), func(group []string) bool { return slices.Contains(group, name) })
		if i < 0 {
			return Volume{}, fmt.Errorf("%q: unknown option %q", s, o)
		}
		if other, dup := taken[i]; dup {
			return Volume{}, fmt.Errorf("%q: options %q and %q exclude each other", s, other, o)
		}
		taken[i] = o
	}
	return v, nil
}

// The smallest memory limit: below it crun and runc cannot even start.
const minMemory = 4 * units.MiB

// parseMemory reads a size in Podman's notation; "" = no limit.
func parseMemory(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	// The package computes in float64 and does not look for overflow.
	v, err := units.RAMInBytes(s)
	if err != nil || v < 0 || len(s) > 16 || v > math.MaxInt64/2 {
		return 0, fmt.Errorf("must be a size such as \"256m\" or \"2g\", got %q", s)
	}
	if v < minMemory {
		return 0, fmt.Errorf("must be at least 4m, got %q (%d bytes)", s, v)
	}
	return v, nil
}

func httpPath(s string) error {
	if !strings.HasPrefix(s, "/") || strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }) {
		return fmt.Errorf("must begin with / and hold no space, # or non-ASCII character, got %q", s)
	}
	return nil
}
