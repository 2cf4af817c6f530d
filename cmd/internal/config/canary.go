package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/pelletier/go-toml/v2/unstable"
)

// decodeCanary makes a canary of what its section says and, for the keys of
// its container that it does not have, of the service's own container.
func decodeCanary(t *table, s *Service) {
	c := defaultCanary()
	t.integer("percent", &c.Percent, 0, 100)
	own := t.sub("container")
	c.Container = defaultContainer()
	if s.Container != nil {
		c.Container = *s.Container
	}
	for key, reset := range map[string]func(){
		"command": func() { c.Container.Command = nil },
		"env":     func() { c.Container.Env = nil },
		"volumes": func() { c.Container.Volumes = nil },
	} {
		if own.has(key) {
			reset()
		}
	}
	decodeContainer(own, &c.Container, false)
	switch {
	case t.n == nil:
		return
	case s.Container == nil:
		t.errorAt(t.line, "", "needs a [service.%s.container] that it can take the place of", s.Name)
	case len(own.keys()) == 0:
		t.errorf("container", "is missing: say in [service.%s.canary.container] what is to be tried, such as another image", s.Name)
	case own.has("priority"):
		own.errorf("priority", "is that of the service's container: remove it")
	}
	if own.n != nil {
		c.Digest = own.n.digest()
	}
	s.Canary = &c
}

// digest names a value by what it says, not by how it is laid out.
func (n *node) digest() string {
	h := sha256.New()
	n.tell(h)
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func (n *node) tell(w io.Writer) {
	_, _ = fmt.Fprintf(w, "%d %q %d %d\n", n.kind, n.text, len(n.sub), len(n.items)) // a hash does not fail
	if n.kind == unstable.Table {
		for _, key := range slices.Sorted(maps.Keys(n.sub)) {
			_, _ = fmt.Fprintf(w, "%q ", key)
			n.sub[key].tell(w)
		}
	}
	for _, item := range n.items {
		item.tell(w)
	}
}
