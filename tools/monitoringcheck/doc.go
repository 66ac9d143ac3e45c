// Package monitoringcheck holds tests of k8s/monitoring: that each query of the dashboard and of the alerts can be parsed
// and asks for metrics and labels that there are, that each alert fires when it should and not when all is well, and
// that each has a runbook. It is a module of its own because it needs Prometheus.
package monitoringcheck
