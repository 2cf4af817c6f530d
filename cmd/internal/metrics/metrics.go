// Package metrics exports what the daemon knows to Prometheus. Names are part
// of the contract: they are added to and never changed.
package metrics

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"sluice/cmd/internal/control"
	"sluice/policy"
)

// Recorder holds the metrics that are counted as things happen.
type Recorder struct {
	coldStart   *prometheus.HistogramVec
	drain       prometheus.Histogram
	cut         prometheus.Counter
	transaction prometheus.Histogram
	decisions   *prometheus.CounterVec
	handovers   *prometheus.CounterVec
	reloaded    prometheus.Gauge
	registry    *prometheus.Registry
}

// New returns a recorder that exports to a registry of its own.
func New(version, goVersion string) *Recorder {
	r := &Recorder{
		coldStart: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sluice_cold_start_seconds", Help: "Time of each step from the first connection to a backend.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 18),
		}, []string{"step"}),
		drain: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_drain_seconds", Help: "Time from the decision to drain a backend to its end.",
			Buckets: prometheus.ExponentialBuckets(0.01, 2, 16),
		}),
		cut: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sluice_drain_cut_total", Help: "Flows that were cut because a drain deadline had passed.",
		}),
		transaction: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sluice_nft_transaction_seconds", Help: "Time of one transaction on the kernel's table.",
			Buckets: prometheus.ExponentialBuckets(0.00005, 2, 16),
		}),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_scale_decisions_total", Help: "Changes of the number of replicas, by reason.",
		}, []string{"reason"}),
		handovers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sluice_handovers_total", Help: "Held connections given to a backend, by how.",
		}, []string{"result"}),
		reloaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sluice_config_last_reload_successful", Help: "1 if the configuration files are in force, 0 if the last reload has failed.",
		}),
		registry: prometheus.NewRegistry(),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "sluice_build_info", Help: "Always 1; the labels tell what runs.",
		ConstLabels: prometheus.Labels{"version": version, "goversion": goVersion},
	})
	build.Set(1)
	r.reloaded.Set(1)
	r.registry.MustRegister(r.coldStart, r.drain, r.cut, r.transaction, r.decisions, r.handovers, r.reloaded, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Registry is where all metrics are gathered from.
func (r *Recorder) Registry() *prometheus.Registry { return r.registry }

// ColdStart records one step of a cold start.
func (r *Recorder) ColdStart(step string, took time.Duration) {
	r.coldStart.WithLabelValues(step).Observe(took.Seconds())
}

// Drained records the end of a drain.
func (r *Recorder) Drained(took time.Duration, cut int) {
	r.drain.Observe(took.Seconds())
	r.cut.Add(float64(cut))
}

// Transaction records one transaction on the table.
func (r *Recorder) Transaction(took time.Duration) { r.transaction.Observe(took.Seconds()) }

// Decision records a change of the number of replicas.
func (r *Recorder) Decision(reason string) { r.decisions.WithLabelValues(reason).Inc() }

// Handover records how a held connection was given to a backend.
func (r *Recorder) Handover(result string) { r.handovers.WithLabelValues(result).Inc() }

// Reloaded records whether the configuration files are in force.
func (r *Recorder) Reloaded(ok bool) {
	r.reloaded.Set(0)
	if ok {
		r.reloaded.Set(1)
	}
}

// Source tells the state of all services.
type Source interface {
	Status(ctx context.Context, services ...string) (control.Status, error)
}

// Flows counts the flows of the kernel.
type Flows interface {
	// Refresh brings the counts up to date by a dump, if they are older.
	Refresh(ctx context.Context, age time.Duration) error
	Resyncs() uint64 // how often events were lost
}

const (
	gatherTimeout  = 5 * time.Second
	refreshTimeout = time.Second
	freshness      = time.Second
)

// Watch exports the state of all services, read anew for each scrape, and the
// number of resyncs. Bytes and packets of open flows are known by dumps alone, so
// that a scrape makes one, unless there was one a moment ago.
func (r *Recorder) Watch(src Source, flows Flows) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"service"}, labels...), nil)
	}
	r.registry.MustRegister(&state{
		src: src, counts: flows,
		phase:      desc("sluice_service_phase", "1 for the phase that the service is in, 0 for the others.", "phase"),
		backends:   desc("sluice_backends", "Backends of the service by state.", "state"),
		flows:      desc("sluice_flows", "Live flows of the service, relayed ones too."),
		flowsTotal: desc("sluice_flows_total", "Flows given to the service since the daemon started."),
		held:       desc("sluice_held", "Accepted connections that wait for a backend."),
		relays:     desc("sluice_relays_active", "Connections that the daemon relays."),
		limited:    desc("sluice_limited_total", "Packets that would have begun a flow, dropped for the service's limits."),
		bytes:      desc("sluice_bytes_total", "Bytes of IP packets carried by the kernel, from clients (in) and to them (out).", "direction"),
		packets:    desc("sluice_packets_total", "IP packets carried by the kernel, from clients (in) and to them (out).", "direction"),
		relayed:    desc("sluice_relayed_bytes_total", "Payload of relayed connections that have ended, from clients (in) and to them (out).", "direction"),

		backendFlows:      desc("sluice_backend_flows", "Live flows of the backend, relayed ones too.", "backend"),
		backendFlowsTotal: desc("sluice_backend_flows_total", "Flows given to the backend since the daemon started.", "backend"),
		backendBytes:      desc("sluice_backend_bytes_total", "Bytes of IP packets between clients and the backend.", "backend", "direction"),
		backendPackets:    desc("sluice_backend_packets_total", "IP packets between clients and the backend.", "backend", "direction"),

		resync: prometheus.NewDesc("sluice_conntrack_resyncs_total",
			"Times the flows had to be counted anew because events were lost.", nil, nil),
	})
}

type state struct {
	src    Source
	counts Flows

	phase, backends, flows, flowsTotal, held, relays, limited, resync *prometheus.Desc

	bytes, packets, relayed                                       *prometheus.Desc
	backendFlows, backendFlowsTotal, backendBytes, backendPackets *prometheus.Desc
}

// Describe implements prometheus.Collector.
func (s *state) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{s.phase, s.backends, s.flows, s.flowsTotal, s.held, s.relays, s.limited, s.resync,
		s.bytes, s.packets, s.relayed, s.backendFlows, s.backendFlowsTotal, s.backendBytes, s.backendPackets} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *state) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), gatherTimeout)
	defer cancel()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	both := func(d *prometheus.Desc, in, out uint64, labels ...string) {
		counter(d, in, append(labels, "in")...)
		counter(d, out, append(labels, "out")...)
	}
	counter(s.resync, s.counts.Resyncs())
	// If it fails the counts are those of the last dump.
	limit, done := context.WithTimeout(ctx, refreshTimeout)
	_ = s.counts.Refresh(limit, freshness)
	done()
	st, err := s.src.Status(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(s.phase, err)
		return
	}
	for _, sv := range st.Services {
		for _, p := range policy.Phases() {
			v := 0.0
			if sv.Phase == p.String() {
				v = 1
			}
			gauge(s.phase, v, sv.Name, p.String())
		}
		count := map[string]int{}
		for _, b := range sv.Backends {
			count[b.State]++
		}
		for _, bs := range policy.States() {
			gauge(s.backends, float64(count[bs.String()]), sv.Name, bs.String())
		}
		gauge(s.flows, float64(sv.Flows), sv.Name)
		gauge(s.held, float64(sv.Held), sv.Name)
		gauge(s.relays, float64(sv.Relaying), sv.Name)
		counter(s.limited, sv.Limited, sv.Name)
		counter(s.flowsTotal, sv.FlowsTotal, sv.Name)
		both(s.bytes, sv.BytesIn, sv.BytesOut, sv.Name)
		both(s.packets, sv.PacketsIn, sv.PacketsOut, sv.Name)
		both(s.relayed, sv.RelayedIn, sv.RelayedOut, sv.Name)
		for _, b := range sv.Backends {
			gauge(s.backendFlows, float64(b.Flows), sv.Name, b.Name)
			counter(s.backendFlowsTotal, b.FlowsTotal, sv.Name, b.Name)
			both(s.backendBytes, b.BytesIn, b.BytesOut, sv.Name, b.Name)
			both(s.backendPackets, b.PacketsIn, b.PacketsOut, sv.Name, b.Name)
		}
	}
}
