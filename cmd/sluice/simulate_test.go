package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSimulate: a load made up or recorded leads to a table or JSON, the same
// for the same seed; what is wrong with it is one line, exit 2.
func TestSimulate(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	conf := write("sluice.toml", web("max = 3\nflows_per_replica = 10", "", "")+
		"\n[service.far]\nlisten = [\"192.0.2.77:80/tcp\"]\n[[service.far.backend]]\naddress = \"192.0.2.78:80\"\n")
	simulate := func(args ...string) (string, string, int) {
		return command(t, append([]string{"--config", conf, "simulate"}, args...)...)
	}
	flows := write("flows.csv", "start,duration\n0,1\n2,1m\n")
	loads := write("loads.csv", "time,rate,duration\n0,0,0\n1m,5,4s\n2m,0,0\n")
	bad := write("bad.csv", "start,duration\n0,1\nsoon,1\n")

	out, errOut, code := simulate("web", "--shape", "spike", "--rate=20", "--duration", "2s", "--random")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 1+60+1+4 || !strings.HasPrefix(strings.TrimSpace(lines[0]), "TIME") {
		t.Fatalf("exit %d, %d lines: %s%s", code, len(lines), out, errOut)
	}
	if again, _, _ := simulate("--random", "--shape=spike", "--rate=20", "--duration", "2s", "web"); again != out {
		t.Errorf("the same seed led to\n%s\nand then to\n%s", out, again)
	}
	if other, _, _ := simulate("web", "--shape", "spike", "--rate=20", "--duration", "2s", "--random", "--seed", "2"); other == out {
		t.Error("another seed leads to the same")
	}

	for _, tt := range []struct {
		args  []string
		flows int
		most  int
	}{
		{[]string{"--trace", flows}, 2, 1},
		{[]string{"--trace", loads, "--tick", "5s"}, 300, 2},
		{[]string{"--trace", loads, "--random", "--start-time", "1s", "--boot-time", "2s", "--length", "2m"}, 0, 3},
	} {
		out, errOut, code := simulate(append(tt.args, "-o", "json", "web")...)
		var got simulation
		if err := json.Unmarshal([]byte(out), &got); err != nil || code != 0 {
			t.Errorf("%v: exit %d, %v: %s", tt.args, code, err, errOut)
			continue
		}
		s := got.Summary
		if got.Service != "web" || len(got.Ticks) == 0 || s.Served != s.Flows || s.Flows != tt.flows && tt.flows > 0 || s.MostNeeded > tt.most || s.Flows == 0 {
			t.Errorf("%v: %+v", tt.args, s)
		}
	}

	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"web"}, "give a load: either --trace FILE or --shape constant|"},
		{[]string{"web", "--shape", "sine", "--trace", flows}, "give a load: either"},
		{[]string{"none", "--shape", "sine"}, `no service "none"`},
		{[]string{"far", "--shape", "sine"}, "service far has backends that sluice does not start"},
		{[]string{"web", "--shape", "square"}, `no shape "square": one of`},
		{[]string{"web", "--shape", "sine", "--rate", "-1"}, "rate -1: want"},
		{[]string{"web", "--shape", "sine", "--length", "0s"}, "--length 0s: want"},
		{[]string{"web", "--shape", "sine", "--boot-time", "-1s"}, "--boot-time -1s: want"},
		{[]string{"web", "--shape", "sine", "--tick", "1us"}, "want a longer --tick"},
		{[]string{"web", "--trace", bad}, bad + `:3: start "soon": want seconds or a duration`},
		{[]string{"web", "--trace", filepath.Join(dir, "none")}, "no such file"},
		{[]string{"web", "--trace", flows, "--rate", "3"}, "--rate and --duration are of a --shape"},
		{[]string{"web", "--trace", flows, "--random"}, "--random is of rates"},
	} {
		out, errOut, code := simulate(tt.args...)
		if code != 2 || out != "" || strings.Count(errOut, "\n") != 1 || !strings.Contains(errOut, tt.want) {
			t.Errorf("%v: exit %d, stdout %q, stderr %q, want %q", tt.args, code, out, errOut, tt.want)
		}
	}
}
