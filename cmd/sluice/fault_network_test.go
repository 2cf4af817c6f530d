package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"sluice/cmd/internal/control"
	"sluice/testenv"
)

func networkFaults() []fault {
	return []fault{
		{name: "bridge deleted", promise: inGap, strike: func(t *testing.T, s *stage, b *blow) {
			bridge := strings.TrimSpace(s.pod.CLI(t, "network", "inspect", "--format", "{{.NetworkInterface}}", stageNet))
			s.hitEveryone(t, func() { s.Host.IP(t, "link del "+bridge) })
		}},
		{name: "network removed, back after 1 s", promise: inGap, strike: func(t *testing.T, s *stage, b *blow) {
			s.hitEveryone(t, func() {
				testenv.Eventually(t, patient, func() (bool, string) { // the daemon may just remove one of the containers
					out, err := s.pod.Command(context.Background(), "podman", "network", "rm", "--force", "--time", "0", stageNet).CombinedOutput()
					return err == nil, string(out)
				})
			})
			s.last(time.Second)
			s.addNetwork(t)
			for _, service := range stagePhases() { // for what has failed is tried again ever more rarely
				s.until(t, service, "it awake", func(st control.ServiceStatus) bool { return st.Phase == "warm" && st.Ready > 0 })
			}
		}},
	}
}

// hitEveryone does something to all containers of the network and waits until
// none of them is sent anything any more.
func (s *stage) hitEveryone(t *testing.T, do func()) {
	t.Helper()
	hit := map[string][]string{} // by service
	for _, service := range stagePhases() {
		for _, r := range s.status(t, service).Backends {
			if s.runs(r.Name) && s.onNetwork(r) {
				hit[service] = append(hit[service], r.Address)
			}
		}
	}
	do()
	for service, list := range hit {
		s.until(t, service, "the containers that were hit out", func(st control.ServiceStatus) bool {
			return !slices.ContainsFunc(st.Backends, func(r control.BackendStatus) bool {
				return slices.Contains(list, r.Address) && (r.State == "ready" || r.State == "draining")
			})
		})
	}
}
