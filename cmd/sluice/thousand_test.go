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
// once all answer, each from a container of its own, and the others sleep on.
func TestThousand(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	const services, called = 1000, 50
	var text strings.Builder
	for i := range services {
		fmt.Fprintf(&text, "[service.s%d]\nlisten = [\"%s:%d/tcp\"]\ncontainer = { image = %q, port = 8080, pull = \"never\", stop_timeout = \"2s\" }\nscale = { idle = \"5m\" }\nstart = { timeout = \"2m\" }\n",
			i, address, 10000+i, testenv.Image)
	}
	d := h.start(t, h.configure(t, text.String()))
	ctx, cancel := context.WithTimeout(context.Background(), 2*patient)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	names := map[string]int{}
	for i := range called {
		wg.Go(func() {
			got, err := testenv.Who(ctx, h.Client, fmt.Sprintf("%s:%d", address, 10000+i*services/called))
			if err != nil {
				t.Errorf("service %d: %v", i*services/called, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			names[got.Name]++
		})
	}
	wg.Wait()
	if len(names) != called {
		t.Errorf("%d containers have answered, want %d", len(names), called)
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
	if len(st.Services) != services || awake != called {
		t.Errorf("%d of %d services are awake, want %d", awake, len(st.Services), called)
	}
}
