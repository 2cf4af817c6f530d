package config

import (
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// gate refuses a setting that is valid but that sluice does not act on yet.
type gate struct {
	key string // below service.NAME
	hit func(*Service) bool
	use string // what works, "" = nothing in its place
}

// unbuilt is the one list of what the configuration knows and sluice cannot do
// yet. Whoever builds something deletes its line here.
func unbuilt() []gate {
	return []gate{}
}

// refuse reports the settings of a service that gates refuse, unless errs has
// something worse to say about the same key.
func refuse(t *table, s *Service, gates []gate, errs []Error) {
	for _, g := range gates {
		key := t.path + "." + g.key
		if !g.hit(s) || slices.ContainsFunc(errs, func(e Error) bool { return e.Key == key }) {
			continue
		}
		n := t.n.at(g.key)
		what := n.String() + " is not supported yet"
		if n.kind == unstable.Table || n.kind == unstable.Array {
			what = "not supported yet"
		}
		t.r.add(t.file, n.line, key, what+": "+g.instead(s.Name))
	}
}

// instead returns what to do about g.
func (g gate) instead(service string) string {
	if g.use == "" {
		return "remove it"
	}
	return "use " + strings.ReplaceAll(g.use, "NAME", service)
}
