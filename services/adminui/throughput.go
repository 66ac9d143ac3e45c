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
	sampleEvery = 5 * time.Second // a sample is one read of Redis
	samplesKept = 360             // half an hour
)

// sample counts what all workers committed in an interval.
type sample struct {
	At        time.Time     // end of the interval
	Took      time.Duration // length of the interval
	Resources int64
	Bytes     int64 // NDJSON
}

func (s *sample) add(other sample) {
	s.Took += other.Took
	s.Resources += other.Resources
	s.Bytes += other.Bytes
}

func (s sample) perSecond() (resources, bytes float64) {
	if s.Took <= 0 {
		return 0, 0
	}
	return float64(s.Resources) / s.Took.Seconds(), float64(s.Bytes) / s.Took.Seconds()
}

// sampler samples the throughput from the counters that commits increment. It is safe for concurrent use.
type sampler struct {
	jobs *jobstore.Store
	now  func() time.Time

	mu      sync.Mutex
	samples []sample // the oldest first
	last    jobstore.Totals
	at      time.Time // of last; zero before the first run
}

// runOnce takes one sample. It takes none in the first run, or if the counters decreased because Redis was emptied.
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

func (m *sampler) all() []sample {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.samples)
}

func lastMinute(samples []sample) (resources, bytes float64) {
	var sum sample
	for _, s := range slices.Backward(samples) {
		if sum.Took >= time.Minute {
			break
		}
		sum.add(s)
	}
	return sum.perSecond()
}

// chart is the throughput as bars, one for each sample. Heights are percentages of the highest bar.
type chart struct {
	Bars    []bar
	Width   int // in bars
	Summary string
}

type bar struct {
	X         int
	Y, Height float64
	Label     string
}

// fewestBars keeps the first samples after a start from filling the whole width.
const fewestBars = 24

func chartOf(samples []sample) chart {
	var total sample
	peak := 0.0
	for _, s := range samples {
		rate, _ := s.perSecond()
		peak = max(peak, rate)
		total.add(s)
	}
	c := chart{Width: max(len(samples), fewestBars)}
	for i, s := range samples {
		rate, bytes := s.perSecond()
		if rate == 0 {
			continue
		}
		height := 100 * rate / peak
		c.Bars = append(c.Bars, bar{
			X: c.Width - len(samples) + i, Y: 100 - height, Height: height,
			Label: fmt.Sprintf("%s: %s resources/s, %s/s", s.At.UTC().Format(time.TimeOnly), short(rate), size(int64(bytes))),
		})
	}
	c.Summary = fmt.Sprintf("%s resources (%s of NDJSON) in the last %s; at most %s resources/s.",
		count(total.Resources), size(total.Bytes), age(total.Took), short(peak))
	return c
}
