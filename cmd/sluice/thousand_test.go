package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"

	"sluice/cmd/internal/admin"
	"sluice/testenv"
)

// TestThousand: a thousand services sleep on one host; fifty that are called at
// once all answer, each from a container of its own, and the others sleep on,
// until fifty more are called. No more than four containers are started at a
// time, as a stranger before Podman sees it.
func TestThousand(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const services, called, rounds, lanes = 1000, 50, 2, 4
	var text strings.Builder
	for i := range services {
		fmt.Fprintf(&text, "[service.s%d]\nlisten = [\"%s:%d/tcp\"]\ncontainer = { image = %q, port = 8080, pull = \"never\", stop_timeout = \"2s\" }\nscale = { idle = \"5m\" }\nstart = { timeout = \"2m\" }\n",
			i, address, 10000+i, testenv.Image)
	}
	h.relay = newPodmanRelay(t, h.pod, h.dir)
	d := h.start(t, h.configure(t, text.String()))
	ctx, cancel := context.WithTimeout(context.Background(), 3*patient)
	defer cancel()
	names := map[string]int{}
	for round := range rounds {
		var wg sync.WaitGroup
		var mu sync.Mutex
		for i := range called {
			service := i*services/called + round
			wg.Go(func() {
				got, err := testenv.Who(ctx, h.Client, fmt.Sprintf("%s:%d", address, 10000+service))
				if err != nil {
					t.Errorf("service %d: %v", service, err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				names[got.Name]++
			})
		}
		wg.Wait()
		want := (round + 1) * called
		if len(names) != want {
			t.Errorf("%d containers have answered, want %d", len(names), want)
		}
		st, err := admin.Dial(d.admin()).Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		awake := 0
		for _, s := range st.Services {
			if s.Phase != "cold" {
				awake++
			}
		}
		if len(st.Services) != services || awake != want {
			t.Errorf("%d of %d services are awake, want %d", awake, len(st.Services), want)
		}
	}
	if most := h.relay.most; most != lanes {
		t.Errorf("%d containers were started at a time, want %d", most, lanes)
	}
}
