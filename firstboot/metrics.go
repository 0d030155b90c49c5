package firstboot

import (
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	works    *prometheus.CounterVec
	polls    prometheus.Gauge
}

func newMetrics(to prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rackstrap_node_requests_total",
			Help: "Calls of the node plane, by call and status."}, []string{"call", "status"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "rackstrap_node_request_seconds",
			Help: "How long calls took, those that wait for work not included.", Buckets: prometheus.ExponentialBuckets(0.001, 4, 8)}, []string{"call"}),
		works: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "rackstrap_node_works_total",
			Help: "Works handed out, by action."}, []string{"action"}),
		polls: prometheus.NewGauge(prometheus.GaugeOpts{Name: "rackstrap_node_waiting",
			Help: "Agents that wait for work."}),
	}
	if to == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.requests, m.seconds, m.works, m.polls} {
		errs = append(errs, to.Register(c))
	}
	return m, errors.Join(errs...)
}

// done counts a call; path is its route, so that no peer can make up labels.
func (m *metrics) done(path string, status int, took time.Duration) {
	call := strings.Trim(strings.ReplaceAll(strings.TrimPrefix(path, base), ":", ""), "/")
	if call == "" {
		call = "other"
	}
	m.requests.WithLabelValues(call, strconv.Itoa(status)).Inc()
	if call != "work" {
		m.seconds.WithLabelValues(call).Observe(took.Seconds())
	}
}
