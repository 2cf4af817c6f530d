package simulate

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TraceError is a line of a trace that cannot be used.
type TraceError struct {
	File string
	Line int // from 1; 0 when the file as a whole is meant
	Msg  string
}

func (e TraceError) Error() string {
	if e.Line == 0 {
		return e.File + ": " + e.Msg
	}
	return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Msg)
}

// The first lines of the two kinds of CSV.
const (
	loadHeader = "time,rate,duration"
	flowHeader = "start,duration"
	byteHeader = "start,duration,bytes"
)

// maxLine is the length of a line, in bytes, that no trace has.
const maxLine = 64 << 10

// Read reads a trace of one of three kinds, told by its first line:
//
//   - "time,rate,duration": from this time on so many new flows per second, each
//     of which lasts so long, on average: a [Curve];
//   - "start,duration" or "start,duration,bytes": one flow a line: [Recorded];
//   - what `conntrack -E -o timestamp` prints: [Recorded].
//
// Times and durations are seconds or as in Go. Empty lines and those that
// begin with # are passed over. Any error is a [TraceError].
func Read(name string, r io.Reader) (*Recorded, *Curve, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	t := &trace{open: map[string]int{}}
	var take func(string) error
	line := 0
	for sc.Scan() {
		line++
		text := strings.TrimSpace(sc.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		if take == nil {
			if take = t.kind(text); take == nil {
				return nil, nil, TraceError{name, line, fmt.Sprintf("%.40q is no trace: begin with the line %s, %s or %s, or give what 'conntrack -E -o timestamp' prints",
					text, loadHeader, flowHeader, byteHeader)}
			}
			if text[0] != '[' {
				continue
			}
		}
		if err := take(text); err != nil {
			return nil, nil, TraceError{name, line, err.Error()}
		}
	}
	if err := sc.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return nil, nil, TraceError{name, line + 1, fmt.Sprintf("is longer than %d KiB: is this a trace?", maxLine>>10)}
		}
		return nil, nil, TraceError{name, 0, fmt.Sprintf("read: %v", err)}
	}
	if take == nil {
		return nil, nil, TraceError{name, 0, "is empty"}
	}
	return t.result(name)
}

// trace is what has been read so far.
type trace struct {
	loads bool
	steps []step
	flows Recorded

	first *float64       // conntrack's time of its first line
	last  time.Duration  // since then, of the latest line
	open  map[string]int // index of a flow by its addresses; -1: it has ended
}

// kind tells by the first line how the others are read.
func (t *trace) kind(text string) func(string) error {
	switch strings.ReplaceAll(strings.ToLower(text), " ", "") {
	case loadHeader:
		t.loads = true
		return t.load
	case flowHeader:
		return func(s string) error { return t.flow(s, 2) }
	case byteHeader:
		return func(s string) error { return t.flow(s, 3) }
	}
	if text[0] == '[' {
		return t.event
	}
	return nil
}

func (t *trace) result(name string) (*Recorded, *Curve, error) {
	if t.loads {
		c, err := steps(t.steps)
		if err != nil {
			return nil, nil, TraceError{name, 0, err.Error()}
		}
		return nil, c, nil
	}
	if len(t.flows) == 0 {
		return nil, nil, TraceError{name, 0, "has no flow"}
	}
	for _, i := range t.open {
		if i >= 0 {
			t.flows[i].Last = t.last - t.flows[i].Start
		}
	}
	slices.SortStableFunc(t.flows, func(a, b Flow) int { return cmp.Compare(a.Start, b.Start) })
	return &t.flows, nil, nil
}

func (t *trace) load(line string) error {
	f, err := fields(line, 3)
	if err != nil {
		return err
	}
	var s step
	if s.at, err = duration("time", f[0]); err != nil {
		return err
	}
	if s.rate, err = strconv.ParseFloat(f[1], 64); err != nil || !(s.rate >= 0 && s.rate <= maxRate) {
		return fmt.Errorf("rate %q: want new connections per second, from 0 to %v", f[1], maxRate)
	}
	if s.last, err = duration("duration", f[2]); err != nil {
		return err
	}
	if n := len(t.steps); n > 0 && s.at <= t.steps[n-1].at {
		return fmt.Errorf("time %s is not after that of the line before, %s: sort the lines", s.at, t.steps[n-1].at)
	}
	t.steps = append(t.steps, s)
	return nil
}

func (t *trace) flow(line string, n int) error {
	f, err := fields(line, n)
	if err != nil {
		return err
	}
	var fl Flow
	if fl.Start, err = duration("start", f[0]); err != nil {
		return err
	}
	if fl.Last, err = duration("duration", f[1]); err != nil {
		return err
	}
	if n == 3 {
		b, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			return fmt.Errorf("bytes %q: want a whole number", f[2])
		}
		fl.Silent = b == 0
	}
	t.flows = append(t.flows, fl)
	return nil
}

func fields(line string, n int) ([]string, error) {
	f := strings.Split(line, ",")
	if len(f) != n {
		return nil, fmt.Errorf("has %d fields, want %d, with commas between them, as the first line says", len(f), n)
	}
	for i := range f {
		f[i] = strings.TrimSpace(f[i])
	}
	return f, nil
}

// duration reads seconds, or a duration as in Go.
func duration(what, s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if f, ferr := strconv.ParseFloat(s, 64); ferr == nil {
		err = nil
		if d = -1; f >= 0 && f <= maxTime.Seconds() {
			d = time.Duration(math.Round(f * float64(time.Second)))
		}
	}
	if err != nil || d < 0 || d > maxTime {
		return 0, fmt.Errorf("%s %q: want seconds or a duration, as 1.5 or 1m30s, at most %s", what, s, maxTime)
	}
	return d, nil
}

// event takes a line of conntrack. A flow begins with [NEW], or with the
// recording if that came later, and ends when its connection has: an entry of
// TCP stays for two minutes more before [DESTROY]. What has not ended ends with
// the recording.
func (t *trace) event(line string) error {
	words := strings.Fields(line)
	if len(words) < 3 || words[0][0] != '[' {
		return fmt.Errorf("%.40q is no event of conntrack: record with 'conntrack -E -o timestamp'", line)
	}
	at, err := strconv.ParseFloat(strings.Trim(words[0], "[]"), 64)
	if err != nil || !(at >= 0 && at <= 1e12) {
		return fmt.Errorf("%.40q is no time: record with 'conntrack -E -o timestamp'", words[0])
	}
	if t.first == nil {
		t.first = &at
	}
	if at-*t.first > maxTime.Seconds() {
		return fmt.Errorf("time %s is more than ten years after the first", words[0])
	}
	// Events of several processors may come a little out of order.
	now := max(time.Duration(math.Round((at-*t.first)*1e6))*time.Microsecond, t.last)
	t.last = now
	key, finished := connection(words[2:])
	if key == "" {
		return fmt.Errorf("%.60q has no src=, dst= and protocol: record with 'conntrack -E -o timestamp'", line)
	}
	i, known := t.open[key]
	end := func() {
		if known && i >= 0 {
			t.flows[i].Last = now - t.flows[i].Start
		}
		t.open[key] = -1
	}
	begin := func(at time.Duration) {
		t.open[key] = len(t.flows)
		t.flows = append(t.flows, Flow{Start: at})
	}
	switch words[1] {
	case "[NEW]":
		end()
		begin(now)
	case "[UPDATE]":
		switch {
		case finished:
			end()
		case !known:
			begin(0)
		}
	case "[DESTROY]":
		end()
		delete(t.open, key)
	default:
		return fmt.Errorf("%.20q is no event of conntrack: want [NEW], [UPDATE] or [DESTROY]", words[1])
	}
	return nil
}

// connection finds what tells a connection from all others: protocol, and the
// addresses and ports of its original direction.
func connection(words []string) (key string, finished bool) {
	var proto string
	var tuple [4]string
	for _, w := range words {
		name, value, ok := strings.Cut(w, "=")
		if !ok {
			switch w {
			case "tcp", "udp", "sctp", "dccp", "udplite", "icmp", "icmpv6", "gre", "unknown":
				proto = w
			case "TIME_WAIT", "CLOSE":
				finished = true
			}
			continue
		}
		if i := slices.Index([]string{"src", "dst", "sport", "dport"}, name); i >= 0 && tuple[i] == "" {
			tuple[i] = value
		}
	}
	if proto == "" || tuple[0] == "" || tuple[1] == "" {
		return "", false
	}
	return proto + " " + strings.Join(tuple[:], " "), finished
}
