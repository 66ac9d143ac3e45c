package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
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

// dialects are the headers of a kick-off that choose a dialect.
func dialects() map[export.Dialect][]string {
	return map[export.Dialect][]string{export.Classic: nil, export.IG: {"Prefer", "respond-async"}}
}

// spec 3: while a job runs its status is a 202 without a body, with the interval in the job's dialect and one of
// three words. pitfall 14: never 100 percent before the seal.
func TestStatusProgress(t *testing.T) {
	t.Parallel()
	for dialect, headers := range dialects() {
		t.Run(string(dialect), func(t *testing.T) {
			w := newFixture(t)
			id := w.kickoff(w.as("alice"), "?_type=Patient", headers...)
			unit := map[export.Dialect]int{export.Classic: 1000, export.IG: 1}[dialect]
			check := func(method, word, percent string, seconds int, headers ...string) {
				t.Helper()
				got := w.ask(method, statusPath(id), append(w.as("alice"), headers...)...)
				if got.code != http.StatusAccepted || got.body != "" {
					t.Fatalf("%d %q, want a bare 202", got.code, got.body)
				}
				wantHeader(t, got, "X-Progress", word, "X-Progress-Percent", percent, "Content-Type", "",
					"Retry-After", strconv.Itoa(seconds*unit))
			}
			check("GET", "scheduled", "0", 1)
			w.clock.Advance(45 * time.Second)
			w.plan(id, "Patient", "Observation")
			check("GET", "started", "0", 4)
			w.commit(w.claim(id, "Patient-00000", export.KindExport))
			check("GET", "started", "49", 4)
			w.commit(w.claim(id, "Observation-00000", export.KindExport))
			w.clock.Advance(4 * time.Minute)
			w.claim(id, export.SealUnit, export.KindSeal)
			check("GET", "completed", "99", 28)
			check("HEAD", "completed", "99", 28)
			for _, accept := range []string{"application/json", "*/*", "text/html"} { // S-18: any Accept
				check("GET", "completed", "99", 28, "Accept", accept)
			}
		})
	}
}

// spec 3 and 9: the manifest, byte by byte. pitfall 22: output, deleted, error, count and Expires are always there;
// pitfalls 17 and 18: Expires is an HTTP-date seven days after the end.
func TestStatusManifest(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	observations := content{typ: "Observation", lines: []string{`{"resourceType":"Observation","id":"o"}`}}
	const query = "?_type=Patient,Observation&_format=json%20&_pretty=<a>"
	for dialect, headers := range dialects() {
		t.Run(string(dialect), func(t *testing.T) {
			alice := w.as("alice")
			id := w.kickoff(alice, query, append(headers, "X-Forwarded-Host", "evil.example.com")...)
			files := w.run(id, patients(3), report(), observations)
			ext := func(i int) string {
				return fmt.Sprintf(`,"extension":{"sha256":"%s","size":%d,"bytes":%d}`, files[i].SHA256, files[i].Stored, files[i].Bytes)
			}
			// The fixture's clock stands: finished at 05:06:07.089, snapshot 90 s before.
			transaction := map[export.Dialect]string{
				export.Classic: "2026-03-04T05:06:07Z", export.IG: "2026-03-04T05:04:37Z",
			}[dialect]
			url := base + "/exports/" + string(id) + "/files/"
			want := `{"transactionTime":"` + transaction + `","request":"` + base + "/Group/g1/$export" + query +
				`","requiresAccessToken":true,"output":[` +
				`{"type":"Patient","url":"` + url + `Patient.Patient-00000.1.0.ndjson","count":3` + ext(0) + `},` +
				`{"type":"Observation","url":"` + url + `Observation.Observation-00000.1.0.ndjson","count":1` + ext(2) + `}],"deleted":[],` +
				`"error":[{"type":"OperationOutcome","url":"` + url +
				`OperationOutcome.OperationOutcome-00000.1.0.ndjson","count":1` + ext(1) + `}]}` + "\n"
			// It is not limited, and always the same (S-17).
			for range 15 {
				got := w.ask("GET", statusPath(id), append(w.as("alice"), "Host", "evil.example.com")...)
				if got.code != http.StatusOK || got.body != want {
					t.Fatalf("%d\n%s\nwant\n%s", got.code, got.body, want)
				}
				wantHeader(t, got, "Content-Type", "application/json", "X-Progress", "completed",
					"Expires", "Wed, 11 Mar 2026 05:06:07 GMT", "Retry-After", "")
			}
			if head := w.ask("HEAD", statusPath(id), alice...); head.code != 200 || head.body != "" ||
				head.header.Get("Content-Type") != "application/json" {
				t.Errorf("HEAD: %d %q", head.code, head.body)
			}
		})
	}
}

// pitfall 1: an export of an empty cohort has an empty output.
func TestStatusManifestOfNobody(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.run(id)
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	if got.code != http.StatusOK ||
		!strings.Contains(got.body, `"requiresAccessToken":true,"output":[],"deleted":[],"error":[]}`) {
		t.Errorf("%d %s", got.code, got.body)
	}
}

// A large manifest is streamed and is valid JSON.
func TestStatusManifestOfManyFiles(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id)
	const files = 5000
	var list bytes.Buffer
	for i := range files {
		w.must(json.NewEncoder(&list).Encode(export.File{
			Name: "Patient." + strconv.Itoa(i), Type: "Patient", Error: i%10 == 0, Count: 1,
		}))
	}
	w.seal(id, list.Bytes())
	var manifest struct{ Output, Error []struct{ URL string } }
	must(t, json.Unmarshal([]byte(w.ask("GET", statusPath(id), w.as("alice")...).body), &manifest))
	if len(manifest.Output) != files*9/10 || len(manifest.Error) != files/10 {
		t.Errorf("%d files and %d errors", len(manifest.Output), len(manifest.Error))
	}

	// pitfall 34: an unavailable store is a 503, not half a manifest.
	w.objectDoor.Shut()
	got := w.ask("GET", statusPath(id), w.as("alice")...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	wantHeader(t, got, "Expires", "", "X-Progress", "")
	// If the store fails during the response, the connection is cut.
	w.objectDoor.Open()
	w.objectDoor.ShutAfter(5 * int64(list.Len()) / 2) // the signature reads the list twice
	if got, err := w.try("GET", statusPath(id), w.as("alice")...); err == nil {
		t.Errorf("a partial manifest is not cut: %d, %d bytes", got.code, len(got.body))
	}
}

// A damaged list of files is an error, instead of a shorter manifest.
func TestStatusManifestDamaged(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id)
	w.seal(id, []byte(`{"name":"a","type":"Patient","count":1}`+"\n"+`{"name":"b","ty`))
	wantOutcome(t, w.ask("GET", statusPath(id), w.as("alice")...), http.StatusInternalServerError, "exception")
}

// A list of files that was edited in the bucket is an error. A list of an earlier version has no digest.
func TestStatusManifestReplaced(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	id := w.kickoff(w.as("alice"), "")
	w.plan(id)
	list := `{"name":"a","type":"Patient","count":1}` + "\n"
	w.seal(id, []byte(list))
	key := w.job(id).Manifest
	w.put(key, []byte(strings.Replace(list, `"a"`, `"b"`, 1)))
	wantOutcome(t, w.ask("GET", statusPath(id), w.as("alice")...), http.StatusInternalServerError, "exception")
	must(t, w.redis().HDel(t.Context(), "sluice:{"+string(id)+"}:job", "manifest_sha256").Err())
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusOK || !strings.Contains(got.body, "/files/b") {
		t.Errorf("without a digest: %d %s", got.code, got.body)
	}
}

// spec 3: a job that could not produce anything is a 500 with its reason, until it expires.
func TestStatusFailed(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	w.fail(id, "every type failed")
	got := w.ask("GET", statusPath(id), alice...)
	wantOutcome(t, got, http.StatusInternalServerError, "processing", "every type failed")
	wantHeader(t, got, "Expires", "Wed, 11 Mar 2026 05:06:07 GMT")
	w.clock.Advance(retention)
	wantOutcome(t, w.ask("GET", statusPath(id), w.as("alice")...), http.StatusNotFound, "forbidden", "not available")
}

// S-19: a poll is 200, and the status of the export is in a header. Refusals of the poll itself stay what they are. A
// kick-off that does not ask for it is another one, with answers of the other kind.
func TestSeparateExportStatus(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	const apart = "respond-async, separate-export-status"
	for _, prefer := range []string{"respond-async", "separate-export-status", ""} {
		got := w.ask("GET", groupExport, append(w.as("alice"), "Prefer", prefer)...)
		wantHeader(t, got, "Preference-Applied", "")
		poll := w.ask("GET", statusPath(w.started(got)), alice...)
		if poll.code != http.StatusAccepted {
			t.Errorf("Prefer %q: a poll is %d", prefer, poll.code)
		}
		wantHeader(t, poll, "X-Export-Status", "")
	}
	wantHeader(t, w.ask("GET", groupExport, append(w.as("alice"), "Prefer", apart)...),
		"Preference-Applied", "respond-async, separate-export-status")

	running := w.kickoff(alice, "", "Prefer", apart)
	got := w.ask("GET", statusPath(running), alice...)
	if got.code != http.StatusOK || got.body != "" {
		t.Errorf("running: %d %q, want a bare 200", got.code, got.body)
	}
	wantHeader(t, got, "X-Export-Status", "202 Accepted", "X-Progress", "scheduled", "Retry-After", "1", "Content-Type", "")
	wantOutcome(t, w.ask("GET", statusPath(running), w.as("bob")...), http.StatusNotFound, "forbidden", "not available")

	w.run(running, patients(1))
	got = w.ask("GET", statusPath(running), alice...)
	if got.code != http.StatusOK || !strings.Contains(got.body, `"output":[{`) {
		t.Errorf("completed: %d %q, want the manifest", got.code, got.body)
	}
	wantHeader(t, got, "X-Export-Status", "200 OK", "Content-Type", "application/json")
	refused := w.ask("GET", statusPath(running), w.as("alice", "system/Condition.rs")...)
	wantOutcome(t, refused, http.StatusForbidden, "forbidden", "may not read")
	wantHeader(t, refused, "X-Export-Status", "")

	failed := w.kickoff(alice, "", "Prefer", apart)
	w.fail(failed, "every type failed")
	got = w.ask("GET", statusPath(failed), alice...)
	wantOutcome(t, got, http.StatusOK, "processing", "every type failed")
	wantHeader(t, got, "X-Export-Status", "500 Internal Server Error", "Expires", "Wed, 11 Mar 2026 05:06:07 GMT")
}

// spec 2 and 3, pitfalls 15, 17 and 19: a file that the owner's job does not have, does not have yet, or has just lost gets
// the response for a job that never existed, byte by byte. TestIsolation covers jobs of others and jobs that are gone.
func TestNotAvailable(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	job := func() (export.JobID, export.File) {
		id := w.kickoff(alice, "")
		return id, w.run(id, patients(1))[0]
	}
	kept, file := job()
	running := w.kickoff(alice, "")
	w.plan(running, "Patient", "Observation")
	early := w.write(running, "Patient-00000", patients(1)) // committed, and not listed before the job is complete
	w.commit(w.claim(running, "Patient-00000", export.KindExport), early)

	answers := map[string]reply{}
	for name, path := range map[string]string{
		"never existed":   statusPath(export.NewJobID()),
		"file of none":    filePath(export.NewJobID(), file),
		"file of running": filePath(running, early),
		"unknown file":    statusPath(kept) + "/files/Patient.Patient-00009.1.0.ndjson",
		"odd file":        statusPath(kept) + "/files/..",
	} {
		answers[name] = w.ask("GET", path, alice...)
	}
	// Purged between the read of the record and that of the object: the headers of the successful response are already set.
	for _, of := range []string{"file", "manifest"} {
		id, file := job()
		path := map[string]string{"file": filePath(id, file), "manifest": statusPath(id)}[of]
		_, err := w.objects.DeletePrefix(t.Context(), export.JobPrefix(id))
		must(t, err)
		w.objectDoor.Before("", func() {
			if err := w.jobs.Remove(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
		answers[of+" that is purged meanwhile"] = w.ask("GET", path,
			append(slices.Clone(alice), "Accept-Encoding", "gzip", "Range", "bytes=0-9")...)
	}
	wantSame(t, answers)
	wantOutcome(t, answers["file of none"], http.StatusNotFound, "forbidden", "The requested export is not available.")

	// It is available until the last moment (spec 6: decided by the clock).
	w.clock.Advance(retention - time.Millisecond)
	if got := w.ask("GET", filePath(kept, file), w.as("alice")...); got.code != http.StatusOK {
		t.Errorf("a millisecond before it expires: %d", got.code)
	}
	w.clock.Advance(time.Millisecond)
	if got := w.ask("GET", filePath(kept, file), w.as("alice")...); got.code != http.StatusNotFound {
		t.Errorf("as it expires: %d", got.code)
	}
}

// pitfalls 29 and 30: polling far too often is a 429 with an integer Retry-After in the job's unit, at most the announced
// interval. Other jobs are not affected.
func TestStatusPollLimit(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.PollLimit = 3 })
	for dialect, headers := range dialects() {
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
			announced = wantRetry(t, got)
		}
		got := w.ask("GET", statusPath(id), alice...)
		if dialect == export.Classic {
			announced /= 1000
		}
		if wait := wantThrottled(t, got, "Retry-After"); wait > announced {
			t.Errorf("%s: Retry-After %d, announced %d seconds", dialect, wait, announced)
		}
		if got := w.ask("GET", statusPath(other), alice...); got.code != http.StatusAccepted {
			t.Errorf("%s: the other job: %d", dialect, got.code)
		}
	}
}

// spec 7, pitfall 43: Retry-After of a 503 is in seconds, also about a job whose 202 has milliseconds.
func TestStatusOutageIsInSeconds(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for _, headers := range dialects() {
		id := w.kickoff(alice, "", headers...)
		file := w.run(id, patients(1))[0]
		running := w.kickoff(alice, "", headers...)
		w.objectDoor.Shut()
		for _, path := range []string{statusPath(id), filePath(id, file)} {
			got := w.ask("GET", path, alice...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
			wantHeader(t, got, "Retry-After", "5")
		}
		w.objectDoor.Open()
		for method, word := range map[string]string{"GET": ":polls", "DELETE": cancelWord} {
			w.jobDoor.Before(word, w.jobDoor.Shut)
			got := w.ask(method, statusPath(running), alice...)
			wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
			wantHeader(t, got, "Retry-After", "5")
			w.jobDoor.Open()
		}
		// Only the owner's response depends on the job.
		w.objectDoor.Shut()
		wantOutcome(t, w.ask("GET", filePath(id, file), w.as("bob")...), http.StatusNotFound, "forbidden")
		w.objectDoor.Open()
	}
}

// spec 7, S-12: an unavailable store is a 503 and never the 404, on which a client would give up.
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
		got := w.ask(request[0], request[1], w.as("alice")...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		wantHeader(t, got, "Retry-After", "5")
	}
	w.jobDoor.Open()
	if got := w.ask("GET", statusPath(id), w.as("alice")...); got.code != http.StatusOK {
		t.Errorf("after the outage: %d %s", got.code, got.body)
	}
}
