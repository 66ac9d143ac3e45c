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

// The meter takes down differences, and nothing when there is nothing to compare with.
func TestMeter(t *testing.T) {
	address := testenv.Redis(t)
	jobs, err := jobstore.Open(address, nil)
	if err != nil {
		t.Fatal(err)
	}
	options, err := redis.ParseURL(address)
	if err != nil {
		t.Fatal(err)
	}
	raw := redis.NewClient(options)
	t.Cleanup(func() { _ = errors.Join(jobs.Close(), raw.Close()) })
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	m := &meter{jobs: jobs, now: func() time.Time { return now }}
	take := func(resources, bytes int64) {
		t.Helper()
		if err := raw.HSet(t.Context(), "sluice:committed", "resources", resources, "bytes", bytes).Err(); err != nil {
			t.Fatal(err)
		}
		if err := m.runOnce(t.Context()); err != nil {
			t.Fatal(err)
		}
		now = now.Add(sampleEvery)
	}
	take(1000, 9000)
	if n := len(m.all()); n != 0 {
		t.Errorf("%d samples after the first look, want none", n)
	}
	take(1500, 9900)
	take(0, 0) // a Redis that was begun anew
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
	if err := raw.HSet(t.Context(), "sluice:committed", "resources", "many").Err(); err != nil {
		t.Fatal(err)
	}
	if err := m.runOnce(t.Context()); err == nil || errors.Is(err, export.ErrUnavailable) {
		t.Errorf("a count that is none: %v", err)
	}
}
