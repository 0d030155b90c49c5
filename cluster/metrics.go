package cluster

import "github.com/prometheus/client_golang/prometheus"

var (
	nodesDesc = prometheus.NewDesc("rackstrap_cluster_nodes",
		"Machines by what Kubernetes says of their nodes now; condition unknown: no control plane could be asked.", []string{"condition"}, nil)
	nodeDesc = prometheus.NewDesc("rackstrap_cluster_node",
		"What Kubernetes says of the node of a machine now: 1 with that condition.", []string{"machine", "condition"}, nil)
	unlistedDesc = prometheus.NewDesc("rackstrap_cluster_nodes_unlisted",
		"Nodes of the cluster that are no machine of the list.", nil, nil)
	nodesAgeDesc = prometheus.NewDesc("rackstrap_cluster_nodes_age_seconds",
		"Time since a control plane listed the nodes last; absent before the first time.", nil, nil)
)

// Describe implements prometheus.Collector.
func (c *Coordinator) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{nodesDesc, nodeDesc, unlistedDesc, nodesAgeDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector: what is so when it is asked for.
func (c *Coordinator) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	n := c.nodesNow(c.o.Rack.Members(""))
	count := n.Count()
	for _, condition := range Conditions() {
		gauge(nodesDesc, float64(count[condition]), string(condition))
	}
	for name, node := range n.Of {
		gauge(nodeDesc, 1, name, string(node.Condition))
	}
	if n.Fresh {
		gauge(unlistedDesc, float64(len(n.Unlisted)))
	}
	if !n.Seen.IsZero() {
		gauge(nodesAgeDesc, c.o.Now().Sub(n.Seen).Seconds())
	}
}
