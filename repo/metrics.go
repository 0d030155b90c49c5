package repo

import "github.com/prometheus/client_golang/prometheus"

// metrics is what is counted, by repository where that tells something.
type metrics struct {
	requests   *prometheus.CounterVec // by repository and how they were answered
	upstream   *prometheus.CounterVec // requests to upstreams, by repository
	bytes      *prometheus.CounterVec // of bodies from upstreams, by repository
	failures   *prometheus.CounterVec // by repository and kind
	evictions  prometheus.Counter
	cacheBytes prometheus.Gauge
	cacheFiles prometheus.Gauge
}

// How requests were answered.
const (
	answerHit    = "hit"    // from the cache
	answerShared = "shared" // from a download that another request began
	answerMiss   = "miss"   // by a download
	answerStale  = "stale"  // with metadata that could not be revalidated
	answerAbsent = "absent" // there is no such file
	answerFailed = "failed"
)

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "rackstrap", Subsystem: "repo", Name: name, Help: help}
	}
	counter := func(name, help string) prometheus.CounterOpts { return prometheus.CounterOpts(opts(name, help)) }
	gauge := func(name, help string) prometheus.GaugeOpts { return prometheus.GaugeOpts(opts(name, help)) }
	m := &metrics{
		requests:   prometheus.NewCounterVec(counter("requests_total", "Requests for files of package repositories, by repository and how they were answered."), []string{"repo", "answer"}),
		upstream:   prometheus.NewCounterVec(counter("upstream_requests_total", "Requests to upstream servers, by repository."), []string{"repo"}),
		bytes:      prometheus.NewCounterVec(counter("upstream_bytes_total", "Bytes of bodies received from upstream servers, by repository."), []string{"repo"}),
		failures:   prometheus.NewCounterVec(counter("failures_total", "Fetches that failed: upstream unreachable (down), or wrong (lie), or a fault here (local)."), []string{"repo", "kind"}),
		evictions:  prometheus.NewCounter(counter("evictions_total", "Files that were removed from the cache to make room.")),
		cacheBytes: prometheus.NewGauge(gauge("cache_bytes", "Bytes in the cache, with those that are reserved for downloads.")),
		cacheFiles: prometheus.NewGauge(gauge("cache_files", "Files in the cache.")),
	}
	if r == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.upstream, m.bytes, m.failures, m.evictions, m.cacheBytes, m.cacheFiles} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}
