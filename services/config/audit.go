package config

import (
	"errors"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
)

// Audit configures the audit log (docs/audit.md). It cannot be turned off. Nothing else is written to standard output,
// which container runtimes collect.
type Audit struct {
	// the audit log: a file of this process alone, or stdout: docs/audit.md
	Log string `env:"AUDIT_LOG" envDefault:"stdout"`
	// secret, 32 bytes or more; without it forgery is not detected
	Key string `env:"AUDIT_KEY"`
	// an event is on disk before its request is answered; needs a file
	Sync bool `env:"AUDIT_SYNC"`
}

// Validate returns every problem of the section.
func (a Audit) Validate() error {
	var problems []error
	if a.Log == "" {
		problems = append(problems, errors.New("SLUICE_AUDIT_LOG must name a file, or be stdout"))
	}
	if a.Key != "" && len(a.Key) < audit.KeyBytes {
		problems = append(problems, fmt.Errorf("SLUICE_AUDIT_KEY must have at least %d bytes", audit.KeyBytes))
	}
	if a.Sync && audit.IsStdout(a.Log) {
		problems = append(problems, errors.New("SLUICE_AUDIT_SYNC needs a file: SLUICE_AUDIT_LOG is stdout"))
	}
	return errors.Join(problems...)
}

// Open opens the log of a process, such as "api", and registers metrics of recorded events and failures.
func (a Audit) Open(process string, registry prometheus.Registerer) (*audit.Log, error) {
	events := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_audit_events_total", Help: "Events in the audit log.",
	}, []string{"action", "outcome"})
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "sluice_audit_failures_total", Help: "Events that could not be recorded; their requests were refused.",
	})
	for _, collector := range []prometheus.Collector{events, failures} {
		if err := registry.Register(collector); err != nil {
			return nil, fmt.Errorf("register the audit log's metrics: %w", err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	log, err := audit.Open(audit.Config{
		Path: a.Log, Process: process, Site: host, Key: []byte(a.Key), Sync: a.Sync,
		Observe: func(e audit.Event, err error) {
			if err != nil {
				failures.Inc()
				return
			}
			events.WithLabelValues(string(e.Action), string(e.Outcome)).Inc()
		},
	})
	if err != nil {
		return nil, fmt.Errorf("SLUICE_AUDIT_LOG: %w", err)
	}
	return log, nil
}
