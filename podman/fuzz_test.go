package podman

import (
	"bytes"
	"testing"
	"time"
)

// FuzzEvents: whatever the stream of events holds, it has an end, and what is
// told of it are events of replicas, later than asked for.
func FuzzEvents(f *testing.F) {
	for _, s := range []string{
		`{"Type":"container","Action":"died","Actor":{"ID":"1f","Attributes":{"name":"sluice-web-1","sluice.service":"web","sluice.index":"1","containerExitCode":"137"}},"time":1700000000,"timeNano":1700000000123456789}`,
		`{"Type":"container","Action":"remove","Actor":{"Attributes":{"sluice.service":"web"}},"time":1700000000}{"Type":"image","Action":"pull"}`,
		`{"Type":"container","Action":"start","Actor":{"Attributes":null},"timeNano":-1}`,
		`{"cause":"no such","message":"x","response":500}`, `[]`, `{"time":1e400}`, "", "{",
	} {
		f.Add([]byte(s))
	}
	since := time.Unix(1e9, 0)
	f.Fuzz(func(t *testing.T, b []byte) {
		err := decodeEvents(bytes.NewReader(b), since, func(e Event) {
			if e.Action == 0 || e.Service == "" || !e.Time.After(since) {
				t.Fatalf("%q: %+v", b, e)
			}
		})
		if err == nil {
			t.Fatalf("%q: no end", b)
		}
	})
}
