package testenv

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// Element is an element of a set or a map of nftables as nft(8) prints it.
type Element struct {
	Set, Key, Value string // Value is empty for an element of a set
	Timeout         bool   // the kernel drops it after a while
}

func (e Element) String() string {
	text := e.Set + " { " + e.Key
	if e.Value != "" {
		text += " : " + e.Value
	}
	return text + " }"
}

var (
	setBlocks = regexp.MustCompile(`(?s)\t(?:set|map) (\S+) \{\n(.*?)\n\t\}`)
	setFilled = regexp.MustCompile(`(?s)elements = \{(.*)\}`)
	setTimes  = regexp.MustCompile(` (?:timeout|expires) \S+`)
)

// Elements lists the elements of all sets and maps of an inet table, sorted.
func Elements(t TB, ns *NS, table string) []Element {
	t.Helper()
	return parseElements(ns.Run(t, "nft", "list", "table", "inet", table))
}

func parseElements(text string) (list []Element) {
	for _, block := range setBlocks.FindAllStringSubmatch(text, -1) {
		filled := setFilled.FindStringSubmatch(block[2])
		if filled == nil {
			continue
		}
		for text := range strings.SplitSeq(filled[1], ",") {
			e := Element{Set: block[1], Timeout: setTimes.MatchString(text)}
			e.Key, e.Value, _ = strings.Cut(strings.TrimSpace(setTimes.ReplaceAllString(text, "")), " : ")
			list = append(list, e)
		}
	}
	slices.SortFunc(list, func(a, b Element) int { return cmp.Compare(a.String(), b.String()) })
	return list
}
