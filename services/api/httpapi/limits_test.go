package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// limited makes a fixture with these limits and no others in the way.
func limited(t testing.TB, limits httpapi.Limits) *fixture {
	t.Helper()
	return newFixture(t, func(cfg *httpapi.Config) {
		if limits.Jobs != 0 {
			cfg.Limits.Jobs = limits.Jobs
		}
		if limits.KickOffs != 0 {
			cfg.Limits.KickOffs = limits.KickOffs
		}
		if limits.Statuses != 0 {
			cfg.Limits.Statuses = limits.Statuses
		}
		cfg.Limits.Join = limits.Join
	})
}

// wantThrottled checks a 429 and returns its wait.
func wantThrottled(t testing.TB, got reply, words ...string) int {
	t.Helper()
	wantOutcome(t, got, http.StatusTooManyRequests, "throttled", words...)
	wait, err := strconv.Atoi(got.header.Get("Retry-After"))
	if err != nil || wait < 1 {
		t.Fatalf("Retry-After %q is no wait", got.header.Get("Retry-After"))
	}
	return wait
}

// K-15: one more export than a subject may have at work is a 429 that names those at work, to their owner alone.
func TestJobsAtWorkAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.Limits = httpapi.Limits{} }) // the defaults: five
	alice := w.as("alice")
	var jobs []export.JobID
	for range 5 {
		jobs = append(jobs, w.kickoff(alice, ""))
	}
	before := w.active()
	got := w.ask("GET", groupExport, alice...)
	if wait := wantThrottled(t, got, "5"); wait > 30 {
		t.Errorf("Retry-After %d, want seconds", wait)
	}
	for _, id := range jobs {
		if !strings.Contains(got.body, base+"/exports/"+string(id)) {
			t.Errorf("%s does not name the running job %s", got.body, id)
		}
	}
	if after := w.active(); after != before {
		t.Errorf("the refused kick-off left a job: %d, before %d", after, before)
	}
	w.kickoff(w.as("bob"), "") // somebody else
	w.kickoff([]string{"Authorization", "Bearer " + w.issuer.token(t, "https://two.example.org", "alice")}, "")

	if got := w.ask("DELETE", base+"/exports/"+string(jobs[2]), alice...); got.code != http.StatusAccepted {
		t.Fatalf("cancel: %d", got.code)
	}
	if err := w.jobs.Remove(t.Context(), jobs[2]); err != nil { // and it is purged within the minute
		t.Fatal(err)
	}
	w.kickoff(alice, "")
	wantThrottled(t, w.ask("GET", groupExport, alice...))
	w.run(jobs[0], patients(1)) // to its end
	w.kickoff(alice, "")
	wantThrottled(t, w.ask("GET", groupExport, alice...))
}

// A kick-off that fails does not take a place for good, whichever of its steps fails.
func TestAFailedKickOffTakesNoPlace(t *testing.T) {
	t.Parallel()
	w := limited(t, httpapi.Limits{Jobs: 1})
	alice := w.as("alice")
	for range 3 {
		w.queueDoor.Shut()
		wantOutcome(t, w.ask("GET", groupExport, alice...), http.StatusServiceUnavailable, "transient")
		w.queueDoor.Open()
	}
	w.kickoff(alice, "")
	wantThrottled(t, w.ask("GET", groupExport, alice...))
}

func TestAnIdenticalKickOff(t *testing.T) {
	t.Parallel()
	w := limited(t, httpapi.Limits{Jobs: 2, Join: true})
	alice := w.as("alice")
	first := w.kickoff(alice, "?_type=Patient")
	if again := w.kickoff(alice, "?_type=Patient"); again != first {
		t.Errorf("the same kick-off got %s, want the running %s", again, first)
	}
	if n := w.active(); n != 1 {
		t.Errorf("%d are at work, want one", n)
	}
	if other := w.kickoff(w.as("bob"), "?_type=Patient"); other == first {
		t.Error("a stranger's kick-off joined")
	}
	if ig := w.kickoff(alice, "?_type=Patient", "Prefer", "respond-async"); ig == first {
		t.Error("a kick-off of another dialect joined")
	}
	// Both places are taken; joining needs none.
	wantThrottled(t, w.ask("GET", groupExport, alice...))
	if again := w.kickoff(alice, "?_type=Patient"); again != first {
		t.Errorf("the same kick-off got %s, want the running %s", again, first)
	}
	w.run(first, patients(1))
	if again := w.kickoff(alice, "?_type=Patient"); again == first {
		t.Error("a kick-off joined an export that has ended")
	}
}

func TestKickOffsAreLimited(t *testing.T) {
	t.Parallel()
	w := limited(t, httpapi.Limits{KickOffs: 3})
	alice := w.as("alice")
	for range 5 { // what is wrong in itself costs nothing
		wantOutcome(t, w.ask("GET", groupExport+"?_type=Nothing", alice...), http.StatusBadRequest, "invalid")
	}
	for range 3 {
		w.kickoff(alice, "")
	}
	for _, group := range []string{"g1", "g2", "no-such-group"} { // the answer says nothing about the group
		got := w.ask("GET", "/fhir/Group/"+group+"/$export", alice...)
		if wait := wantThrottled(t, got); wait > 60 {
			t.Errorf("Retry-After %d, want at most the window's seconds", wait)
		}
	}
	w.kickoff(w.as("bob"), "")
}

// A subject's status answers are limited over all of its jobs, in the interval of the job's dialect, and only its own
// questions about its own jobs count.
func TestStatusesAreLimited(t *testing.T) {
	t.Parallel()
	w := limited(t, httpapi.Limits{Statuses: 4})
	alice, bob := w.as("alice"), w.as("bob")
	classic, ig := w.kickoff(alice, ""), w.kickoff(alice, "", "Prefer", "respond-async")
	for range 10 {
		for _, id := range []export.JobID{classic, ig, export.NewJobID()} {
			wantOutcome(t, w.ask("GET", base+"/exports/"+string(id), bob...), http.StatusNotFound, "forbidden")
		}
	}
	for range 2 {
		for _, id := range []export.JobID{classic, ig} {
			if got := w.ask("GET", base+"/exports/"+string(id), alice...); got.code != http.StatusAccepted {
				t.Fatalf("%d %s", got.code, got.body)
			}
		}
	}
	if wait := wantThrottled(t, w.ask("GET", base+"/exports/"+string(ig), alice...)); wait > 60 {
		t.Errorf("Retry-After %d, want seconds", wait)
	}
	if wait := wantThrottled(t, w.ask("GET", base+"/exports/"+string(classic), alice...)); wait < 1000 {
		t.Errorf("Retry-After %d, want milliseconds", wait)
	}
	// A stranger's job stays what it is to everybody: not there.
	wantOutcome(t, w.ask("GET", base+"/exports/"+string(export.NewJobID()), alice...), http.StatusNotFound, "forbidden")
}

// Ten thousand kick-offs of one subject, as fast as they can be made, at two replicas: the limits hold exactly, and what
// they leave in Redis is what the few jobs need.
func TestTenThousandKickOffs(t *testing.T) {
	t.Parallel()
	const callers, each, allowed, atWork = 16, 625, 2000, 5
	w := limited(t, httpapi.Limits{KickOffs: allowed, Jobs: atWork})
	deps := w.deps
	deps.Registry = prometheus.NewRegistry()
	second, err := httpapi.New(httpapi.Config{
		BaseURL: mustURL(t, base), Now: w.clock.Now, Limits: httpapi.Limits{KickOffs: allowed, Jobs: atWork},
	}, deps)
	if err != nil {
		t.Fatal(err)
	}
	authorization := w.as("alice")[1]
	began := time.Now()
	var mu sync.Mutex
	answers := map[string]int{}
	var group sync.WaitGroup
	for caller := range callers {
		handler := []http.Handler{w.handler, second}[caller%2]
		group.Go(func() {
			for range each {
				request := httptest.NewRequestWithContext(t.Context(), "GET", groupExport, nil)
				request.Header.Set("Authorization", authorization)
				recorder := httptest.NewRecorder()
				handler.ServeHTTP(recorder, request)
				answer := strconv.Itoa(recorder.Code)
				switch body := recorder.Body.String(); {
				case strings.Contains(body, "Too many kick-offs"):
					answer = "too often"
				case strings.Contains(body, "maximum number of running exports"):
					answer = "too many"
				}
				mu.Lock()
				answers[answer]++
				mu.Unlock()
			}
		})
	}
	group.Wait()
	// The counter's window is real time: on a slow machine the flood may last for several.
	windows := int(time.Since(began)/time.Minute) + 1
	counted := answers["202"] + answers["too many"]
	if answers["202"] != atWork || counted < allowed || counted > allowed*windows || counted+answers["too often"] != callers*each {
		t.Errorf("%v, want %d accepted, and %d in all that were not refused as too often", answers, atWork, allowed)
	}
	if n := w.active(); n != atWork {
		t.Errorf("%d jobs at work, want %d", n, atWork)
	}
	options, err := redis.ParseURL(w.redisURL)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(options)
	defer client.Close()
	keys, err := client.DBSize(t.Context()).Result()
	if err != nil {
		t.Fatal(err)
	}
	// Of each job its record, units, fences, issued list and task; of the subject a set and a counter; the indexes.
	if most := int64(atWork*8 + 20); keys > most {
		t.Errorf("%d keys in Redis, want at most %d", keys, most)
	}
}
