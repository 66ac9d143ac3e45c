package adminui

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

const (
	// sampleEvery is the interval of samples. A sample is one read of Redis.
	sampleEvery = 5 * time.Second
	// samplesKept is the number of samples kept: half an hour.
	samplesKept = 360
)

// sample is what all workers committed in an interval.
type sample struct {
	At        time.Time     // end of the interval
	Took      time.Duration // length of the interval
	Resources int64
	Bytes     int64 // NDJSON
}

// perSecond returns resources and bytes a second.
func (s sample) perSecond() (resources, bytes float64) {
	if s.Took <= 0 {
		return 0, 0
	}
	return float64(s.Resources) / s.Took.Seconds(), float64(s.Bytes) / s.Took.Seconds()
}

// sampler samples the throughput from the counters that commits increment. It keeps the samples in memory. Its methods may
// be called from any goroutine.
type sampler struct {
	jobs *jobstore.Store
	now  func() time.Time

	mu      sync.Mutex
	samples []sample // the oldest first
	last    jobstore.Totals
	at      time.Time // of last; zero before the first run
}

// runOnce takes one sample. The first run only reads the counters, and so does one that finds them smaller than before:
// Redis was emptied.
func (m *sampler) runOnce(ctx context.Context) error {
	total, err := m.jobs.Committed(ctx)
	if err != nil {
		return fmt.Errorf("sample the throughput: %w", err)
	}
	now := m.now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if took := now.Sub(m.at); !m.at.IsZero() && took > 0 && total.Resources >= m.last.Resources {
		if len(m.samples) == samplesKept {
			m.samples = slices.Delete(m.samples, 0, 1)
		}
		m.samples = append(m.samples, sample{
			At: now, Took: took, Resources: total.Resources - m.last.Resources, Bytes: total.Bytes - m.last.Bytes,
		})
	}
	m.last, m.at = total, now
	return nil
}

// all returns the samples, the oldest first.
func (m *sampler) all() []sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.samples)
}

// lastMinute is the mean of the samples of the last minute.
func lastMinute(samples []sample) (resources, bytes float64) {
	var sum sample
	for _, s := range slices.Backward(samples) {
		if sum.Took >= time.Minute {
			break
		}
		sum.Took += s.Took
		sum.Resources += s.Resources
		sum.Bytes += s.Bytes
	}
	return sum.perSecond()
}
