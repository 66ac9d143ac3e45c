package adminui

import (
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// A sample is the difference of two reads, so the first read yields none.
func TestSampler(t *testing.T) {
	address := testenv.Redis(t)
	jobs, err := jobstore.Open(address, nil)
	must(t, err)
	options, err := redis.ParseURL(address)
	must(t, err)
	raw := redis.NewClient(options)
	t.Cleanup(func() { _ = errors.Join(jobs.Close(), raw.Close()) })
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	m := &sampler{jobs: jobs, now: func() time.Time { return now }}
	take := func(resources, bytes int64) {
		t.Helper()
		must(t, raw.HSet(t.Context(), "sluice:committed", "resources", resources, "bytes", bytes).Err())
		must(t, m.runOnce(t.Context()))
		now = now.Add(sampleEvery)
	}
	take(1000, 9000)
	if n := len(m.all()); n != 0 {
		t.Errorf("%d samples after the first run, want none", n)
	}
	take(1500, 9900)
	take(0, 0) // Redis was emptied
	take(10, 20)
	got := m.all()
	if len(got) != 2 || got[0].Resources != 500 || got[0].Bytes != 900 || got[0].Took != sampleEvery || got[1].Resources != 10 {
		t.Errorf("samples %+v", got)
	}
	if rate, bytes := got[0].perSecond(); rate != 100 || bytes != 180 {
		t.Errorf("%v resources and %v bytes a second", rate, bytes)
	}
	for i := range samplesKept + 5 {
		take(int64(100+i), 0)
	}
	if n := len(m.all()); n != samplesKept {
		t.Errorf("%d samples, want %d", n, samplesKept)
	}
	must(t, raw.HSet(t.Context(), "sluice:committed", "resources", "many").Err())
	if err := m.runOnce(t.Context()); err == nil || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("malformed counter: %v", err)
	}
}
