package httpapi_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const groupExport = "/fhir/Group/g1/$export"

// spec 1: 202, no body, one absolute Content-Location on the public base, for any host or proxy that the request names;
// the job is stored with its owner and its plan is queued. pitfall 12: neither the members of the group nor the object
// store are read.
func TestKickoff(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.objectDoor.Shut()
	const query = "?_type=Patient,Observation&_type=Practitioner&_outputFormat=application/fhir+ndjson"
	got := w.ask("GET", groupExport+query,
		append(w.as("alice"), "Host", "internal:8080", "X-Forwarded-Host", "evil.example.com", "X-Forwarded-Proto", "http",
			"Forwarded", "host=evil.example.com")...)
	if got.code != http.StatusAccepted || got.body != "" || got.header.Get("Content-Type") != "" {
		t.Fatalf("%d %q %q, want a bare 202", got.code, got.body, got.header.Get("Content-Type"))
	}
	locations := got.header.Values("Content-Location")
	if len(locations) != 1 {
		t.Fatalf("Content-Location %q, want one", locations)
	}
	text, found := strings.CutPrefix(locations[0], base+"/exports/")
	id, err := export.ParseJobID(text)
	if !found || err != nil {
		t.Fatalf("Content-Location %q is no status URL", locations[0])
	}

	job, want := w.job(id), export.Request{
		URL: base + "/Group/g1/$export" + query, Level: export.GroupLevel, GroupID: "g1", Types: []string{"Observation", "Patient", "Practitioner"},
		Dialect: export.Classic,
	}
	if !reflect.DeepEqual(job.Request, want) || job.Owner != (export.Owner{Issuer: issuerOne, Subject: "alice"}) ||
		job.State != export.Scheduled || !job.Created.Equal(w.clock.Now()) {
		t.Errorf("stored %+v, want %+v", job, want)
	}
	if task := w.nextTask(); task != (queue.Task{Kind: export.KindPlan, Job: id, Unit: "plan", Fence: 1}) {
		t.Errorf("queued %+v, want the plan of %s", task, id)
	}
}

// nextTask takes one unit's task from the real queue.
func (w *fixture) nextTask() queue.Task {
	w.t.Helper()
	ctx, stop := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer stop()
	tasks := make(chan queue.Task, 1)
	served := make(chan error, 1)
	go func() {
		served <- queue.Serve(ctx, queue.ServerConfig{
			URL: w.redisURL, Concurrency: 1, Drain: time.Second, Logger: slog.New(slog.DiscardHandler),
		}, queue.Handlers{Unit: func(_ context.Context, task queue.Task) error {
			tasks <- task
			return nil
		}})
	}()
	var task queue.Task
	select {
	case task = <-tasks:
	case <-ctx.Done():
		w.t.Error("no task was queued")
	}
	stop()
	if err := <-served; err != nil {
		w.t.Error(err)
	}
	return task
}

// pitfall 35: both spellings of $export work, and the request URL keeps the client's; HEAD and other methods are 405
// and start nothing.
func TestKickoffSpellingsAndMethods(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	for _, spelling := range []string{"$export", "%24export"} {
		job := w.job(w.started(w.ask("GET", "/fhir/Group/g1/"+spelling+"?_type=Patient", alice...)))
		if want := base + "/Group/g1/" + spelling + "?_type=Patient"; job.Request.URL != want {
			t.Errorf("request URL %s, want %s", job.Request.URL, want)
		}
	}
	before := w.active()
	for _, spelling := range []string{"$export", "%24export"} {
		for _, path := range []string{"/fhir/Group/g1/", "/fhir/Patient/", "/fhir/"} {
			for _, method := range []string{"HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"} {
				got := w.ask(method, path+spelling, alice...)
				wantHeader(t, got, "Allow", "GET, POST")
				if method != "HEAD" {
					wantOutcome(t, got, http.StatusMethodNotAllowed, "not-supported", "GET, POST")
				} else if got.code != http.StatusMethodNotAllowed {
					t.Errorf("HEAD %s: %d", spelling, got.code)
				}
			}
		}
	}
	got := w.ask("PUT", "/fhir/exports/aaaaaaaaaaaaaaaaaaaaaaaaaa", alice...)
	wantOutcome(t, got, http.StatusMethodNotAllowed, "not-supported", "DELETE, GET, HEAD")
	wantHeader(t, got, "Allow", "DELETE, GET, HEAD")
	for _, path := range []string{
		"/fhir", "/fhir/", "/fhir/metadatas", "/fhir/Groups", "/fhir/Group/g1/$export/", "/fhir/group/g1/$export",
		"/fhir/Group/a%2Fb/$export", "/fhir/Group//$export", "/fhir/Group/g1%2F$export", "/fhir/Group/g1%2f%24export",
		"/fhir/Group%2Fg1/$export", "/fhir%2FGroup/g1/$export", "/fhir/exports/", "/elsewhere", "/", "/fhir/Patient%2F$export",
		"/fhir/$export/", "/fhir/Patient/p1/$export", "/fhir/Observation/$export", "/fhir/Group/$export", "/$export",
	} {
		wantOutcome(t, w.ask("GET", path, alice...), http.StatusNotFound, "not-found")
	}
	wantOutcome(t, w.ask("GET", "/fhir/Observation/$export", alice...), http.StatusNotFound, "not-found",
		"GET or POST "+base+"/Group/[id]/$export, /Patient/$export or /$export.")
	if after := w.active(); after != before {
		t.Errorf("%d jobs, want %d as before", after, before)
	}
}

func (w *fixture) active() int {
	w.t.Helper()
	entries, err := w.jobs.Active(w.t.Context(), 0, 1000)
	w.must(err)
	return len(entries)
}

// spec 7: every refusal is an OperationOutcome that names the parameter or header at fault; none starts a job.
// TestParseParameters covers the query string, TestAuthorizationRows the scopes and the grant.
func TestKickoffRefusals(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, narrow := w.as("alice"), w.as("alice", "system/Patient.rs")
	lenient := []string{"Prefer", "respond-async, handling=lenient"}
	for name, test := range map[string]struct {
		user    []string
		query   string
		headers []string
		status  int
		code    string
		words   []string
	}{
		"unknown type":      {alice, "?_type=Patient,Nonsense", nil, 400, "invalid", []string{"_type", "Nonsense"}},
		"never exported":    {alice, "?_type=AuditEvent", nil, 400, "not-supported", []string{"_type", "AuditEvent"}},
		"since":             {alice, "?_since=2020-01-01", nil, 400, "invalid", []string{"_since", "instant"}},
		"P-10 future":       {alice, "?_since=2057-01-01T00:00:00%2B05:00", nil, 400, "invalid", []string{"_since", "future"}},
		"unknown parameter": {alice, "?_foo=1", nil, 400, "invalid", []string{"_foo"}},
		"Accept xml":        {alice, "", []string{"Accept", "application/fhir+xml"}, 406, "not-supported", []string{"Accept", "application/fhir+json"}},
		"Accept html":       {alice, "", []string{"Accept", "text/html"}, 406, "not-supported", []string{"Accept"}},
		"scopes, lenient":   {narrow, "?_type=Patient,Observation", lenient, 403, "forbidden", []string{"_type", "Observation"}},
		"long URL":          {alice, "?_format=" + strings.Repeat("x", 9000), nil, 414, "too-long", nil},
		"many parameters":   {alice, "?" + strings.Repeat("_format=x&", 200), nil, 400, "too-costly", nil},
	} {
		t.Run(name, func(t *testing.T) {
			got := w.ask("GET", groupExport+test.query, append(slices.Clone(test.user), test.headers...)...)
			wantOutcome(t, got, test.status, test.code, test.words...)
			wantHeader(t, got, "Content-Location", "")
		})
	}
	if n := w.active(); n != 0 {
		t.Errorf("%d jobs were started", n)
	}
}

// wantSame checks that the responses have the same body and headers.
func wantSame(t *testing.T, answers map[string]reply) {
	t.Helper()
	var first string
	for name, got := range answers {
		text := fmt.Sprintf("%d %s %s", got.code, plainHeader(got.header), got.body)
		if first == "" {
			first = text
		}
		if text != first {
			t.Errorf("%s: %s differs from %s", name, text, first)
		}
	}
}

// spec 9: Prefer: respond-async makes an IG client; the configuration may force either dialect. TestPreferences and
// TestAccepts cover the syntax of the headers.
func TestKickoffDialects(t *testing.T) {
	t.Parallel()
	const auto, classic, ig = httpapi.DialectAuto, string(export.Classic), string(export.IG)
	const fhirJSON = "application/fhir+json"
	fixtures := map[string]*fixture{}
	for _, dialect := range []string{auto, classic, ig} {
		fixtures[dialect] = newFixture(t, func(cfg *httpapi.Config) { cfg.Dialect = dialect })
	}
	tests := []struct {
		config  string
		headers []string
		want    export.Dialect
		status  int
		word    string
	}{
		{auto, nil, export.Classic, 202, ""},
		{auto, []string{"Prefer", "handling=lenient"}, export.Classic, 202, ""},
		{auto, []string{"Prefer", "respond-async"}, export.IG, 202, ""},
		{auto, []string{"Accept", "*/*", "Prefer", "respond-async, handling=lenient"}, export.IG, 202, ""},
		{classic, []string{"Accept", fhirJSON, "Prefer", "respond-async"}, export.Classic, 202, ""},
		{auto, []string{"Accept", "application/fhir+ndjson", "Prefer", "respond-async"}, export.IG, 202, ""},
		{auto, []string{"Accept", "application/json+fhir"}, export.Classic, 202, ""},
		{classic, []string{"Accept", "application/ndjson"}, export.Classic, 202, ""},
		{ig, []string{"Accept", "application/fhir+ndjson", "Prefer", "respond-async"}, "", 406, "Accept"},
		{classic, nil, export.Classic, 202, ""},
		{ig, []string{"Accept", fhirJSON, "Prefer", "respond-async"}, export.IG, 202, ""},
		{ig, []string{"Accept", "application/json", "Prefer", "respond-async"}, export.IG, 202, ""},
		{ig, []string{"Prefer", "respond-async"}, "", 400, "Accept"},
		{ig, []string{"Accept", "", "Prefer", "respond-async"}, "", 400, "Accept"},
		{ig, []string{"Accept", "*/*", "Prefer", "respond-async"}, "", 406, "Accept"},
		{ig, []string{"Accept", "text/html", "Prefer", "respond-async"}, "", 406, "Accept"},
		{ig, []string{"Accept", fhirJSON}, "", 400, "Prefer"},
		{ig, []string{"Accept", fhirJSON, "Prefer", "handling=strict"}, "", 400, "Prefer"},
	}
	for _, test := range tests {
		w := fixtures[test.config]
		got := w.ask("GET", groupExport, append(w.as("alice"), test.headers...)...)
		if got.code != test.status || !strings.Contains(got.body, test.word) {
			t.Errorf("%s %q: %d %s, want %d %s", test.config, test.headers, got.code, got.body, test.status, test.word)
			continue
		}
		if test.status != http.StatusAccepted {
			continue
		}
		if job := w.job(w.started(got)); job.Request.Dialect != test.want {
			t.Errorf("%s %q: dialect %q, want %q", test.config, test.headers, job.Request.Dialect, test.want)
		}
	}
}

// pitfall 34, K-20: without its stores the API answers 503 and never 202; no job remains that counts against the limit, and
// kick-offs work again after the outage. TestLogOfServerErrors covers the other dependencies.
func TestKickoffOutage(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.JobLimit = 1 })
	for name, broken := range map[string]*door{"job store": w.jobDoor, "queue": w.queueDoor} {
		broken.Shut()
		got := w.ask("GET", groupExport, w.as("alice")...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		wantHeader(t, got, "Retry-After", "5", "Content-Location", "")
		broken.Open()
		if n := w.active(); n != 0 {
			t.Errorf("%s: %d jobs are left", name, n)
		}
	}
	id := w.kickoff(w.as("alice"), "")
	wantThrottled(t, w.ask("GET", groupExport, w.as("alice")...))
	w.run(id, patients(1))
}

// createWord is in the command that records a job, and in no other of a kick-off.
const createWord = `"kind":"plan"`

// If the answer to the create command is lost once, the job store repeats it and the kick-off succeeds. If the second
// answer is lost too, the client gets a 503 and no job remains.
func TestKickoffAnswerLost(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	w.run(w.kickoff(w.as("alice"), ""), patients(1)) // the scripts are loaded
	before := w.active()
	w.jobDoor.Lose(createWord, 1)
	w.kickoff(w.as("alice"), "")
	if n := w.active(); n != before+1 || w.jobDoor.lose != 0 {
		t.Errorf("one answer lost: %d active jobs, want %d; %d answers were not lost", n, before+1, w.jobDoor.lose)
	}
	keys := w.keys()
	w.jobDoor.Lose(createWord, 2)
	got := w.ask("GET", groupExport, w.as("alice")...)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	wantHeader(t, got, "Retry-After", "5", "Content-Location", "")
	if n := w.active(); n != before+1 || !slices.Equal(w.keys(), keys) || w.jobDoor.lose != 0 {
		t.Errorf("two answers lost: %d active jobs, want %d; keys %q, want %q", n, before+1, w.keys(), keys)
	}
}

// keys lists the job store's keys, without the marks of removed jobs, which expire.
func (w *fixture) keys() []string {
	w.t.Helper()
	keys, err := w.redis().Keys(w.t.Context(), "sluice:*").Result()
	w.must(err)
	slices.Sort(keys)
	return slices.DeleteFunc(keys, func(key string) bool { return strings.HasSuffix(key, "}:removed") })
}
