package config

import (
	"bytes"
	"cmp"
	"slices"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// sound has the decoder check what the bare parser lets pass: keys that are
// defined twice, numbers and dates that are none.
//
// The decoder looks for each key through all that it has seen, which takes
// seconds for ten thousand services. So it is given one service at a time: the
// parts of a file that two services have cannot contradict each other.
func sound(data []byte) error {
	for _, piece := range pieces(data) {
		var discard map[string]any
		if toml.Unmarshal(piece, &discard) == nil {
			continue
		}
		// What is wrong, and in which line of the file, is told by the whole.
		discard = nil
		return toml.Unmarshal(data, &discard)
	}
	return nil
}

// pieces cuts a file before its headers and puts together again what belongs to
// one service, and all that belongs to none. A file that does not parse, or
// that defines a service in another way than below a header of its own, is one
// piece.
func pieces(data []byte) [][]byte {
	whole := [][]byte{data}
	type section struct {
		service    string // "": none
		start, end int
	}
	sections := []section{{}}
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
			continue
		}
		keys := e.Key()
		keys.Next()
		first := keys.Node()
		switch isService := string(first.Data) == "service"; {
		case e.Kind == unstable.KeyValue:
			if len(sections) == 1 && isService {
				return whole
			}
		case !isService:
			sections = append(sections, section{start: lineStart(data, first)})
		case !keys.Next() || len(keys.Node().Data) == 0: // [service] itself, or an empty name
			return whole
		default:
			sections = append(sections, section{service: string(keys.Node().Data), start: lineStart(data, first)})
		}
	}
	if p.Error() != nil {
		return whole
	}
	for i := range sections {
		sections[i].end = len(data)
		if i+1 < len(sections) {
			sections[i].end = sections[i+1].start
		}
	}
	slices.SortStableFunc(sections, func(a, b section) int { return cmp.Compare(a.service, b.service) })
	var all [][]byte
	from := 0 // where the last piece begins, -1 if it is put together
	for i, s := range sections {
		last := len(all) - 1
		switch {
		case i == 0 || sections[i-1].service != s.service:
			from = s.start
			all = append(all, data[from:s.end:s.end])
		case from >= 0 && sections[i-1].end == s.start: // the usual case
			all[last] = data[from:s.end:s.end]
		default:
			from = -1
			all[last] = append(all[last], data[s.start:s.end]...)
		}
	}
	return all
}

// lineStart is where the line begins that holds a key.
func lineStart(data []byte, key *unstable.Node) int {
	return bytes.LastIndexByte(data[:key.Raw.Offset], '\n') + 1
}
