package httpboot

import (
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the boot plane counts. Machines are in the events, not here.
type metrics struct {
	requests *prometheus.CounterVec // by route and code
	bytes    *prometheus.CounterVec // by route
	inFlight prometheus.Gauge
	conns    prometheus.Gauge
	stalled  prometheus.Counter
	panics   prometheus.Counter
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "rackstrap", Subsystem: "http", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts(opts(name, help)) }
	gauge := func(name, help string) prometheus.GaugeOpts { return prometheus.GaugeOpts(opts(name, help)) }
	m := &metrics{
		requests: prometheus.NewCounterVec(counter("requests_total", "Requests answered, by route and status code."), []string{"route", "code"}),
		bytes:    prometheus.NewCounterVec(counter("sent_bytes_total", "Bytes of bodies sent, by route."), []string{"route"}),
		inFlight: prometheus.NewGauge(gauge("in_flight", "Requests being answered.")),
		conns:    prometheus.NewGauge(gauge("connections", "Connections open.")),
		stalled:  prometheus.NewCounter(counter("stalled_total", "Connections closed because the client took no byte for too long.")),
		panics:   prometheus.NewCounter(counter("panics_total", "Requests that ended in a panic of ours.")),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.bytes, m.inFlight, m.conns, m.stalled, m.panics} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// routeLabel is the first element of a route's path: as many values as there are routes.
func routeLabel(route string) string {
	first, _, _ := strings.Cut(strings.TrimPrefix(route, "/"), "/")
	if first == "" {
		return "none"
	}
	return first
}

// statusLabel spares an allocation for the usual codes' texts.
func statusLabel(code int) string { return strconv.Itoa(code) }
