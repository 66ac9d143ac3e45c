package httpapi_test

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

func statusPath(id export.JobID) string { return "/fhir/exports/" + string(id) }

func filePath(id export.JobID, file export.File) string {
	return statusPath(id) + "/files/" + file.Name
}

// spec 3: while a job runs its status is a 202 without a body, with the interval in the job's dialect and one of
// three words. pitfall 14 at the edge: never 100 percent before the seal.
func TestStatusProgress(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for dialect, headers := range map[export.Dialect][]string{
		export.Classic: nil, export.IG: {"Prefer", "respond-async"},
	} {
		t.Run(string(dialect), func(t *testing.T) {
			alice := w.as("alice")
			id := w.kickoff(alice, "?_type=Patient", headers...)
			unit := map[export.Dialect]int{export.Classic: 1000, export.IG: 1}[dialect]
			check := func(word, percent string, seconds int) {
				t.Helper()
				got := w.ask("GET", statusPath(id), alice...)
				if got.code != http.StatusAccepted || got.body != "" || got.header.Get("Content-Type") != "" {
					t.Fatalf("%d %q, want a bare 202", got.code, got.body)
				}
				if got.header.Get("X-Progress") != word || got.header.Get("X-Progress-Percent") != percent {
					t.Errorf("X-Progress %q, X-Progress-Percent %q, want %q, %q", got.header.Get("X-Progress"),
						got.header.Get("X-Progress-Percent"), word, percent)
				}
				if want := strconv.Itoa(seconds * unit); got.header.Get("Retry-After") != want {
					t.Errorf("Retry-After %q, want %q", got.header.Get("Retry-After"), want)
				}
			}
			check("scheduled", "0", 1)
			w.clock.Advance(45 * time.Second)
			w.plan(id, "Patient", "Observation")
			check("started", "0", 4)
			lease := w.claim(id, "Patient-00000", export.KindExport)
			w.commit(lease, commitEmpty())
			check("started", "49", 4)
			lease = w.claim(id, "Observation-00000", export.KindExport)
			w.commit(lease, commitEmpty())
			w.clock.Advance(4 * time.Minute)
			w.claim(id, export.SealUnit, export.KindSeal)
			check("completed", "99", 28)

			head := w.ask("HEAD", statusPath(id), alice...)
			if head.code != http.StatusAccepted || head.header.Get("X-Progress") != "completed" {
				t.Errorf("HEAD: %d, X-Progress %q", head.code, head.header.Get("X-Progress"))
			}
			// S-18: whatever the client says it accepts.
			for _, accept := range []string{"application/json", "*/*", "text/html"} {
				if got := w.ask("GET", statusPath(id), append(w.as("alice"), "Accept", accept)...); got.code != 202 {
					t.Errorf("Accept %s: %d", accept, got.code)
				}
			}
			w.clock.Advance(-285 * time.Second)
		})
	}
}

// spec 3 and 9: the manifest, byte by byte. pitfall 22: output, deleted, error, count and Expires are always there;
// pitfalls 17 and 18: Expires is an HTTP-date seven days after the end.
func TestStatusManifest(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	outcome := content{typ: "OperationOutcome", error: true, lines: []string{`{"resourceType":"OperationOutcome"}`}}
	observations := content{typ: "Observation", lines: []string{`{"resourceType":"Observation","id":"o"}`}}
	const query = "?_type=Patient,Observation&_format=json%20&_pretty=<a>"
	for dialect, headers := range map[export.Dialect][]string{
		export.Classic: nil, export.IG: {"Prefer", "respond-async", "X-Forwarded-Host", "evil.example.com"},
	} {
		t.Run(string(dialect), func(t *testing.T) {
			alice := w.as("alice")
			id := w.kickoff(alice, query, headers...)
			w.run(id, patients(3), outcome, observations)
			// The fixture's clock stands: finished at 05:06:07.089, snapshot 90 s before.
			transaction := map[export.Dialect]string{
				export.Classic: "2026-03-04T05:06:07Z", export.IG: "2026-03-04T05:04:37Z",
			}[dialect]
			url := base + "/exports/" + string(id) + "/files/"
			want := `{"transactionTime":"` + transaction + `","request":"` + base + "/Group/g1/$export" + query +
				`","requiresAccessToken":true,"output":[` +
				`{"type":"Patient","url":"` + url + `Patient.Patient-00000.1.0.ndjson","count":3},` +
				`{"type":"Observation","url":"` + url + `Observation.Observation-00000.1.0.ndjson","count":1}],"deleted":[],` +
				`"error":[{"type":"OperationOutcome","url":"` + url +
				`OperationOutcome.OperationOutcome-00000.1.0.ndjson","count":1}]}` + "\n"
			// Not limited, and the same every time (S-17).
			for range 15 {
				got := w.ask("GET", statusPath(id), append(w.as("alice"), "Host", "evil.example.com")...)
				if got.code != http.StatusOK || got.body != want {
					t.Fatalf("%d\n%s\nwant\n%s", got.code, got.body, want)
				}
				if got.header.Get("Content-Type") != "application/json" || got.header.Get("X-Progress") != "completed" ||
					got.header.Get("Expires") != "Wed, 11 Mar 2026 05:06:07 GMT" || got.header.Get("Retry-After") != "" {
					t.Fatalf("header %v", got.header)
				}
			}
			if head := w.ask("HEAD", statusPath(id), alice...); head.code != 200 || head.body != "" ||
				head.header.Get("Content-Type") != "application/json" {
				t.Errorf("HEAD: %d %q", head.code, head.body)
			}
		})
	}
}

// pitfall 1 at the edge: an export of nobody is an empty list and not a list of everybody.
func TestStatusManifestOfNobody(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.run(id)
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	var manifest struct {
		Output, Deleted, Error []json.RawMessage
		RequiresAccessToken    bool
	}
	if err := json.Unmarshal([]byte(got.body), &manifest); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(got.body, `"output":[],"deleted":[],"error":[]`) || !manifest.RequiresAccessToken {
		t.Errorf("%s", got.body)
	}
}

// A big manifest streams; it is JSON to the end.
func TestStatusManifestOfManyFiles(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id)
	lease := w.claim(id, export.SealUnit, export.KindSeal)
	const files = 5000
	var list strings.Builder
	for i := range files {
		file := export.File{Name: "Patient." + strconv.Itoa(i), Type: "Patient", Error: i%10 == 0, Count: 1}
		line, err := json.Marshal(file)
		if err != nil {
			t.Fatal(err)
		}
		list.Write(append(line, '\n'))
	}
	key := export.ManifestKey(id, 1)
	w.put(key, []byte(list.String()))
	w.commit(lease, commitSeal(key, w.clock.Now()))
	var manifest struct{ Output, Error []struct{ URL string } }
	if err := json.Unmarshal([]byte(w.ask("GET", statusPath(id), w.as("alice")...).body), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest.Output) != files*9/10 || len(manifest.Error) != files/10 {
		t.Errorf("%d files and %d errors", len(manifest.Output), len(manifest.Error))
	}

	// pitfall 34: a store that is down is a 503 and no half manifest.
	w.objectDoor.Shut()
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	wantHeader(t, got, "Expires", "", "X-Progress", "")
	// One that goes down in between cuts the answer: it never ends as if it were whole.
	w.objectDoor.Open()
	w.objectDoor.ShutAfter(200 << 10)
	if got, err := w.try("GET", statusPath(id), w.as("alice")...); err == nil {
		t.Errorf("a manifest of which the store gave a part ends well: %d, %d bytes", got.code, len(got.body))
	}
}

// A list of files that cannot be read to its end does not make a shorter manifest.
func TestStatusManifestDamaged(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id)
	lease := w.claim(id, export.SealUnit, export.KindSeal)
	key := export.ManifestKey(id, 1)
	w.put(key, []byte(`{"name":"a","type":"Patient","count":1}`+"\n"+`{"name":"b","ty`))
	w.commit(lease, commitSeal(key, w.clock.Now()))
	if got, err := w.try("GET", statusPath(id), w.as("alice")...); err == nil {
		t.Errorf("the answer ends well: %d %s", got.code, got.body)
	}
}

// spec 3: a job of which nothing could be produced is a 500 with its reason, until it expires.
func TestStatusFailed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	now := w.clock.Now()
	if err := w.jobs.FailJob(t.Context(), id, "every type failed", now, now.Add(retention)); err != nil {
		t.Fatal(err)
	}
	got := w.ask("GET", statusPath(id), alice...)
	wantOutcome(t, got, http.StatusInternalServerError, "processing", "every type failed")
	if got.header.Get("Expires") != "Wed, 11 Mar 2026 05:06:07 GMT" {
		t.Errorf("Expires %q", got.header.Get("Expires"))
	}
	w.clock.Advance(retention)
	wantOutcome(t, w.ask("GET", statusPath(id), w.as("alice")...), http.StatusNotFound, "forbidden", "not available")
}

// spec 2 and 3, pitfalls 15, 17 and 19: never existed, malformed, somebody else's (the same subject of another issuer
// too), cancelled, expired by the clock, marked expired and purged are one answer, byte by byte, for status, cancel
// and files, and so is a file that the job does not have.
func TestNotAvailable(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	job := func() (export.JobID, export.File) {
		id := w.kickoff(alice, "")
		return id, w.run(id, patients(1))[0]
	}
	expired, expiredFile := job()
	marked, markedFile := job()
	w.clock.Advance(retention)
	alice = w.as("alice")
	if err := w.jobs.Expire(t.Context(), marked, w.clock.Now()); err != nil {
		t.Fatal(err)
	}
	cancelled, cancelledFile := job()
	if got := w.ask("DELETE", statusPath(cancelled), alice...); got.code != http.StatusAccepted || got.body != "" {
		t.Fatalf("DELETE: %d %q", got.code, got.body)
	}
	purged, purgedFile := job()
	if err := w.jobs.Remove(t.Context(), purged); err != nil {
		t.Fatal(err)
	}
	kept, keptFile := job()
	running := w.kickoff(alice, "")
	w.plan(running, "Patient", "Observation")
	early := w.write(running, "Patient-00000", patients(1)) // committed, and not listed before the job is complete
	commit := commitEmpty()
	commit.Result = export.Result{Files: []export.File{early}}
	w.commit(w.claim(running, "Patient-00000", export.KindExport), commit)
	failed := w.kickoff(alice, "")
	if err := w.jobs.FailJob(t.Context(), failed, "why", w.clock.Now(), w.clock.Now().Add(retention)); err != nil {
		t.Fatal(err)
	}
	two := []string{"Authorization", "Bearer " + w.issuer.token(t, "https://two.example.org", "alice")}

	answers := map[string]reply{}
	ask := func(name, method, path string, user []string) {
		answers[method+" "+name] = w.ask(method, path, user...)
	}
	for _, method := range []string{"GET", "DELETE"} {
		ask("never existed", method, statusPath(export.NewJobID()), alice)
		ask("malformed", method, "/fhir/exports/no-such-job", alice)
		ask("malformed, encoded", method, "/fhir/exports/%00%22", alice)
		ask("foreign", method, statusPath(kept), w.as("bob"))
		ask("foreign and narrow", method, statusPath(kept), w.as("bob", "openid"))
		ask("other issuer", method, statusPath(kept), two)
		ask("foreign and running", method, statusPath(running), w.as("bob"))
		ask("foreign and failed", method, statusPath(failed), w.as("bob"))
		ask("cancelled", method, statusPath(cancelled), alice)
		ask("expired", method, statusPath(expired), alice)
		ask("marked expired", method, statusPath(marked), alice)
		ask("purged", method, statusPath(purged), alice)
	}
	ask("file of none", "GET", filePath(export.NewJobID(), keptFile), alice)
	ask("foreign file", "GET", filePath(kept, keptFile), w.as("bob"))
	ask("file of other issuer", "GET", filePath(kept, keptFile), two)
	ask("file of cancelled", "GET", filePath(cancelled, cancelledFile), alice)
	ask("file of expired", "GET", filePath(expired, expiredFile), alice)
	ask("file of marked expired", "GET", filePath(marked, markedFile), alice)
	ask("file of purged", "GET", filePath(purged, purgedFile), alice)
	ask("file of running", "GET", filePath(running, early), alice)
	ask("unknown file", "GET", statusPath(kept)+"/files/Patient.Patient-00009.1.0.ndjson", alice)
	// Purged between the look at the record and the read: the headers of the good answer were set by then.
	raced := func(name, path string, id export.JobID) {
		if _, err := w.objects.DeletePrefix(t.Context(), export.JobPrefix(id)); err != nil {
			t.Fatal(err)
		}
		w.objectDoor.First(func() {
			if err := w.jobs.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
		ask(name, "GET", path, append(slices.Clone(alice), "Accept-Encoding", "gzip", "Range", "bytes=0-9"))
	}
	racedID, racedFile := job()
	raced("file that is purged meanwhile", filePath(racedID, racedFile), racedID)
	racedID, _ = job()
	raced("manifest that is purged meanwhile", statusPath(racedID), racedID)
	ask("odd file", "GET", statusPath(kept)+"/files/..", alice)
	for name, got := range answers {
		if got.code != http.StatusNotFound {
			t.Errorf("%s: %d %s", name, got.code, got.body)
		}
	}
	wantSame(t, answers)
	wantOutcome(t, answers["GET foreign"], http.StatusNotFound, "forbidden", "The requested export is not available.")
	heads := map[string]reply{}
	for name, path := range map[string]string{
		"none": statusPath(export.NewJobID()), "foreign": statusPath(kept), "file": filePath(kept, keptFile),
	} {
		heads[name] = w.ask("HEAD", path, w.as("bob")...)
	}
	wantSame(t, heads)

	// All that left the owner's job alone.
	if got := w.ask("GET", statusPath(kept), alice...); got.code != http.StatusOK {
		t.Errorf("the owner gets %d %s", got.code, got.body)
	}
	// The last moment is still there (spec 6: decided by the clock).
	w.clock.Advance(retention - time.Millisecond)
	if got := w.ask("GET", filePath(kept, keptFile), w.as("alice")...); got.code != http.StatusOK {
		t.Errorf("a millisecond before it expires: %d", got.code)
	}
	w.clock.Advance(time.Millisecond)
	if got := w.ask("GET", filePath(kept, keptFile), w.as("alice")...); got.code != http.StatusNotFound {
		t.Errorf("as it expires: %d", got.code)
	}
}

// Z-08: a token of the owner that is narrower than the kick-off's sees neither the manifest nor the files of
// the types it lacks; it may still cancel.
func TestStatusNarrowToken(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "?_type=Patient,Observation")
	narrow := w.as("alice", "system/Observation.read")
	wantOutcome(t, w.ask("GET", statusPath(id), narrow...), http.StatusForbidden, "forbidden", "Patient")
	outcome := content{typ: "OperationOutcome", error: true, lines: []string{`{"resourceType":"OperationOutcome"}`}}
	files := w.run(id, patients(1), outcome)
	wantOutcome(t, w.ask("GET", statusPath(id), narrow...), http.StatusForbidden, "forbidden", "Patient")
	wantOutcome(t, w.ask("GET", filePath(id, files[0]), narrow...), http.StatusForbidden, "forbidden", "Patient")
	if got := w.ask("GET", filePath(id, files[1]), narrow...); got.code != http.StatusOK {
		t.Errorf("the report: %d %s", got.code, got.body)
	}
	if got := w.ask("DELETE", statusPath(id), narrow...); got.code != http.StatusAccepted {
		t.Errorf("DELETE: %d %s", got.code, got.body)
	}
}

// pitfalls 29 and 30: polling far too often is a 429 with an integer Retry-After in the job's unit that is no longer
// than the announced interval. Other jobs are not touched.
func TestStatusPollLimit(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.PollLimit = 3 })
	for dialect, headers := range map[export.Dialect][]string{
		export.Classic: nil, export.IG: {"Prefer", "respond-async"},
	} {
		id := w.kickoff(w.as("alice"), "", headers...)
		other := w.kickoff(w.as("alice"), "", headers...)
		w.clock.Advance(10 * time.Minute) // so that the announced interval, 30 s, outlasts the test
		alice := w.as("alice")
		var announced int
		for range 3 {
			got := w.ask("GET", statusPath(id), alice...)
			if got.code != http.StatusAccepted {
				t.Fatalf("%s: %d %s", dialect, got.code, got.body)
			}
			announced = mustInt(t, got.header.Get("Retry-After"))
		}
		got := w.ask("GET", statusPath(id), alice...)
		wantOutcome(t, got, http.StatusTooManyRequests, "throttled", "Retry-After")
		if wait := mustInt(t, got.header.Get("Retry-After")); wait < 1 || wait > announced {
			t.Errorf("%s: Retry-After %d, announced %d", dialect, wait, announced)
		}
		if got := w.ask("GET", statusPath(other), alice...); got.code != http.StatusAccepted {
			t.Errorf("%s: the other job: %d", dialect, got.code)
		}
	}
}

func mustInt(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// spec 3 and 9, pitfall 30: a 503 about the caller's own job counts in the job's unit like every other answer about it.
func TestStatusOutageDialect(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for want, headers := range map[string][]string{"5000": nil, "5": {"Prefer", "respond-async"}} {
		id := w.kickoff(alice, "", headers...)
		file := w.run(id, patients(1))[0]
		running := w.kickoff(alice, "", headers...)
		w.objectDoor.Shut()
		for _, path := range []string{statusPath(id), filePath(id, file)} {
			got := w.ask("GET", path, alice...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
			wantHeader(t, got, "Retry-After", want)
		}
		w.objectDoor.Open()
		for method, word := range map[string]string{"GET": ":polls", "DELETE": cancelWord} {
			w.jobDoor.Before(word, w.jobDoor.Shut)
			got := w.ask(method, statusPath(running), alice...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
			wantHeader(t, got, "Retry-After", want)
			w.jobDoor.Open()
		}
		// Whose job it is decides: to others nothing is known of it.
		w.objectDoor.Shut()
		wantOutcome(t, w.ask("GET", filePath(id, file), w.as("bob")...), http.StatusNotFound, "forbidden")
		w.objectDoor.Open()
	}
}

// spec 7: trouble with the store is a 503 and never the 404 that tells a client to give up. S-12.
func TestStatusOutage(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	file := w.run(id, patients(1))[0]
	w.jobDoor.Shut()
	for _, request := range [][]string{
		{"GET", statusPath(id)}, {"DELETE", statusPath(id)}, {"GET", filePath(id, file)},
		{"GET", statusPath(export.NewJobID())},
	} {
		got := w.ask(request[0], request[1], slices.Clone(w.as("alice"))...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		if got.header.Get("Retry-After") != "5" {
			t.Errorf("Retry-After %q", got.header.Get("Retry-After"))
		}
	}
	w.jobDoor.Open()
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusOK {
		t.Errorf("after the outage: %d %s", got.code, got.body)
	}
}
