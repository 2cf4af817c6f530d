package config

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"
)

// table reads the keys of one table. To ask for a key makes it a known one;
// unknown reports those that nobody asked for. A table that is not in the file
// is read all the same, so that its keys are known and defaults stay.
type table struct {
	r     *report
	file  string
	path  string // with which keys in messages begin, "" at the top
	line  int    // where the table stands, or else what it would belong to
	n     *node  // nil: not in the file
	names bool   // its keys are names that the user gives: none is unknown
	known []string
	subs  []*table
}

// dot joins a path and a key, quoting the key where TOML would.
func dot(path, key string) string {
	bare := key != "" && strings.IndexFunc(key, func(c rune) bool {
		return !isAlnum(c) && c != '-' && c != '_'
	}) < 0
	if !bare {
		key = strconv.Quote(key)
	}
	if path == "" {
		return key
	}
	return path + "." + key
}

func isAlnum(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func (t *table) get(key string) *node {
	t.known = append(t.known, key)
	if t.n == nil {
		return nil
	}
	return t.n.sub[key]
}

// has reports whether key is in the file.
func (t *table) has(key string) bool { return t.n != nil && t.n.sub[key] != nil }

// keys returns the keys of t in the order of their lines.
func (t *table) keys() []string {
	if t.n == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(t.n.sub), func(a, b string) int {
		return cmp.Or(cmp.Compare(t.n.sub[a].line, t.n.sub[b].line), cmp.Compare(a, b))
	})
}

// errorf reports a problem with key, at its line if it is in the file.
func (t *table) errorf(key, format string, args ...any) {
	line := t.line
	if t.has(key) {
		line = t.n.sub[key].line
	}
	t.errorAt(line, key, format, args...)
}

func (t *table) errorAt(line int, key, format string, args ...any) {
	path := t.path
	if key != "" {
		path = dot(path, key)
	}
	t.r.add(t.file, line, path, fmt.Sprintf(format, args...))
}

// sub returns the table at key; its n is nil when there is none.
func (t *table) sub(key string) *table {
	s := &table{r: t.r, file: t.file, path: dot(t.path, key), line: t.line}
	n := t.get(key)
	switch {
	case n == nil:
	case n.kind != unstable.Table:
		t.errorf(key, "must be a table, got %s: write [%s]", n.noun(), s.path)
	default:
		s.n, s.line = n, n.line
	}
	t.subs = append(t.subs, s)
	return s
}

// tables returns the tables of the array of tables at key.
func (t *table) tables(key string) []*table {
	n := t.get(key)
	if n == nil {
		return nil
	}
	path := dot(t.path, key)
	if n.kind != unstable.Array {
		t.errorf(key, "must be an array of tables, got %s: write [[%s]]", n.noun(), path)
		return nil
	}
	var all []*table
	for i, item := range n.items {
		if item.kind != unstable.Table {
			t.errorAt(item.line, key, "must be an array of tables, got %s in it: write [[%s]]", item.noun(), path)
			continue
		}
		s := &table{r: t.r, file: t.file, path: fmt.Sprintf("%s[%d]", path, i), line: item.line, n: item}
		all = append(all, s)
		t.subs = append(t.subs, s)
	}
	return all
}

// str sets *dst to the string at key if it is there and ok finds nothing
// wrong with it. ok may be nil; its error is the rest of the message.
func (t *table) str(key string, dst *string, ok func(string) error) {
	n := t.get(key)
	if n == nil {
		return
	}
	if n.kind != unstable.String {
		t.errorf(key, "must be a string, got %s: put it in quotes", n.noun())
		return
	}
	if ok != nil {
		if err := ok(n.text); err != nil {
			t.errorf(key, "%v", err)
			return
		}
	}
	*dst = n.text
}

// parsed sets *dst to what parse makes of the string at key.
func parsed[T any](t *table, key string, dst *T, parse func(string) (T, error)) {
	var s string
	t.str(key, &s, func(s string) error {
		v, err := parse(s)
		if err == nil {
			*dst = v
		}
		return err
	})
}

// word sets *dst to the word at key, which must be one of words.
func word[T ~string](t *table, key string, dst *T, words ...T) {
	parsed(t, key, dst, func(s string) (T, error) {
		if slices.Contains(words, T(s)) {
			return T(s), nil
		}
		all := make([]string, len(words))
		for i, w := range words {
			all[i] = strconv.Quote(string(w))
		}
		last := len(all) - 1
		list := strings.Join(all[:last], ", ") + " or " + all[last]
		if near := nearest(s, words); near != "" {
			return "", fmt.Errorf("must be %s, got %q: did you mean %q?", list, s, string(near))
		}
		return "", fmt.Errorf("must be %s, got %q", list, s)
	})
}

// integer sets *dst to the integer at key, which must be in [lo, hi].
func (t *table) integer(key string, dst *int, lo, hi int) {
	n := t.get(key)
	if n == nil {
		return
	}
	if n.kind != unstable.Integer {
		t.errorf(key, "must be an integer, got %s", n.noun())
		return
	}
	v, err := strconv.ParseInt(n.text, 0, 64)
	switch {
	case err != nil:
		t.errorf(key, "must be an integer, got %s", n.text)
	case v < int64(lo):
		t.errorf(key, "must be at least %d, got %d", lo, v)
	case v > int64(hi):
		t.errorf(key, "must be at most %d, got %d", hi, v)
	default:
		*dst = int(v)
	}
}

// number sets *dst to the integer or float at key, which must be in [lo, hi].
func (t *table) number(key string, dst *float64, lo, hi float64) {
	n := t.get(key)
	if n == nil {
		return
	}
	var v float64
	var err error
	switch n.kind {
	case unstable.Integer:
		var i int64
		i, err = strconv.ParseInt(n.text, 0, 64)
		v = float64(i)
	case unstable.Float:
		v, err = strconv.ParseFloat(strings.ReplaceAll(n.text, "_", ""), 64)
	default:
		t.errorf(key, "must be a number, got %s", n.noun())
		return
	}
	switch {
	case err != nil || math.IsNaN(v) || math.IsInf(v, 0):
		t.errorf(key, "must be a finite number, got %s", n.text)
	case v < lo:
		t.errorf(key, "must be at least %v, got %s", lo, n.text)
	case v > hi:
		t.errorf(key, "must be at most %v, got %s", hi, n.text)
	default:
		*dst = v
	}
}

// duration sets *dst to the duration at key, which must be at least lo.
func (t *table) duration(key string, dst *time.Duration, lo time.Duration) {
	if n := t.get(key); n != nil && n.kind != unstable.String {
		t.errorf(key, "must be a duration in quotes such as \"30s\", got %s", n.noun())
		return
	}
	parsed(t, key, dst, func(s string) (time.Duration, error) {
		d, err := time.ParseDuration(s)
		switch {
		case err != nil:
			return 0, fmt.Errorf("must be a duration such as \"30s\" or \"1m30s\", got %q", s)
		case d < 0:
			return 0, fmt.Errorf("must not be negative, got %q", s)
		case d < lo:
			return 0, fmt.Errorf("must be more than 0s, got %q", s)
		}
		return d, nil
	})
}

// each calls f for every string of the array at key, with its line, at which
// what f returns is reported.
func (t *table) each(key string, f func(s string, line int) error) {
	n := t.get(key)
	if n == nil {
		return
	}
	if n.kind != unstable.Array {
		t.errorf(key, "must be an array of strings, got %s: put it in [ ]", n.noun())
		return
	}
	for _, item := range n.items {
		if item.kind != unstable.String {
			t.errorAt(item.line, key, "must be an array of strings, got %s in it", item.noun())
			continue
		}
		if err := f(item.text, item.line); err != nil {
			t.errorAt(item.line, key, "%v", err)
		}
	}
}

// strings sets *dst to the array of strings at key.
func (t *table) strings(key string, dst *[]string, ok func(string) error) {
	t.each(key, func(s string, _ int) error {
		if err := ok(s); err != nil {
			return err
		}
		*dst = append(*dst, s)
		return nil
	})
}

// unknown reports the keys of t and of its tables that nobody asked for. root
// is the table whose other parts are searched for the place of a stray key.
func (t *table) unknown(root *table) {
	if t.n != nil && !t.names {
		for key, n := range t.n.sub {
			if slices.Contains(t.known, key) {
				continue
			}
			switch near, home := nearest(key, t.known), root.home(key); {
			case near != "":
				t.errorAt(n.line, key, "unknown key: did you mean %q?", near)
			case home != "":
				t.errorAt(n.line, key, "unknown key: did you mean %s?", home)
			default:
				t.errorAt(n.line, key, "unknown key: remove it, or see the reference for the keys of %s", t.name())
			}
		}
	}
	for _, s := range t.subs {
		s.unknown(root)
	}
}

func (t *table) name() string {
	if t.path == "" {
		return "the file"
	}
	return "[" + t.path + "]"
}

// home returns the path at which key is a known key, "" if nowhere.
func (t *table) home(key string) string {
	if slices.Contains(t.known, key) {
		return dot(t.path, key)
	}
	for _, s := range t.subs {
		if home := s.home(key); home != "" {
			return home
		}
	}
	return ""
}

// nearest returns the word that differs from s by a slip of the fingers, ""
// if none does.
func nearest[T ~string](s string, words []T) T {
	var best T
	limit := 1 + len(s)/5
	for _, w := range words {
		if d := distance(s, string(w)); d <= limit {
			best, limit = w, d-1
		}
	}
	return best
}

// distance is the edit distance of a and b, a swap of neighbours counted as
// one edit.
func distance(a, b string) int {
	// Nothing that long is a slip, and the file may hold anything.
	if len(a) > 64 || len(b) > 64 {
		return math.MaxInt
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			d := min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d = min(d, rows[i-2][j-2]+1)
			}
			rows[i][j] = d
		}
	}
	return rows[len(a)][len(b)]
}

// clean is the check for strings that end up in a container's arguments.
func clean(s string) error {
	if strings.ContainsRune(s, 0) {
		return errors.New("must not hold a NUL character")
	}
	return nil
}
