package metrics

import (
	"bufio"
	"strconv"

	"sluice/cmd/internal/control"
	"sluice/policy"
)

// kind is a type of Prometheus.
type kind string

const (
	gauge   kind = "gauge"
	counter kind = "counter"
)

// family is a metric with all its values, as it is told of each service.
type family struct {
	name string
	kind kind
	help string
	tell func(*line, *control.ServiceStatus)
}

func families() []family {
	var phases, states []string
	for _, p := range policy.Phases() {
		phases = append(phases, p.String())
	}
	for _, s := range policy.States() {
		states = append(states, s.String())
	}
	of := func(f func(*control.ServiceStatus) uint64) func(*line, *control.ServiceStatus) {
		return func(l *line, s *control.ServiceStatus) { l.value(f(s), "service", s.Name) }
	}
	both := func(f func(*control.ServiceStatus) (in, out uint64)) func(*line, *control.ServiceStatus) {
		return func(l *line, s *control.ServiceStatus) {
			in, out := f(s)
			l.value(in, "direction", "in", "service", s.Name)
			l.value(out, "direction", "out", "service", s.Name)
		}
	}
	backends := func(f func(*line, *control.ServiceStatus, *control.BackendStatus)) func(*line, *control.ServiceStatus) {
		return func(l *line, s *control.ServiceStatus) {
			for i := range s.Backends {
				f(l, s, &s.Backends[i])
			}
		}
	}
	type status = control.ServiceStatus
	type backend = control.BackendStatus
	return []family{
		{"sluice_service_phase", gauge, "1 for the phase that the service is in, 0 for the others.", func(l *line, s *status) {
			for _, p := range phases {
				l.value(one(s.Phase == p), "phase", p, "service", s.Name)
			}
		}},
		{"sluice_backends", gauge, "Backends of the service by state.", func(l *line, s *status) {
			for _, state := range states {
				n := uint64(0)
				for i := range s.Backends {
					n += one(s.Backends[i].State == state)
				}
				l.value(n, "service", s.Name, "state", state)
			}
		}},
		{"sluice_flows", gauge, "Live flows of the service, relayed ones too.", of(func(s *status) uint64 { return count(s.Flows) })},
		{"sluice_flows_total", counter, "Flows given to the service since the daemon started.", of(func(s *status) uint64 { return s.FlowsTotal })},
		{"sluice_held", gauge, "Accepted connections that wait for a backend.", of(func(s *status) uint64 { return count(s.Held) })},
		{"sluice_relays_active", gauge, "Connections that the daemon relays.", of(func(s *status) uint64 { return count(s.Relaying) })},
		{"sluice_limited_total", counter, "Packets that would have begun a flow, dropped for the service's limits.", of(func(s *status) uint64 { return s.Limited })},
		{"sluice_bytes_total", counter, "Bytes of IP packets carried by the kernel, from clients (in) and to them (out).",
			both(func(s *status) (in, out uint64) { return s.BytesIn, s.BytesOut })},
		{"sluice_packets_total", counter, "IP packets carried by the kernel, from clients (in) and to them (out).",
			both(func(s *status) (in, out uint64) { return s.PacketsIn, s.PacketsOut })},
		{"sluice_relayed_bytes_total", counter, "Payload of relayed connections that have ended, from clients (in) and to them (out).",
			both(func(s *status) (in, out uint64) { return s.RelayedIn, s.RelayedOut })},
		{"sluice_backend_flows", gauge, "Live flows of the backend, relayed ones too.", backends(func(l *line, s *status, b *backend) {
			l.value(count(b.Flows), "backend", b.Name, "service", s.Name)
		})},
		{"sluice_backend_flows_total", counter, "Flows given to the backend since the daemon started.", backends(func(l *line, s *status, b *backend) {
			l.value(b.FlowsTotal, "backend", b.Name, "service", s.Name)
		})},
		{"sluice_backend_bytes_total", counter, "Bytes of IP packets between clients and the backend.", backends(func(l *line, s *status, b *backend) {
			l.value(b.BytesIn, "backend", b.Name, "direction", "in", "service", s.Name)
			l.value(b.BytesOut, "backend", b.Name, "direction", "out", "service", s.Name)
		})},
		{"sluice_backend_packets_total", counter, "IP packets between clients and the backend.", backends(func(l *line, s *status, b *backend) {
			l.value(b.PacketsIn, "backend", b.Name, "direction", "in", "service", s.Name)
			l.value(b.PacketsOut, "backend", b.Name, "direction", "out", "service", s.Name)
		})},
	}
}

func count(n int) uint64 { return uint64(max(n, 0)) } //nolint:gosec // not negative

func one(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}

func (f *family) write(w *bufio.Writer, services []control.ServiceStatus) {
	l := line{w: w, name: f.name}
	l.buf = append(l.buf, "# HELP "+f.name+" "+f.help+"\n# TYPE "+f.name+" "+string(f.kind)+"\n"...)
	_, _ = w.Write(l.buf)
	for i := range services {
		f.tell(&l, &services[i])
	}
}

// line writes the values of one family.
type line struct {
	w    *bufio.Writer // keeps its error
	name string
	buf  []byte
}

// value writes a value with labels, each a name and a value.
func (l *line) value(v uint64, labels ...string) {
	b := append(append(l.buf[:0], l.name...), '{')
	for i := 0; i < len(labels); i += 2 {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(append(b, labels[i]...), '=', '"')
		b = escape(b, labels[i+1]) //nolint:gosec // labels come in pairs
		b = append(b, '"')
	}
	b = append(strconv.AppendUint(append(b, "} "...), v, 10), '\n')
	_, _ = l.w.Write(b)
	l.buf = b
}

// escape appends a label's value as the text format wants it.
func escape(b []byte, s string) []byte {
	for i := range len(s) {
		switch c := s[i]; c {
		case '\\', '"':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		default:
			b = append(b, c)
		}
	}
	return b
}
