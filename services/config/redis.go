package config

import (
	"errors"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
)

// Redis configures the connection to the job store and the queue.
type Redis struct {
	Trust
	// redis://user:password@host:port/db or rediss://; Redis needs noeviction and AOF
	URL string `env:"REDIS_URL,required,notEmpty"`

	observed *telemetry.Dependencies
}

// Observed returns the section with metrics: calls of the job store count as "redis", those of the queue as "queue".
func (r Redis) Observed(by *telemetry.Dependencies) Redis {
	r.observed = by
	return r
}

// Validate refuses what Open would refuse.
func (r Redis) Validate() error {
	if r.URL == "" || !r.readable() {
		return nil // reported by Common.Validate, or as a missing variable
	}
	jobs, tasks, err := r.Open()
	if err != nil {
		return err
	}
	return errors.Join(tasks.Close(), jobs.Close())
}

// Open returns the job store and the queue's client. It does not connect.
func (r Redis) Open() (*jobstore.Store, *queue.Client, error) {
	roots, err := r.Roots()
	if err != nil {
		return nil, nil, err
	}
	jobs, err := jobstore.Open(r.URL, nil,
		redisclient.WithRoots(roots), redisclient.WithObserver(r.observed.Observer("redis")))
	if err != nil {
		return nil, nil, fmt.Errorf("SLUICE_REDIS_URL: %w", err)
	}
	tasks, err := queue.Open(r.URL, redisclient.WithRoots(roots), redisclient.WithObserver(r.observed.Observer("queue")))
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("SLUICE_REDIS_URL: %w", err), jobs.Close())
	}
	return jobs, tasks, nil
}
