package control

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"sluice/cmd/internal/config"
	"sluice/nft"
	"sluice/policy"
	"sluice/testenv"
)

var (
	header = regexp.MustCompile(`^\[(service\.web[a-z.]*)\]`)
	number = regexp.MustCompile(`^([a-z_]+) *= *("?)[0-9.]+[a-z]*"?( |$)`)
	atMost = regexp.MustCompile(`^must be at most ([0-9a-z.+]+)`)
)

// largest returns a service whose every number and duration is as large as the
// configuration lets it be, by asking for more and heeding what it says.
func largest(t *testing.T) config.Service {
	t.Helper()
	reference, err := os.ReadFile(filepath.Join("..", "config", "reference.toml"))
	if err != nil {
		t.Fatal(err)
	}
	values, table := map[string]string{}, ""
	for line := range strings.SplitSeq(string(reference), "\n") {
		if m := header.FindStringSubmatch(line); m != nil {
			table = m[1]
		} else if m := number.FindStringSubmatch(line); m != nil && table != "" {
			values[table+"."+m[1]] = fmt.Sprint(math.MaxInt64)
			if m[2] != "" {
				values[table+"."+m[1]] = `"2000000h"`
			}
		}
	}
	for _, key := range []string{"affinity", "max_flows", "scale.max", "health.interval", "container.cpus"} {
		if values["service.web."+key] == "" {
			t.Fatalf("the reference has no number %s", key)
		}
	}
	path := filepath.Join(t.TempDir(), "sluice.toml")
	for range 5 {
		text := "service.web.listen = [\"192.0.2.10:80/tcp\"]\nservice.web.scale.sleep = \"pause\"\n" +
			"service.web.container.image = \"localhost/web:1\"\nservice.web.backend = [{ address = \"10.0.0.2:80\" }]\n"
		for _, key := range slices.Sorted(maps.Keys(values)) {
			text += key + " = " + values[key] + "\n"
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		cfg, err := config.Load(path)
		if err == nil {
			return cfg.Services[0]
		}
		var all config.Errors
		if !errors.As(err, &all) {
			t.Fatal(err)
		}
		for _, e := range all {
			m := atMost.FindStringSubmatch(e.Msg)
			if m == nil {
				t.Fatal(e)
			}
			values[e.Key] = m[1]
			if values[e.Key][len(m[1])-1] == 's' {
				values[e.Key] = `"` + m[1] + `"`
			}
		}
	}
	t.Fatal("the bounds contradict each other")
	return config.Service{}
}

// TestBounds: what the configuration accepts, the table accepts too.
func TestBounds(t *testing.T) {
	t.Parallel()
	cfg := largest(t)
	f, err := testenv.NewNS(t, "host").Open()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	table, err := nft.Open(nft.Options{NetNS: int(f.Fd())})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := table.Close(); err != nil {
			t.Error(err)
		}
	}()
	s := newService(cfg, kinds{}, zerolog.Nop())
	for i, weight := range []int{math.MaxUint16, 1} {
		s.replicas[i] = &replica{index: i, addr4: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), 80)}
		s.shares = append(s.shares, policy.Share{Index: i, Weight: weight})
	}
	ep := endpoints(cfg.Listen[0])[0]
	for _, slots := range [][]netip.AddrPort{nil, s.slots(ep)} {
		want := s.kernel(ep, slots)
		if want.Affinity == 0 || want.Limits.MaxFlows == 0 || want.Limits.NewPerSecondPerClient == 0 {
			t.Fatalf("not at its bounds: %+v", want)
		}
		if err := table.Apply(map[nft.Endpoint]*nft.Service{ep: want}); err != nil {
			t.Error(err)
		}
	}
}
