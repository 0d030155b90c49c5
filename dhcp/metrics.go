package dhcp

import (
	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/prometheus/client_golang/prometheus"

	"rackstrap/lifecycle"
)

// metrics counts what normally happens; what an operator has to know is an event or a log line.
type metrics struct {
	received  *prometheus.CounterVec
	sent      *prometheus.CounterVec
	dropped   *prometheus.CounterVec
	deviated  *prometheus.CounterVec
	failed    prometheus.Counter
	conflicts prometheus.Counter
	foreign   prometheus.Gauge
	handling  prometheus.Histogram

	// by message type, so that the packet loop does not look labels up
	receivedOf [16]prometheus.Counter
	sentOf     [16]prometheus.Counter
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.CounterOpts {
		return prometheus.CounterOpts{Namespace: "rackstrap", Subsystem: "dhcp", Name: name, Help: help}
	}
	m := &metrics{
		received: prometheus.NewCounterVec(counter("received_total", "DHCP messages received, by type."), []string{"type"}),
		sent:     prometheus.NewCounterVec(counter("sent_total", "DHCP replies sent, by type."), []string{"type"}),
		dropped:  prometheus.NewCounterVec(counter("dropped_total", "DHCP messages that got no reply, by reason."), []string{"reason"}),
		deviated: prometheus.NewCounterVec(counter("deviations_total",
			"DHCP messages that deviate from the RFCs and are served all the same, by deviation."), []string{"deviation"}),
		failed:    prometheus.NewCounter(counter("send_errors_total", "DHCP replies that could not be sent.")),
		conflicts: prometheus.NewCounter(counter("conflicts_total", "Pool addresses found in use by somebody else.")),
		foreign: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: "rackstrap", Subsystem: "dhcp", Name: "foreign_servers",
			Help: "Other DHCP servers that answered the last time they were looked for."}),
		handling: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "rackstrap", Subsystem: "dhcp", Name: "handling_seconds",
			Help:    "Time from a message's arrival to its reply; conflict checks and disk writes included.",
			Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .05, .1, .5, 1, 2}}),
	}
	for i := range m.receivedOf {
		name := dhcpv4.MessageType(i).String()
		if i == 0 || dhcpv4.MessageType(i) > dhcpv4.MessageTypeInform {
			name = "other"
		}
		m.receivedOf[i] = m.received.WithLabelValues(name)
		m.sentOf[i] = m.sent.WithLabelValues(name)
	}
	if r != nil {
		r.MustRegister(m.received, m.sent, m.dropped, m.deviated, m.failed, m.conflicts, m.foreign, m.handling)
	}
	return m
}

func counterOf(list *[16]prometheus.Counter, kind dhcpv4.MessageType) prometheus.Counter {
	if int(kind) >= len(list) {
		kind = 0
	}
	return list[kind]
}

// poolGauge works the use of the pools out when it is asked for.
type poolGauge struct {
	s    *Server
	desc *prometheus.Desc
}

func newPoolGauge(s *Server) *poolGauge {
	return &poolGauge{s, prometheus.NewDesc("rackstrap_dhcp_pool_addresses",
		"Addresses of the pools, by network and state (bound, quarantined, free).", []string{"network", "state"}, nil)}
}

func (g *poolGauge) Describe(ch chan<- *prometheus.Desc) { ch <- g.desc }

func (g *poolGauge) Collect(ch chan<- prometheus.Metric) {
	v, now := g.s.view(), g.s.now()
	leases := g.s.rack.Leases()
	for _, sub := range v.subnets {
		if sub.pool == nil {
			continue
		}
		used := map[lifecycle.LeaseState]int{}
		for _, l := range leases {
			if sub.pool.contains(l.IP) && l.Expires.After(now) {
				used[l.State]++
			}
		}
		free := int(sub.pool.size) - used[lifecycle.LeaseBound] - used[lifecycle.LeaseQuarantined]
		network := sub.prefix.String()
		for state, n := range map[string]int{
			"bound": used[lifecycle.LeaseBound], "quarantined": used[lifecycle.LeaseQuarantined], "free": free,
		} {
			ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, float64(n), network, state)
		}
	}
}
