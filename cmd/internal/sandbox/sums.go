package sandbox

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// sums reads the sums of a histogram from Prometheus' text format, by the value
// of its only label.
func sums(r io.Reader, name, label string) (map[string]float64, error) {
	found := map[string]float64{}
	prefix := name + "_sum{" + label + `="`
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		rest, ok := strings.CutPrefix(sc.Text(), prefix)
		if !ok {
			continue
		}
		value, number, ok := strings.Cut(rest, `"} `)
		if !ok {
			return nil, fmt.Errorf("unexpected line %q", sc.Text())
		}
		f, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return nil, fmt.Errorf("unexpected line %q: %w", sc.Text(), err)
		}
		found[value] = f
	}
	return found, sc.Err()
}
