package config

import (
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// node is one value of a file and where it stands. Decoding into Go structs
// would lose the places, and would stop at the first wrong type.
type node struct {
	line     int
	kind     unstable.Kind // Table (also inline), Array, or a scalar's kind
	explicit bool          // a table whose own header has been seen
	text     string        // a string's value, or another scalar as written
	sub      map[string]*node
	items    []*node
}

// String returns a scalar as a message shows it.
func (n *node) String() string {
	if n.kind == unstable.String {
		return strconv.Quote(n.text)
	}
	return n.text
}

// noun returns what a message calls the type of n.
func (n *node) noun() string {
	switch n.kind {
	case unstable.String:
		return "a string"
	case unstable.Integer:
		return "an integer"
	case unstable.Float:
		return "a float"
	case unstable.Bool:
		return "a boolean"
	case unstable.Array:
		return "an array"
	case unstable.Table:
		return "a table"
	default:
		return "a date or time"
	}
}

// parse reads one file. The error, if any, has a line.
func parse(file string, data []byte) (*node, error) {
	if err := sound(data); err != nil {
		return nil, syntaxError(file, err)
	}

	t := treeBuilder{root: newTable(1)}
	for i, c := range data {
		if c == '\n' {
			t.newlines = append(t.newlines, i)
		}
	}
	t.parser.Reset(data)
	into := t.root
	for t.parser.NextExpression() {
		e := t.parser.Expression()
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			into = t.header(e)
		case unstable.KeyValue:
			t.keyValue(into, e)
		default: // comments are not kept
		}
	}
	if err := t.parser.Error(); err != nil {
		return nil, syntaxError(file, err)
	}
	return t.root, nil
}

func syntaxError(file string, err error) error {
	e := Error{File: file, Line: 1, Msg: strings.TrimPrefix(err.Error(), "toml: ")}
	var d *toml.DecodeError
	if errors.As(err, &d) {
		e.Line, _ = d.Position()
	}
	e.Msg = fmt.Sprintf("not valid TOML: %s", e.Msg)
	return e
}

type treeBuilder struct {
	parser   unstable.Parser
	newlines []int // offsets
	root     *node
}

func newTable(line int) *node {
	return &node{line: line, kind: unstable.Table, sub: map[string]*node{}}
}

// line returns the line of what a node of the parser covers.
func (t *treeBuilder) line(n *unstable.Node) int {
	return sort.SearchInts(t.newlines, int(n.Raw.Offset)) + 1
}

// header finds or makes the table that a [header] or [[header]] opens.
func (t *treeBuilder) header(e *unstable.Node) *node {
	n, keys := t.root, e.Key()
	for keys.Next() {
		key := keys.Node()
		if !keys.IsLast() {
			n = t.descend(n, key)
			continue
		}
		if e.Kind == unstable.Table {
			n = t.descend(n, key)
			break
		}
		array := n.sub[string(key.Data)]
		if array == nil {
			array = &node{line: t.line(key), kind: unstable.Array}
			n.sub[string(key.Data)] = array
		}
		n = newTable(t.line(key))
		array.items = append(array.items, n)
	}
	if !n.explicit {
		// The table may have been made by the header of a part of it.
		n.explicit, n.line = true, t.headerLine(e)
	}
	return n
}

func (t *treeBuilder) headerLine(e *unstable.Node) int {
	keys := e.Key()
	keys.Next()
	return t.line(keys.Node())
}

// descend goes into the table at key, making it when there is none yet; of an
// array of tables, into the last one.
func (t *treeBuilder) descend(n *node, key *unstable.Node) *node {
	next := n.sub[string(key.Data)]
	if next == nil {
		next = newTable(t.line(key))
		n.sub[string(key.Data)] = next
	}
	if next.kind == unstable.Array {
		return next.items[len(next.items)-1]
	}
	return next
}

func (t *treeBuilder) keyValue(into *node, e *unstable.Node) {
	keys := e.Key()
	for keys.Next() {
		key := keys.Node()
		if keys.IsLast() {
			into.sub[string(key.Data)] = t.value(e.Value(), t.line(key))
			return
		}
		into = t.descend(into, key)
	}
}

// value copies a value; above is the line of the key or array it belongs to,
// for the kinds whose own place the parser does not tell.
func (t *treeBuilder) value(v *unstable.Node, above int) *node {
	switch v.Kind {
	case unstable.Array:
		n := &node{line: above, kind: unstable.Array}
		for it := v.Children(); it.Next(); {
			n.items = append(n.items, t.value(it.Node(), above))
		}
		return n
	case unstable.InlineTable:
		n := newTable(t.line(v))
		n.explicit = true
		for it := v.Children(); it.Next(); {
			t.keyValue(n, it.Node())
		}
		return n
	default:
		return &node{line: t.line(v), kind: v.Kind, text: string(v.Data)}
	}
}
