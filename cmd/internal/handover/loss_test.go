package handover

import (
	"fmt"
	"strings"
	"testing"
)

// A packet is lost between host and backend.
func TestLoss(t *testing.T) {
	t.Parallel()
	for _, hook := range []string{"input", "output"} {
		for _, before := range []int{0, 5000} {
			for nth := range 4 {
				t.Run(fmt.Sprintf("%s/%d bytes/packet %d", hook, before, nth), func(t *testing.T) {
					t.Parallel()
					l := newLab(t)
					port := map[string]string{"input": "dport", "output": "sport"}[hook]
					l.backend.RunInput(t, fmt.Sprintf(`table inet loss {
						chain c { type filter hook %s priority 0; tcp %s 8080 numgen inc mod 100000 == %d counter drop; }
					}`, hook, port, nth), "nft", "-f", "-")
					l.serve(t, greet)
					h := l.hold(t, service4)
					c := dial(t, l.Client, service4)
					text1, text2 := text(before, 3), text(100000, 4)
					if _, err := c.Write(text1); err != nil {
						t.Fatal(err)
					}
					held := h.accept()
					waitBytes(t, held, before)
					l.warm(t, service4)
					if r := l.handover(l.porter, held)[0]; r.Reason != Done || r.Err != nil {
						t.Fatalf("result %+v", r)
					}
					if err := finish(c, c.LocalAddr(), text1, text2); err != nil {
						t.Error(err)
					}
					if out := l.backend.Run(t, "nft", "list", "table", "inet", "loss"); !strings.Contains(out, "packets 1 ") {
						t.Errorf("no packet was lost: %s", out)
					}
				})
			}
		}
	}
}
