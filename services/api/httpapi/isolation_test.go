package httpapi_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// target is a job in one of the states, with the names of its files.
type target struct {
	state     string
	id        string
	data, bad string // names of a data file and of an error file, which the job may not have yet
	gone      bool   // its owner gets the 404 too
}

// targets creates a job of alice's in every state; the last ones never existed.
func (w *fixture) targets() []target {
	w.t.Helper()
	ctx := w.t.Context()
	const query = "?_type=Patient,Observation"
	// The names of a first attempt; some of the jobs do not have these files yet.
	data := export.FileName("Patient-00000", 1, "Patient", 0)
	bad := export.FileName("OperationOutcome-00000", 1, "OperationOutcome", 0)
	var all []target
	add := func(state string, gone bool, id export.JobID) {
		all = append(all, target{state: state, id: string(id), data: data, bad: bad, gone: gone})
	}
	kickoff := func() export.JobID { return w.kickoff(w.as("alice"), query) }
	completed := func() export.JobID {
		id := kickoff()
		w.run(id, patients(20), report())
		return id
	}
	add("expired by the clock", true, completed())
	marked := completed()
	w.clock.Advance(retention)
	w.must(w.jobs.Expire(ctx, marked, w.clock.Now()))
	add("expired", true, marked)

	add("scheduled", false, kickoff())
	planning := kickoff()
	w.claim(planning, export.PlanUnit, export.KindPlan)
	add("planning", false, planning)
	running := kickoff()
	w.plan(running, "Patient", "Observation")
	w.commit(w.claim(running, "Patient-00000", export.KindExport), w.write(running, "Patient-00000", patients(20)))
	add("running, with a file", false, running)
	sealing := kickoff()
	w.plan(sealing, "Patient")
	w.commit(w.claim(sealing, "Patient-00000", export.KindExport))
	w.claim(sealing, export.SealUnit, export.KindSeal)
	add("sealing", false, sealing)
	add("completed", false, completed())
	failed := kickoff()
	w.fail(failed, "why")
	add("failed", false, failed)
	cancelled := completed()
	w.must(w.jobs.Cancel(ctx, cancelled, w.clock.Now()))
	add("cancelled", true, cancelled)
	purged := completed()
	_, err := w.objects.DeletePrefix(ctx, export.JobPrefix(purged))
	w.must(err)
	w.must(w.jobs.Remove(ctx, purged))
	add("purged", true, purged)
	add("never existed", true, export.NewJobID())
	for _, id := range []string{"no-such-job", "%00%22", strings.Repeat("a", 25), strings.Repeat("A", 26), "%C3%A4", ".."} {
		add("malformed "+id, true, export.JobID(id))
	}
	for i, t := range all {
		if job, err := w.jobs.Job(ctx, export.JobID(t.id)); err == nil && !strings.HasPrefix(t.state, string(job.State)) &&
			t.state != "expired by the clock" {
			w.t.Fatalf("job %d is %s and not %s", i, job.State, t.state)
		}
	}
	return all
}

// question is a request for a job, with headers that change the response to its owner.
type question struct {
	name    string
	method  string
	path    func(target) string
	headers []string
}

func status(t target) string   { return "/fhir/exports/" + t.id }
func dataFile(t target) string { return status(t) + "/files/" + t.data }
func badFile(t target) string  { return status(t) + "/files/" + t.bad }
func noFile(t target) string   { return status(t) + "/files/Patient.Patient-00009.1.0.ndjson" }
func attached(t target) string { return status(t) + "/attachments/Patient.Patient-00000.1.0.0" }
func oddFile(t target) string  { return status(t) + "/files/%2E%2E" }

func questions() []question {
	all := []question{
		{"status", "GET", status, nil},
		{"status", "HEAD", status, nil},
		{"status as IG", "GET", status, []string{"Prefer", "respond-async", "Accept", "application/json"}},
		{"status as text", "GET", status, []string{"Accept", "text/html"}},
		{"cancel", "DELETE", status, nil},
		{"unknown file", "GET", noFile, nil},
		{"odd file", "GET", oddFile, nil},
		{"attachment", "GET", attached, nil},
		{"attachment", "HEAD", attached, nil},
		{"part of an attachment", "GET", attached, []string{"Range", "bytes=0-9"}},
	}
	for kind, path := range map[string]func(target) string{"data": dataFile, "errors": badFile} {
		for name, headers := range map[string][]string{
			"":                             nil,
			" gzipped":                     {"Accept-Encoding", "gzip"},
			" in no coding":                {"Accept-Encoding", "identity;q=0, gzip;q=0"},
			" as text":                     {"Accept", "text/html"},
			" of which a part":             {"Range", "bytes=0-9"},
			" of which what is behind it":  {"Range", "bytes=999999999-"},
			" if there is none":            {"If-None-Match", "*"},
			" if it is the one":            {"If-Match", `"x"`},
			" of which a part, if the one": {"If-Range", `"x"`, "Range", "bytes=0-9"},
		} {
			all = append(all, question{kind + name, "GET", path, headers}, question{kind + name, "HEAD", path, headers})
		}
	}
	return all
}

// spec 2 and 3, pitfall 19: callers other than the owner get the response for a job that never existed, byte by byte, in
// every state of the job and for every request. The stores get the same commands in the same order, so that timing reveals
// nothing either, and nothing changes. The owner of a job that is gone gets the same.
func TestIsolation(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	targets := w.targets()
	never := target{id: string(export.NewJobID()), data: targets[0].data, bad: targets[0].bad}
	callers := []struct {
		name    string
		headers []string
		owner   bool
	}{
		{"another subject of the same issuer", w.as("bob"), false},
		{"the same subject of another issuer", w.of(issuerTwo, "alice"), false},
		{"another subject who may read nothing", w.as("bob", "openid"), false},
		{"another subject who may read one type", w.as("bob", "system/Observation.read"), false},
		{"somebody without a grant", w.as("dave"), false},
		{"the owner's name in other letters", w.as("Alice"), false},
		{"the owner", w.as("alice"), true},
	}
	before := w.holdings()
	for _, q := range questions() {
		w.ask(q.method, q.path(never), append(slices.Clone(callers[0].headers), q.headers...)...) // opens connections
		w.listen()
		want := w.ask(q.method, q.path(never), append(slices.Clone(callers[0].headers), q.headers...)...)
		if want.code != http.StatusNotFound {
			t.Fatalf("%s %s of a job that never existed: %d", q.method, q.name, want.code)
		}
		if q.method != http.MethodHead {
			wantOutcome(t, want, http.StatusNotFound, "forbidden", "The requested export is not available.")
		}
		way := w.trail(never.id)
		if wanted := `job store ["HMGET sluice:{JOB}:job owner state expires"], queue [], object store 0 bytes`; way != wanted {
			t.Fatalf("%s %s of a job that never existed: %s, want %s", q.method, q.name, way, wanted)
		}
		for _, caller := range callers {
			for _, job := range targets {
				if caller.owner && !job.gone {
					continue
				}
				w.listen()
				got := w.ask(q.method, q.path(job), append(slices.Clone(caller.headers), q.headers...)...)
				about := fmt.Sprintf("%s %s of a job that is %s, by %s", q.method, q.name, job.state, caller.name)
				if got.code != want.code || got.body != want.body || plainHeader(got.header) != plainHeader(want.header) {
					t.Errorf("%s: %+v differs from %+v", about, got, want)
				}
				// A malformed id needs no lookup. This reveals nothing: everybody knows the form of an id.
				wanted := way
				if strings.HasPrefix(job.state, "malformed") {
					wanted = "job store [], queue [], object store 0 bytes"
				}
				if trail := w.trail(job.id); trail != wanted {
					t.Errorf("%s: %s, want %s", about, trail, wanted)
				}
			}
		}
	}
	w.wantUntouched(before)

	// The owner of an existing job gets another response by other commands, so the comparison above can fail.
	for _, job := range targets {
		if job.gone {
			continue
		}
		w.listen()
		got := w.ask("GET", status(job), w.as("alice")...)
		if got.code == http.StatusNotFound || w.trail(job.id) == `job store ["HMGET sluice:{JOB}:job owner state expires"], queue [], `+
			`object store 0 bytes` && job.state != "failed" {
			t.Errorf("%s: the owner gets %d by %s", job.state, got.code, w.trail(job.id))
		}
		if job.state != "completed" {
			continue
		}
		for _, path := range []func(target) string{dataFile, badFile} {
			if got := w.ask("GET", path(job), w.as("alice")...); got.code != http.StatusOK {
				t.Errorf("the owner's file: %d %s", got.code, got.body)
			}
		}
	}
}

// Polls by others do not count against the owner, and polls by the owner do not change the responses to others.
func TestIsolationOfThePollLimit(t *testing.T) {
	t.Parallel()
	const limit = 3
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.PollLimit = limit })
	id, other := w.kickoff(w.as("alice"), ""), w.kickoff(w.as("alice"), "?_type=Patient")
	w.clock.Advance(10 * time.Minute) // so that the announced interval, 30 s, outlasts the test
	alice, bob := w.as("alice"), w.as("bob")
	foreign := func() {
		t.Helper()
		for range 2 * limit {
			got := w.ask("GET", statusPath(id), bob...)
			wantOutcome(t, got, http.StatusNotFound, "forbidden")
			wantHeader(t, got, "Retry-After", "", "X-Progress", "")
		}
	}
	foreign()
	for i := range limit {
		if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusAccepted {
			t.Errorf("poll %d of %d: %d %s", i+1, limit, got.code, got.body)
		}
		foreign()
	}
	if got := w.ask("GET", statusPath(id), alice...); got.code != http.StatusTooManyRequests {
		t.Errorf("one poll too many: %d", got.code)
	}
	foreign()
	// Refused polls with a narrower token of the owner do not count either.
	for range 2 * limit {
		if got := w.ask("GET", statusPath(other), w.as("alice", "system/Observation.read")...); got.code != http.StatusForbidden {
			t.Errorf("a narrow token: %d %s", got.code, got.body)
		}
	}
	if got := w.ask("GET", statusPath(other), alice...); got.code != http.StatusAccepted {
		t.Errorf("after a narrow token's polls: %d %s", got.code, got.body)
	}
}

// Only the manifest lists files, and nothing lists jobs: other paths beside and below the known ones are 404, also for the
// owner. Metrics and profiles are not on the public listener.
func TestIsolationOfLists(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	id := w.kickoff(alice, "")
	file := w.run(id, patients(2))[0]
	before := w.holdings()
	answers := map[string]map[string]reply{} // by the hint about a slash
	for caller, headers := range map[string][]string{"nobody": nil, "alice": alice, "bob": w.as("bob")} {
		for _, path := range []string{
			"/fhir/exports", "/fhir/exports/", statusPath(id) + "/", statusPath(id) + "/files", statusPath(id) + "/files/",
			filePath(id, file) + "/", filePath(id, file) + "/x", "/fhir/exports/" + string(id) + "%2Ffiles",
			"/exports/" + string(id), "/fhir//exports/" + string(id), "/fhir//Group/g1/$export",
			groupExport + "/", "/fhir/Exports/" + string(id), "/fhir/Groups/g1",
			"/jobs/" + string(id) + "/", "/" + file.Key, "/metrics", "/metrics/",
			"/fhir/metrics", "/debug/pprof/", "/debug/pprof/profile?seconds=1",
		} {
			w.listen()
			got := w.ask("GET", path, headers...)
			hint := ""
			switch {
			case strings.Contains(path, "//"):
				hint = "It has a doubled slash."
			case strings.HasSuffix(path, "/"):
				hint = "It ends with a slash."
			}
			wantOutcome(t, got, http.StatusNotFound, "not-found", hint)
			if answers[hint] == nil {
				answers[hint] = map[string]reply{}
			}
			answers[hint][caller+" "+path] = got
			if got, want := w.trail(string(id)), "job store [], queue [], object store 0 bytes"; got != want {
				t.Errorf("%s for %s: %s", path, caller, got)
			}
		}
	}
	for _, same := range answers {
		wantSame(t, same)
	}
	w.wantUntouched(before)
}

// For a caller who may not export a group, it is like an unknown group, even if others have exported it. The request
// changes only the caller's own counter, and reads neither the group directory nor a store.
func TestIsolationOfGroups(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.run(w.kickoff(w.as("alice"), ""), patients(2))
	answers := map[string]reply{"unknown to who may export every group": w.ask("GET", "/fhir/Group/g9/$export", w.as("alice")...)}
	looked := 0
	w.users.exists = func(string) error { looked++; return nil }
	before := w.holdings()
	for name, headers := range map[string][]string{
		"one who may export another group":   w.as("carol"),
		"one who may export another's type":  w.as("carol", "system/Observation.read"),
		"one without a grant":                w.as("dave"),
		"the owner's name in other letters":  w.as("ALICE"),
		"the same subject of another issuer": w.of(issuerTwo, "carol"),
	} {
		trails := map[string]bool{}
		for _, group := range []string{"g1", "g9", "no%20id", "a_b", strings.Repeat("a", 65)} {
			for _, query := range []string{"", "?_type=Patient", "?_type=Observation"} {
				w.listen()
				answers[name+" "+group+query] = w.ask("GET", "/fhir/Group/"+group+"/$export"+query, headers...)
				trails[w.trail("-")] = true
			}
		}
		for trail := range trails {
			if len(trails) != 1 || strings.Count(trail, "sluice:") != 2 || !strings.Contains(trail, "GET sluice:intake") ||
				!strings.Contains(trail, "1 sluice:rate:kickoff:") ||
				!strings.HasSuffix(trail, "queue [], object store 0 bytes") {
				t.Errorf("%s: commands (one of %d variants): %s", name, len(trails), trail)
			}
		}
	}
	wantSame(t, answers)
	wantOutcome(t, answers["one without a grant g1"], http.StatusNotFound, "not-found", "no such Group")
	if looked != 0 {
		t.Errorf("the directory was queried %d times for groups that the caller may not export", looked)
	}
	w.wantUntouched(before)
}

// Z-08 and F-06: with a token that lacks a type, the owner gets neither the status nor files of that type, with any
// headers, and no validator, size or digest of them. No object is read.
func TestIsolationOfScopes(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	observations := content{typ: "Observation", lines: []string{`{"resourceType":"Observation","id":"o"}`}}
	id := w.kickoff(w.as("alice"), "?_type=Patient,Observation")
	running := w.kickoff(w.as("alice"), "?_type=Patient,Observation")
	files := w.run(id, patients(20), observations, report())
	patient := filePath(id, files[0])
	before := w.holdings()
	for _, scopes := range [][]string{
		{"system/Observation.read"}, {"user/Observation.rs", "system/Patient.write"}, {"system/Observation.r", "system/Patient.s"},
		{"system/Observation.read", "patient/Patient.read"}, {"system/Observation.read", "system/patient.read"},
	} {
		narrow := w.as("alice", scopes...)
		answers := map[string]reply{}
		for _, q := range questions() {
			if q.method != "GET" || !strings.HasPrefix(q.name, "data") {
				continue
			}
			w.listen()
			answers[q.name] = w.ask("GET", patient, append(slices.Clone(narrow), q.headers...)...)
			if got := w.trail(string(id)); !strings.Contains(got, "object store 0 bytes") {
				t.Errorf("%s: %s", q.name, got)
			}
		}
		answers["plain"] = w.ask("GET", patient, narrow...)
		wantSame(t, answers)
		wantOutcome(t, answers["plain"], http.StatusForbidden, "forbidden", "Patient")
		wantHeader(t, answers["plain"], "ETag", "", "Repr-Digest", "", "Content-Range", "", "Accept-Ranges", "", "Vary", "")
		if head := w.ask("HEAD", patient, narrow...); head.code != http.StatusForbidden ||
			plainHeader(head.header) != plainHeader(answers["plain"].header) {
			t.Errorf("HEAD: %+v", head)
		}
		for _, method := range []string{"GET", "HEAD"} {
			w.listen()
			got := w.ask(method, statusPath(id), narrow...)
			if got.code != http.StatusForbidden || strings.Contains(got.body, "files") {
				t.Errorf("%s: %d %s", method, got.code, got.body)
			}
			wantHeader(t, got, "Expires", "", "X-Progress", "")
			if trail := w.trail(string(id)); !strings.Contains(trail, "object store 0 bytes") {
				t.Errorf("%s: %s", method, trail)
			}
		}
		if got := w.ask("GET", filePath(id, files[1]), narrow...); got.code != http.StatusOK || got.body != observations.plain() {
			t.Errorf("the type that it may read: %d %s", got.code, got.body)
		}
		if got := w.ask("GET", filePath(id, files[2]), narrow...); got.code != http.StatusOK {
			t.Errorf("the report: %d %s", got.code, got.body)
		}
		wantOutcome(t, w.ask("GET", statusPath(running), narrow...), http.StatusForbidden, "forbidden", "Patient")
	}
	w.wantUntouched(before)
	// Such a token can still cancel.
	if got := w.ask("DELETE", statusPath(id), w.as("alice", "system/Observation.read")...); got.code != http.StatusAccepted {
		t.Errorf("DELETE: %d %s", got.code, got.body)
	}
}
