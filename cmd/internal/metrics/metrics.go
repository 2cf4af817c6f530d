// Package metrics exports what the daemon knows to Prometheus. Names are part
// of the contract: they are added to and never changed.
//
// What is counted as things happen is a matter of client_golang. What is told of
// each service and backend is written straight from their state: ten thousand
// services have some 350,000 values, for which a registry would need 250 MiB and
// seconds at each scrape.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
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
