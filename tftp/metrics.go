package tftp

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics count what the timeline is too small for.
type metrics struct {
	transfers *prometheus.CounterVec
	ignored   prometheus.Counter
	bytes     prometheus.Counter
	active    prometheus.Gauge
	duration  prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		transfers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "rackstrap_tftp_transfers_total", Help: "Requests over TFTP, by how they ended."}, []string{"result"}),
		ignored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackstrap_tftp_ignored_total", Help: "Packets to the TFTP port without an answer: repeated requests, ERROR packets."}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "rackstrap_tftp_sent_bytes_total", Help: "Bytes of files sent over TFTP, each once."}),
		active: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "rackstrap_tftp_active_transfers", Help: "Transfers over TFTP that run."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "rackstrap_tftp_transfer_seconds", Help: "Duration of the transfers over TFTP that came through.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 9)}), // 1 ms to 65 s
	}
	for end := range endings {
		m.transfers.WithLabelValues(string(end)) // so that each is there, with 0
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.transfers, m.ignored, m.bytes, m.active, m.duration} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) count(r result, took time.Duration) {
	m.transfers.WithLabelValues(string(r.ending)).Inc()
	m.bytes.Add(float64(r.bytes))
	if r.ending == endDone {
		m.duration.Observe(took.Seconds())
	}
}
