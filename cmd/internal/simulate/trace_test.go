package simulate

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestReadFlows: one flow a line, in any order, with seconds or durations.
func TestReadFlows(t *testing.T) {
	t.Parallel()
	flows, curve, err := Read("x", strings.NewReader("\n# a comment\nStart, Duration, Bytes\n1m,2.5,10\n 0.5 , 1h , 0\n"))
	want := Recorded{{500 * time.Millisecond, time.Hour, true}, {time.Minute, 2500 * time.Millisecond, false}}
	if err != nil || curve != nil || !slices.Equal(*flows, want) {
		t.Fatalf("%v, %v, %v", flows, curve, err)
	}
	if l := flows.Length(); l != time.Hour+500*time.Millisecond {
		t.Errorf("length %s", l)
	}
}

// TestReadLoads: a load holds until the next, the last as long as the one
// before it.
func TestReadLoads(t *testing.T) {
	t.Parallel()
	_, curve, err := Read("x", strings.NewReader("time,rate,duration\n10,1,5\n20s,2,7\n"))
	if err != nil || curve == nil || curve.Length != 30*time.Second {
		t.Fatalf("%+v, %v", curve, err)
	}
	n := map[time.Duration]int{}
	src := curve.Source()
	for f, ok := src.Next(); ok; f, ok = src.Next() {
		n[f.Last]++
		if f.Start < 10*time.Second || f.Start > 30*time.Second || (f.Start <= 20*time.Second) != (f.Last == 5*time.Second) {
			t.Errorf("flow %+v", f)
		}
	}
	if n[5*time.Second] != 10 || n[7*time.Second] != 20 {
		t.Errorf("flows by duration: %v", n)
	}
	if _, one, err := Read("x", strings.NewReader("time,rate,duration\n0,1,5\n")); err != nil || one.Length != time.Minute {
		t.Errorf("%+v, %v", one, err)
	}
}

// TestReadConntrack: a recording of conntrack 1.4.7 of three connections.
func TestReadConntrack(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/conntrack.txt")
	if err != nil {
		t.Fatal(err)
	}
	flows, _, err := Read("x", bytes.NewReader(b))
	want := Recorded{
		{Start: 0, Last: 18538 * time.Microsecond},
		{Start: 20840 * time.Microsecond, Last: 1003756 * time.Microsecond},
		{Start: 1032677 * time.Microsecond, Last: 1015 * time.Microsecond},
	}
	if err != nil || !slices.Equal(*flows, want) {
		t.Fatalf("%v, %v", flows, err)
	}
}

// TestReadConntrackEdges: what began before the recording or ends after it
// lasts as long as that.
func TestReadConntrackEdges(t *testing.T) {
	t.Parallel()
	const a, b = " tcp 6 src=1.1.1.1 dst=2.2.2.2 sport=1 dport=80 src=2.2.2.2", " udp 17 src=1.1.1.1 dst=2.2.2.2 sport=1 dport=53"
	flows, _, err := Read("x", strings.NewReader(strings.Join([]string{
		"[100.0] [UPDATE]" + a + " ESTABLISHED",
		"[101.0] [NEW]" + b + " [UNREPLIED]",
		"[102.0] [UPDATE]" + a + " TIME_WAIT",
		"[103.0] [NEW]" + a, // the port is used again
		"[102.9] [UPDATE]" + a + " CLOSE",
		"[104.0] [DESTROY]" + a,
		"[104.5] [DESTROY] tcp 6 src=3.3.3.3 dst=2.2.2.2 sport=9 dport=80", // its end was before
		"[105.0] [UPDATE]" + b,
	}, "\n")))
	want := Recorded{{Last: 2 * time.Second}, {Start: time.Second, Last: 4 * time.Second}, {Start: 3 * time.Second}}
	if err != nil || !slices.Equal(*flows, want) {
		t.Fatalf("%v, %v", flows, err)
	}
}

// TestReadErrors: one line that names file and line and says what to do.
func TestReadErrors(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{"", "x: is empty"},
		{"# only this\n\n", "x: is empty"},
		{"hello\n", `x:1: "hello" is no trace: begin with`},
		{"time,rate,duration\n", "x: has no line with a load"},
		{"start,duration\n", "x: has no flow"},
		{"start,duration\n1\n", "x:2: has 1 fields, want 2"},
		{"start,duration\n\n1,2,3\n", "x:3: has 3 fields, want 2"},
		{"start,duration\n-1,2\n", `x:2: start "-1": want seconds or a duration`},
		{"start,duration\nNaN,2\n", `x:2: start "NaN": want seconds`},
		{"start,duration\n1e300,2\n", `x:2: start "1e300": want seconds`},
		{"start,duration\n1,-2s\n", `x:2: duration "-2s": want seconds`},
		{"start,duration,bytes\n1,2,-3\n", `x:2: bytes "-3": want a whole number`},
		{"time,rate,duration\n1,2\n", "x:2: has 2 fields, want 3"},
		{"time,rate,duration\nx,2,3\n", `x:2: time "x"`},
		{"time,rate,duration\n1,-2,3\n", `x:2: rate "-2": want new connections per second`},
		{"time,rate,duration\n1,Inf,3\n", `x:2: rate "Inf"`},
		{"time,rate,duration\n1,2,y\n", `x:2: duration "y"`},
		{"time,rate,duration\n2,2,3\n2,2,3\n", "x:3: time 2s is not after that of the line before, 2s: sort the lines"},
		{"[now] [NEW] tcp src=1 dst=2\n", `x:1: "[now]" is no time`},
		{"[1.0] [NEW]\n", "is no event of conntrack: record with"},
		{"[1.0] [NEW] tcp src=1.1.1.1\n", "has no src=, dst= and protocol"},
		{"[1.0] [BORN] tcp src=1 dst=2\n", "want [NEW], [UPDATE] or [DESTROY]"},
		{"[1.0] [NEW] tcp src=1 dst=2\n[1e9] [NEW] tcp src=1 dst=3\n", "x:2: time [1e9] is more than ten years after the first"},
		{"[1.0] [NEW] tcp src=1 dst=2\nhello\n", `x:2: "hello" is no event of conntrack`},
		{"start,duration\n" + strings.Repeat("1", maxLine+1), "x:2: is longer than 64 KiB"},
	} {
		_, _, err := Read("x", strings.NewReader(tt.in))
		var te TraceError
		if !errors.As(err, &te) || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%.60q: got %v, want %q", tt.in, err, tt.want)
		}
	}
	if _, _, err := Read("x", failing{}); err == nil || err.Error() != "x: read: no" {
		t.Errorf("a reader that fails: %v", err)
	}
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("no") }

// FuzzRead: whatever a trace holds, its flows are in order and within bounds.
func FuzzRead(f *testing.F) {
	for _, s := range []string{
		"start,duration\n0.25,1m\n", "start,duration,bytes\n3,1,0\n1,2,3\n", "time,rate,duration\n0,1,2\n1m,20,3s\n",
		"[1.5] [NEW] tcp 6 src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2\n[2] [UPDATE] tcp 6 TIME_WAIT src=1.1.1.1 dst=2.2.2.2 sport=1 dport=2\n",
		"# x\n\n[1] [DESTROY] udp src=a dst=b",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		flows, curve, err := Read("x", bytes.NewReader(b))
		if err != nil {
			var te TraceError
			if !errors.As(err, &te) || strings.Contains(err.Error(), "\n") {
				t.Fatalf("error %q", err)
			}
			return
		}
		var src Source = flows
		if curve != nil {
			if curve.Length <= 0 {
				t.Fatalf("length %s", curve.Length)
			}
			src = curve.Source()
		}
		last := time.Duration(0)
		for range 1000 {
			fl, ok := src.Next()
			if !ok {
				break
			}
			if fl.Start < last || fl.Last < 0 || fl.Last > maxTime || fl.Start > 2*maxTime {
				t.Fatalf("flow %+v after %s", fl, last)
			}
			last = fl.Start
		}
	})
}
