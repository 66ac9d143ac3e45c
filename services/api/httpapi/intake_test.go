package httpapi_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// A pause counts for every replica, for kick-offs alone, tells no client why, and is not counted against who asks.
func TestIntakeThatIsPaused(t *testing.T) {
	t.Parallel()
	one := newFixture(t, func(cfg *httpapi.Config) { cfg.Limits.KickOffs = 4 })
	other := newFixtureOn(t, one.redisURL, testenv.ObjectStore(t), func(cfg *httpapi.Config) { cfg.Limits.KickOffs = 4 })
	fixtures := []*fixture{one, other}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	before := one.kickoff(one.as("alice"), "")
	finished := one.kickoff(one.as("bob"), "")
	one.run(finished, patients(1))

	operator := one.direct()
	must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Reason: "the array is being rebuilt", Since: one.clock.Now()}))
	for _, w := range fixtures {
		for range 5 { // more often than kick-offs are allowed
			got := w.ask("GET", groupExport, w.as("alice")...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient", "paused")
			if got.header.Get("Retry-After") != "60" || strings.Contains(got.body, "array") {
				t.Errorf("Retry-After %q, %s", got.header.Get("Retry-After"), got.body)
			}
		}
		if got := w.ask("GET", base+"/exports/"+string(before), w.as("alice")...); got.code != http.StatusAccepted {
			t.Errorf("status: %d", got.code)
		}
	}
	if got := one.ask("GET", base+"/exports/"+string(finished), one.as("bob")...); got.code != http.StatusOK {
		t.Errorf("manifest: %d", got.code)
	}
	if got := other.ask("DELETE", base+"/exports/"+string(before), other.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("cancel: %d", got.code)
	}
	must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Until: one.clock.Now().Add(20 * time.Minute)}))
	for _, w := range fixtures { // the clock of these tests is behind that of Redis: this pause is over there
		w.kickoff(w.as("alice"), "")
	}
	must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Until: time.Now().Add(20 * time.Minute)}))
	got := one.ask("GET", groupExport, one.as("bob")...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient", "paused")
	if got.header.Get("Retry-After") != "3600" { // at most: it may be resumed earlier
		t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
	}
	must(operator.ResumeKickoffs(t.Context()))
	for _, w := range fixtures {
		w.kickoff(w.as("bob"), "")
	}
	if job, err := one.jobs.Job(t.Context(), before); err != nil || job.State != export.Cancelled {
		t.Errorf("%s, %v", job.State, err)
	}
}
