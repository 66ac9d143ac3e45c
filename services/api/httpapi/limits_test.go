package httpapi_test

import (
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/alicebob/miniredis/v2/server"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// wantThrottled checks a 429 and returns its wait.
func wantThrottled(t testing.TB, got reply, words ...string) int {
	t.Helper()
	wantOutcome(t, got, http.StatusTooManyRequests, "throttled", words...)
	return wantRetry(t, got)
}

// wantRetry returns the number in Retry-After.
func wantRetry(t testing.TB, got reply) int {
	t.Helper()
	wait, err := strconv.Atoi(got.header.Get("Retry-After"))
	if err != nil || wait < 1 {
		t.Fatalf("Retry-After %q is not a positive integer", got.header.Get("Retry-After"))
	}
	return wait
}

// K-15: a kick-off beyond the limit of live jobs is a 429 that names the owner's live jobs.
func TestJobsAtWorkAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.JobLimit = 5 })
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
	w.kickoff(w.as("bob"), "") // another owner
	w.kickoff(w.of(issuerTwo, "alice"), "")

	if got := w.ask("DELETE", statusPath(jobs[2]), alice...); got.code != http.StatusAccepted {
		t.Fatalf("cancel: %d", got.code)
	}
	must(t, w.jobs.Remove(t.Context(), jobs[2])) // and it is purged within the minute
	w.kickoff(alice, "")
	wantThrottled(t, w.ask("GET", groupExport, alice...))
	w.run(jobs[0], patients(1)) // to its end
	w.kickoff(alice, "")
	wantThrottled(t, w.ask("GET", groupExport, alice...))
}

func TestAnIdenticalKickOff(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.JobLimit, cfg.Repeat = 2, "same" })
	alice := w.as("alice")
	first := w.kickoff(alice, "?_type=Patient")
	if again := w.kickoff(alice, "?_type=Patient"); again != first {
		t.Errorf("the same kick-off got %s, want the running %s", again, first)
	}
	if n := w.active(); n != 1 {
		t.Errorf("%d jobs are live, want one", n)
	}
	if other := w.kickoff(w.as("bob"), "?_type=Patient"); other == first {
		t.Error("a kick-off of another subject joined")
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
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.KickOffLimit = 3 })
	alice := w.as("alice")
	for range 5 { // malformed requests do not count
		wantOutcome(t, w.ask("GET", groupExport+"?_type=Nothing", alice...), http.StatusBadRequest, "invalid")
	}
	for range 3 {
		w.kickoff(alice, "")
	}
	for _, group := range []string{"g1", "g2", "no-such-group"} { // the response does not depend on the group
		got := w.ask("GET", "/fhir/Group/"+group+"/$export", alice...)
		if wait := wantThrottled(t, got); wait > 60 {
			t.Errorf("Retry-After %d, want at most the window's seconds", wait)
		}
	}
	w.kickoff(w.as("bob"), "")
}

// A subject's status requests are limited over all of its jobs, and Retry-After is in seconds for every dialect (spec 7). Only requests
// about its own jobs count.
func TestStatusesAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.StatusLimit = 4 })
	alice, bob := w.as("alice"), w.as("bob")
	classic, ig := w.kickoff(alice, ""), w.kickoff(alice, "", "Prefer", "respond-async")
	for range 10 {
		for _, id := range []export.JobID{classic, ig, export.NewJobID()} {
			wantOutcome(t, w.ask("GET", statusPath(id), bob...), http.StatusNotFound, "forbidden")
		}
	}
	for range 2 {
		for _, id := range []export.JobID{classic, ig} {
			if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusAccepted {
				t.Fatalf("%d %s", got.code, got.body)
			}
		}
	}
	for _, id := range []export.JobID{classic, ig} {
		if wait := wantThrottled(t, w.ask("GET", statusPath(id), alice...)); wait > 60 {
			t.Errorf("Retry-After %d, want seconds", wait)
		}
	}
	// A job of another owner still gets the 404.
	wantOutcome(t, w.ask("GET", statusPath(export.NewJobID()), alice...), http.StatusNotFound, "forbidden")
}

// Two thousand kick-offs of one subject, as fast as possible, on two replicas: the limits hold exactly, and Redis only
// contains the keys of the accepted jobs.
func TestAFloodOfKickOffs(t *testing.T) {
	t.Parallel()
	const callers, each, allowed, atWork = 16, 125, 400, 5
	limits := func(cfg *httpapi.Config) { cfg.KickOffLimit, cfg.JobLimit = allowed, atWork }
	w := newFixture(t, limits)
	deps := w.deps
	deps.Registry = prometheus.NewRegistry()
	second, err := httpapi.New(w.config(limits), deps)
	must(t, err)
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
		t.Errorf("%v, want %d accepted, and %d in all not refused by the rate limit", answers, atWork, allowed)
	}
	if n := w.active(); n != atWork {
		t.Errorf("%d live jobs, want %d", n, atWork)
	}
	keys, err := w.redis().DBSize(t.Context()).Result()
	must(t, err)
	// For each job: record, units, fences, issued list and task; for the subject a set and a counter; the indexes.
	if most := int64(atWork*8 + 20); keys > most {
		t.Errorf("%d keys in Redis, want at most %d", keys, most)
	}
}

// Finished exports take Redis and the bucket until they expire. A subject that holds too many of them, or too many bytes, gets
// a 429 that names the limit and the way out (P5).
func TestFinishedExportsAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.FinishedLimit = 3 })
	alice := w.as("alice")
	var held []export.JobID
	for range 3 {
		id := w.kickoff(alice, "")
		w.run(id, patients(1))
		held = append(held, id)
		w.clock.Advance(time.Minute)
	}
	before := w.active()
	got := w.ask("GET", groupExport, w.as("alice")...)
	if wait := wantThrottled(t, got, "finished exports: 3", base+"/exports/"+string(held[0]), "Delete one"); wait > 3600 {
		t.Errorf("Retry-After %d, want seconds", wait)
	}
	if strings.Contains(w.log.String(), `"status":429,"bytes":0,"job_id"`) || w.active() != before {
		t.Error("the refused kick-off left a job")
	}
	w.kickoff(w.as("bob"), "")
	if got := w.ask("DELETE", statusPath(held[1]), w.as("alice")...); got.code != http.StatusAccepted {
		t.Fatalf("delete: %d", got.code)
	}
	w.run(w.kickoff(w.as("alice"), ""), patients(1))
	wantThrottled(t, w.ask("GET", groupExport, w.as("alice")...), "finished exports: 3")
	w.clock.Advance(retention - 3*time.Minute) // the first expires, by the clock
	w.kickoff(w.as("alice"), "")
}

func TestStoredBytesAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.StoredLimit = 1000 })
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	file := w.run(id, bulk(1))[0]
	got := w.ask("GET", groupExport, alice...)
	wantThrottled(t, got, strconv.FormatInt(file.Stored, 10)+" of 1000 bytes", base+"/exports/"+string(id))
	w.kickoff(w.as("bob"), "")
	if got := w.ask("DELETE", statusPath(id), alice...); got.code != http.StatusAccepted {
		t.Fatalf("delete: %d", got.code)
	}
	w.kickoff(alice, "")
}

// A kick-off that joins a running export takes no place.
func TestJoiningNeedsNoQuota(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.FinishedLimit, cfg.Repeat = 1, "same" })
	alice := w.as("alice")
	running := w.kickoff(alice, "?_type=Patient")
	w.run(w.kickoff(alice, ""), patients(1))
	wantThrottled(t, w.ask("GET", groupExport, alice...), "finished exports: 1")
	if again := w.kickoff(alice, "?_type=Patient"); again != running {
		t.Errorf("got %s, want the running %s", again, running)
	}
}

// Before Redis is full, new exports are refused with a 503; what exists goes on.
func TestKickOffsBeforeRedisIsFull(t *testing.T) {
	t.Parallel()
	embedded := miniredis.RunT(t)
	w := newFixtureOn(t, "redis://"+embedded.Addr(), testenv.ObjectStore(t))
	w.must(w.objects.EnsureBucket(t.Context()))
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	embedded.Server().SetPreHook(func(peer *server.Peer, cmd string, _ ...string) bool {
		if cmd == "INFO" {
			peer.WriteBulk("# Memory\r\nused_memory:900\r\nmaxmemory:1000\r\nmaxmemory_policy:noeviction\r\n")
		}
		return cmd == "INFO"
	})
	got := w.ask("GET", groupExport, alice...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	wantHeader(t, got, "Retry-After", "5")
	if !strings.Contains(w.log.String(), "redis uses more than 80 % of its maxmemory") {
		t.Error("the log does not have the cause")
	}
	if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusAccepted {
		t.Errorf("status: %d", got.code)
	}
	w.run(id, patients(1))
	if got := w.ask("DELETE", statusPath(id), alice...); got.code != http.StatusAccepted {
		t.Errorf("delete: %d", got.code)
	}
}

// One subject cannot hold more downloads than allowed, whatever their form; others are not affected (P3).
func TestDownloadsAtOnceAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.DownloadLimit = 3 })
	alice, bob := w.as("alice"), w.as("bob")
	id, bobs := w.kickoff(alice, ""), w.kickoff(bob, "")
	path, bobsPath := filePath(id, w.run(id, bulk(300))[0]), filePath(bobs, w.run(bobs, patients(1))[0])
	var held []*http.Response
	for _, headers := range [][]string{nil, {"Accept-Encoding", "gzip"}, {"Range", "bytes=5-"}} {
		response, err := w.open("GET", path, append(slices.Clone(alice), headers...)...)
		must(t, err)
		defer response.Body.Close()
		if response.StatusCode >= 300 {
			t.Fatalf("%q: %d", headers, response.StatusCode)
		}
		held = append(held, response) // and is not read
	}
	for _, headers := range [][]string{nil, {"Range", "bytes=0-0"}} {
		got := w.ask("GET", path, append(slices.Clone(alice), headers...)...)
		if wait := wantThrottled(t, got, "concurrent downloads of files: 3"); wait > 30 {
			t.Errorf("Retry-After %d, want seconds", wait)
		}
		wantHeader(t, got, "Etag", "", "Accept-Ranges", "", "Content-Range", "")
	}
	if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusOK {
		t.Errorf("the manifest: %d", got.code)
	}
	if got := w.ask("HEAD", path, alice...); got.code != http.StatusOK {
		t.Errorf("HEAD: %d", got.code)
	}
	if got := w.ask("GET", bobsPath, bob...); got.code != http.StatusOK {
		t.Errorf("another subject: %d", got.code)
	}
	must(t, held[0].Body.Close())
	// The handler ends at its next write, and each refused request is answered at once.
	for w.ask("GET", path, append(slices.Clone(alice), "Range", "bytes=0-0")...).code != http.StatusPartialContent {
		if err := t.Context().Err(); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusOK {
			t.Errorf("a manifest after the download: %d", got.code)
		}
	}
}

// A manifest that is not read holds as much as a file.
func TestManifestsAtOnceAreLimited(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.DownloadLimit = 1 })
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	w.run(id, patients(1))
	asked := false
	w.objectDoor.Before("_manifest/", func() {
		if !asked {
			asked = true
			wantThrottled(t, w.ask("GET", statusPath(id), alice...), "concurrent downloads of manifests: 1")
		}
	})
	for range 2 {
		if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusOK || !asked {
			t.Errorf("the manifest: %d, asked for another meanwhile: %t", got.code, asked)
		}
	}
}

// A pause applies to every replica and to kick-offs only. Its reason is not disclosed, and refused kick-offs do not count
// against the client.
func TestIntakeThatIsPaused(t *testing.T) {
	t.Parallel()
	one := newFixture(t, func(cfg *httpapi.Config) { cfg.KickOffLimit = 4 })
	other := newFixtureOn(t, one.redisURL, testenv.ObjectStore(t), func(cfg *httpapi.Config) { cfg.KickOffLimit = 4 })
	fixtures := []*fixture{one, other}
	before := one.kickoff(one.as("alice"), "")
	finished := one.kickoff(one.as("bob"), "")
	one.run(finished, patients(1))

	operator := one.direct()
	one.must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Reason: "the array is being rebuilt", Since: one.clock.Now()}))
	for _, w := range fixtures {
		for range 5 { // more often than kick-offs are allowed
			got := w.ask("GET", groupExport, w.as("alice")...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient", "paused")
			wantHeader(t, got, "Retry-After", "60")
			if strings.Contains(got.body, "array") {
				t.Error(got.body)
			}
		}
		if got := w.ask("GET", statusPath(before), w.as("alice")...); got.code != http.StatusAccepted {
			t.Errorf("status: %d", got.code)
		}
	}
	if got := one.ask("GET", statusPath(finished), one.as("bob")...); got.code != http.StatusOK {
		t.Errorf("manifest: %d", got.code)
	}
	if got := other.ask("DELETE", statusPath(before), other.as("alice")...); got.code != http.StatusAccepted {
		t.Errorf("cancel: %d", got.code)
	}
	one.must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Until: one.clock.Now().Add(20 * time.Minute)}))
	for _, w := range fixtures { // the tests' clock is behind that of Redis, where this pause has ended
		w.kickoff(w.as("alice"), "")
	}
	one.must(operator.PauseKickoffs(t.Context(), jobstore.Pause{Until: time.Now().Add(20 * time.Minute)}))
	got := one.ask("GET", groupExport, one.as("bob")...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient", "paused")
	wantHeader(t, got, "Retry-After", "3600") // the maximum, because kick-offs may be resumed earlier
	one.must(operator.ResumeKickoffs(t.Context()))
	for _, w := range fixtures {
		w.kickoff(w.as("bob"), "")
	}
	if job := one.job(before); job.State != export.Cancelled {
		t.Error(job.State)
	}
}
