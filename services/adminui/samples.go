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
	// sampleEvery is how often the throughput is taken down. It costs Redis one question.
	sampleEvery = 5 * time.Second
	// samplesKept is how many are kept: half an hour.
	samplesKept = 360
)

// sample is what was committed, over all jobs and workers, in the time before an instant.
type sample struct {
	At        time.Time
	Took      time.Duration // the time that it is about
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

// meter takes the throughput down from the count that commits add to. It keeps the latest samples in memory, for this
// process alone. Its methods may be called from any goroutine.
type meter struct {
	jobs *jobstore.Store
	now  func() time.Time

	mu      sync.Mutex
	samples []sample // the oldest first
	last    jobstore.Totals
	at      time.Time // of last; zero: there is none
}

// runOnce takes one sample. The first one only notes where the count stands, and so does one that finds it smaller than
// before: then Redis was begun anew.
func (m *meter) runOnce(ctx context.Context) error {
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
func (m *meter) all() []sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.samples)
}
