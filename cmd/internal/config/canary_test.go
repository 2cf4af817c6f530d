package config

import (
	"reflect"
	"testing"
)

// TestCanary: a canary takes over what its container section does not say, and
// what that section says has a name that its layout does not change.
func TestCanary(t *testing.T) {
	t.Parallel()
	base := web + `command = ["serve"]
env = { A = "1", B = "2" }
volumes = ["/srv:/data"]
stop_timeout = "3s"
memory = "64m"
`
	load := func(text string) (stable Container, canary Canary) {
		t.Helper()
		c := mustLoad(t, base+text)
		return *c.Services[0].Container, *c.Services[0].Canary
	}
	stable, one := load("[service.web.canary.container]\nimage = \"localhost/web:2\"\n")
	want := stable
	want.Image = "localhost/web:2"
	if one.Percent != 10 || !reflect.DeepEqual(one.Container, want) {
		t.Errorf("got %+v, want %+v", one, want)
	}
	_, two := load("[service.web.canary]\npercent = 50\ncontainer.image = \"localhost/web:2\" # the same\n")
	if two.Percent != 50 || two.Digest != one.Digest {
		t.Errorf("another percent or layout has changed the digest: %+v, %+v", one, two)
	}
	_, three := load("[service.web.canary.container]\nimage = \"localhost/web:2\"\nenv = { C = \"3\" }\ncommand = []\nvolumes = [\"/srv:/data:ro\"]\n")
	want.Env, want.Command, want.Volumes = map[string]string{"C": "3"}, nil, []Volume{{"/srv", "/data", []string{"ro"}}}
	if !reflect.DeepEqual(three.Container, want) {
		t.Errorf("got %+v, want %+v", three.Container, want)
	}
	if three.Digest == one.Digest {
		t.Error("other keys have not changed the digest")
	}
	if !reflect.DeepEqual(stable.Env, map[string]string{"A": "1", "B": "2"}) || len(stable.Command) != 1 || len(stable.Volumes[0].Options) != 0 {
		t.Errorf("the canary has changed the service's container: %+v", stable)
	}
}
