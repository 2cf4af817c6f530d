package config

import (
	"fmt"
	"os"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// tangled are files whose services are not simply one below the other.
func tangled() map[string]string {
	return map[string]string{
		"empty":            "",
		"apart":            "[service.a]\nx = 1\n[service.b]\nx = 1\n[service.a.scale]\nmin = 1\n[daemon]\ny = 1\n[service.a.health]\nz = 1\n",
		"table twice":      "[service.a]\nx = 1\n[service.b]\n[service.a]\ny = 1\n",
		"part twice":       "[service.a.scale]\n[service.b]\n[service.a.scale]\n",
		"key and table":    "[service.a]\nscale = 1\n[service.b]\n[service.a.scale]\n",
		"dotted and table": "[service.a]\nscale.min = 1\n[service.b]\n[service.a.scale]\n",
		"array and table":  "[[service.a.backend]]\n[service.b]\n[service.a.backend]\n",
		"table and array":  "[service.a.backend]\n[service.b]\n[[service.a.backend]]\n",
		"part of an array": "[[service.a.backend]]\nx = 1\n[service.b]\n[[service.a.backend]]\nx = 1\n[service.a.backend.y]\nz = 1\n",
		"dotted on top":    "service.a.x = 1\n[service.a]\n",
		"inline on top":    "service = { a = {} }\n[service.a]\n",
		"itself":           "[service]\na.x = 1\n[service.a]\n",
		"itself last":      "[service.a]\nx = 1\n[service]\na.y = 1\n",
		"as an array":      "[service.a]\n[[service]]\n",
		"named twice":      "[service.\"a\"]\n[service.b]\n['service'.a]\n",
		"empty name":       "[service.\"\"]\n[daemon]\n[service.\"\"]\n",
		"in a string":      "[service.a]\nx = \"\"\"\n[service.b]\n\"\"\"\n[service.b]\n  [service.b.scale]\n[service.a.scale]\n",
		"no number":        "[service.a]\nx = 1\n[service.b]\ny = 2021-02-30\n",
		"no syntax":        "[service.a]\nx = 1\n[service.b]\ny = \n",
		"daemon twice":     "[daemon]\n[service.a]\n[daemon]\n",
		"no newline":       "[service.b]\n[service.a]\n[service.b.x]\ny = 1",
		"carriage return":  "[service.b]\r\n[service.a]\r\n[service.b.x]\r\ny = 1\r\n",
	}
}

// Checked in pieces, a file is as sound as it is as a whole.
func TestSound(t *testing.T) {
	t.Parallel()
	for name, text := range tangled() {
		same(t, name, []byte(text))
	}
	if got := len(pieces([]byte(tangled()["apart"]))); got != 3 {
		t.Errorf("%d pieces, want one for each of two services and one for the rest", got)
	}
}

func same(t *testing.T, name string, data []byte) {
	t.Helper()
	var discard map[string]any
	if got, want := fmt.Sprint(sound(data)), fmt.Sprint(toml.Unmarshal(data, &discard)); got != want {
		t.Errorf("%s: got %q, want %q", name, got, want)
	}
}

func FuzzSound(f *testing.F) {
	data, err := os.ReadFile("reference.toml")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	for _, text := range tangled() {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) { same(t, "file", data) })
}
