package syslog

import "github.com/prometheus/client_golang/prometheus"

// metrics is what the receiver counts. Machines are in their files, not here.
type metrics struct {
	lines       prometheus.Counter
	dropped     *prometheus.CounterVec // by reason
	refused     *prometheus.CounterVec // by reason
	connections prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "rackstrap", Subsystem: "syslog", Name: name, Help: help}
	}
	m := &metrics{
		lines: prometheus.NewCounter(prometheus.CounterOpts(opts("lines_total", "Lines that installers sent."))),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts(opts("dropped_total",
			"Lines that were dropped (rate), cut (too-long), or broke their connection (framing).")), []string{"reason"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts(opts("refused_total",
			"Connections that were refused, by reason: stranger, not-installing, too-many.")), []string{"reason"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts(opts("connections", "Connections of installers."))),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.lines, m.dropped, m.refused, m.connections} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
