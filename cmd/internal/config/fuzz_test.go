package config

import (
	"strings"
	"testing"
)

// FuzzValues: a value that is accepted means the same when it is written out
// again, and an error says something about what was given.
func FuzzValues(f *testing.F) {
	for _, s := range []string{
		"", "192.0.2.10:80/tcp", "[2001:db8::10]:53/udp", ":80/tcp", "0.0.0.0:80/tcp", "[::ffff:192.0.2.1]:80/tcp", "[fe80::1%eth0]:80/tcp",
		"10.1.2.3:5432", "[fd00::1]:1", "192.0.2.0/24", "192.0.2.1", "2001:db8::/32", "::ffff:192.0.2.0/120", "192.0.2.1/24",
		"/srv/data:/data:ro,Z", "cache:/var/cache", "a:/", "/a:/b:idmap=uids=0-1-2,rw", "256m", "2g", "1e9k", "-1m", "9223372036854775807",
		"docker.io/library/nginx:1", "localhost/web@sha256:" + strings.Repeat("0", 64), "nginx", "_pg._tcp.example.org", "_pg._tcp.example.org.",
		"/healthz?x=1", "/a b", "unix:///run/podman/podman.sock", "unix://run", "127.0.0.1:9464", "[::]:1", "host:http", "web-1", "-web", "podman", "host",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		said := func(what string, err error) {
			if err != nil && strings.TrimSpace(err.Error()) == "" {
				t.Errorf("%s %q: an error that says nothing", what, s)
			}
		}
		l, err := parseListen(s)
		said("listen", err)
		if again, aerr := parseListen(l.String()); err == nil && (aerr != nil || again != l) {
			t.Errorf("listen %q became %v, %v", s, again, aerr)
		}
		b, err := parseBackend(s)
		said("backend", err)
		if again, aerr := parseBackend(b.String()); err == nil && (aerr != nil || again != b) {
			t.Errorf("backend %q became %v, %v", s, again, aerr)
		}
		p, err := parsePrefix(s)
		said("prefix", err)
		if again, aerr := parsePrefix(p.String()); err == nil && (aerr != nil || again != p || !p.IsValid()) {
			t.Errorf("prefix %q became %v, %v", s, again, aerr)
		}
		v, err := parseVolume(s)
		said("volume", err)
		if err == nil && v.String() != s {
			t.Errorf("volume %q became %q", s, v)
		}
		m, err := parseMemory(s)
		said("memory", err)
		if err == nil && m != 0 && m < minMemory {
			t.Errorf("memory %q became %d", s, m)
		}
		for what, check := range map[string]func(string) error{
			"socket": socketPath, "podman": podmanURI, "metrics": hostPort, "srv": srvName, "service": serviceName,
			"image": imageName, "env": envName, "network": networkName, "path": httpPath,
		} {
			said(what, check(s))
		}
	})
}
