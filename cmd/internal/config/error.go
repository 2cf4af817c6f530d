package config

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
)

// Error is one problem of a configuration.
type Error struct {
	File string
	Line int    // counted from 1; 0 when the file as a whole is meant
	Key  string // as "service.web.scale.max"; "" when no key is meant
	Msg  string // what is wrong, and what to do
}

// Error returns one line: FILE:LINE: KEY: MSG.
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(":" + strconv.Itoa(e.Line))
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	b.WriteString(": " + e.Msg)
	return strings.ReplaceAll(b.String(), "\n", " ")
}

// Errors are all problems of a configuration, in the order of the files and
// their lines. It is what [Load] returns for anything wrong.
type Errors []Error

// Error returns one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find the single problems.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i]
	}
	return errs
}

// report collects problems while files are read. order is the place of each
// file in the order of loading.
type report struct {
	errs  Errors
	order map[string]int
}

func (r *report) add(file string, line int, key, msg string) {
	r.errs = append(r.errs, Error{File: file, Line: line, Key: key, Msg: msg})
}

// err returns what was collected, nil when nothing was.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(r.errs, func(a, b Error) int {
		return cmp.Or(
			cmp.Compare(r.order[a.File], r.order[b.File]),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Key, b.Key),
		)
	})
	return r.errs
}
