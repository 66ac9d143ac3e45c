package httpapi_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// pitfall 36: one log line per request, with the route's template; never a path, a query, a token or a subject.
func TestLog(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	w.serve("GET", groupExport+"?_type=Patient&patient=Patient/secret-patient", alice...)
	w.serve("GET", groupExport+"?access_token="+alice[1][7:])
	got := w.serve("GET", groupExport+"?_type=Patient", append(alice, "X-Request-Id", "chosen-by-the-client")...)
	id := string(w.started(got))
	w.serve("GET", "/fhir/exports/"+id, alice...)
	w.serve("GET", "/secret-path", alice...)
	w.serve("SECRET", groupExport, alice...)

	type line struct {
		Msg, Method, Route string
		Status, Bytes      *int
		Seconds            *float64
		RequestID          string `json:"request_id"`
		JobID              string `json:"job_id"`
	}
	var lines []line
	ids := map[string]bool{}
	for text := range strings.SplitSeq(strings.TrimSpace(w.log.String()), "\n") {
		var l line
		must(t, json.Unmarshal([]byte(text), &l))
		if l.Status == nil || l.Bytes == nil || l.Seconds == nil || l.RequestID == "" {
			t.Errorf("incomplete: %s", text)
		}
		lines = append(lines, l)
		ids[l.RequestID] = true
	}
	want := []struct {
		method, route string
		status        int
		job           string
	}{
		{"GET", "/fhir/Group/:group/$export", 400, ""}, {"GET", "/fhir/Group/:group/$export", 401, ""},
		{"GET", "/fhir/Group/:group/$export", 202, id}, {"GET", "/fhir/exports/:job", 202, id}, {"GET", "none", 404, ""},
		{"other", "none", 405, ""},
	}
	if len(lines) != len(want) || len(ids) != len(want) {
		t.Fatalf("%d lines with %d request ids, want %d:\n%s", len(lines), len(ids), len(want), w.log.String())
	}
	for i, l := range lines {
		if l.Method != want[i].method || l.Route != want[i].route || *l.Status != want[i].status || l.JobID != want[i].job {
			t.Errorf("line %+v, want %+v", l, want[i])
		}
	}
	for _, secret := range []string{
		"secret", "SECRET", alice[1][7:], "alice", "_type", "access_token", "chosen-by-the-client",
	} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("the log holds %q", secret)
		}
	}
	if chosen := got.header.Get("X-Request-Id"); chosen != lines[2].RequestID || chosen == "" {
		t.Errorf("X-Request-Id %q, in the log %q", chosen, lines[2].RequestID)
	}
}

// pitfall 36 for outages, errors and panics: the log line contains nothing of the request, and the response contains
// nothing of the cause, only the request id. An unavailable issuer is a 503, because the token may be valid.
func TestLogOfServerErrors(t *testing.T) {
	t.Parallel()
	const query = "?_type=Patient&_format=secret-query"
	const broken = "internals: on fire"
	for name, test := range map[string]struct {
		status int
		breaks func(w *fixture)
	}{
		"job store down": {http.StatusServiceUnavailable, func(w *fixture) { w.jobDoor.Shut() }},
		"queue down":     {http.StatusServiceUnavailable, func(w *fixture) { w.queueDoor.Shut() }},
		"answer lost":    {http.StatusServiceUnavailable, func(w *fixture) { w.jobDoor.Lose(createWord, 2) }},
		"groups down": {http.StatusServiceUnavailable, func(w *fixture) {
			w.users.exists = func(string) error { return fmt.Errorf("%s: %w", broken, export.ErrUnavailable) }
		}},
		"group not valid": {http.StatusInternalServerError, func(w *fixture) {
			spoil(t, w.users.dir, "Group.ndjson", `{"resourceType":"Group","id":"g1","member":7}`)
		}},
		"access down": {http.StatusServiceUnavailable, func(w *fixture) { spoil(t, w.users.dir, "access.yaml", "{{ garbage") }},
		"no keys":     {http.StatusServiceUnavailable, func(w *fixture) { w.issuers.Fail() }},
		"error": {http.StatusInternalServerError, func(w *fixture) {
			w.users.exists = func(string) error { return errors.New(broken) }
		}},
		"panic": {http.StatusInternalServerError, func(w *fixture) {
			w.users.exists = func(string) error { panic(broken) }
		}},
		"own panic": {http.StatusInternalServerError, func(w *fixture) {
			w.users.exists = func(string) error { var none *fixture; return none.users.exists("") }
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newFixture(t)
			user := w.as("secret-subject")
			if name != "access down" && name != "no keys" {
				user = w.as("alice")
			}
			test.breaks(w)
			got := w.serve("GET", groupExport+query, user...)
			id := got.header.Get("X-Request-Id")
			if test.status == http.StatusServiceUnavailable {
				wantOutcome(t, got, test.status, "transient")
				wantHeader(t, got, "Retry-After", "5", "WWW-Authenticate", "", "Content-Location", "")
			} else {
				wantOutcome(t, got, test.status, "exception", id)
				wantHeader(t, got, "Retry-After", "") // clients stop
			}
			text := w.log.String()
			for _, word := range []string{`"level":"ERROR"`, `"err":`, id} {
				if !strings.Contains(text, word) || id == "" {
					t.Errorf("the log lacks %q: %s", word, text)
				}
			}
			if strings.Contains(got.body, "internals") || strings.Contains(text, broken) != (name == "error" || name == "panic" || name == "groups down") {
				t.Errorf("the cause is in the response, or not in the log: %s %s", got.body, text)
			}
			signed := user[1][len("Bearer "):]
			signature := signed[strings.LastIndexByte(signed, '.')+1:]
			for _, secret := range []string{"secret", "_type", "_format", "alice", signed, signature} {
				if strings.Contains(text, secret) {
					t.Errorf("the log holds %q: %s", secret, text)
				}
			}
		})
	}
}

// spoil makes the content of a file unreadable.
func spoil(t *testing.T, dir, name, content string) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
}

// Metrics have the names and labels that dashboards use, and no ids.
func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	id := string(w.started(w.serve("GET", groupExport, alice...)))
	w.serve("GET", groupExport)
	w.serve("GET", groupExport+"?_foo=1", alice...)
	w.serve("GET", "/fhir/Group/g9/$export", alice...)
	w.serve("GET", groupExport+"?_type=Patient", w.as("alice", "openid")...)
	w.serve("HEAD", groupExport, alice...)
	w.serve("GET", "/fhir/exports/"+id, alice...)
	w.serve("GET", "/fhir/exports/"+string(export.NewJobID()), alice...)
	w.serve("GET", "/secret-path", alice...)
	text := w.metrics()
	for _, want := range []string{
		`sluice_api_kickoffs_total{outcome="accepted"} 1`, `sluice_api_kickoffs_total{outcome="unauthenticated"} 1`,
		`sluice_api_kickoffs_total{outcome="invalid"} 1`, `sluice_api_kickoffs_total{outcome="not_found"} 1`,
		`sluice_api_kickoffs_total{outcome="forbidden"} 1`,
		`sluice_api_unauthenticated_total{rule="no_token"} 1`,
		`sluice_api_requests_total{code="202",method="GET",route="/fhir/Group/:group/$export"} 1`,
		`sluice_api_requests_total{code="405",method="HEAD",route="none"} 1`,
		`sluice_api_requests_total{code="202",method="GET",route="/fhir/exports/:job"} 1`,
		`sluice_api_requests_total{code="404",method="GET",route="/fhir/exports/:job"} 1`,
		`sluice_api_requests_total{code="404",method="GET",route="none"} 1`,
		`sluice_api_request_seconds_count{route="/fhir/exports/:job"} 2`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no %s", want)
		}
	}
	anyID := regexp.MustCompile(`[a-z2-7]{26}`)
	if strings.Contains(text, id) || strings.Contains(text, "secret") || anyID.MatchString(text) {
		t.Errorf("the metrics hold an id")
	}
}

// pitfall 34: readiness names each dependency, including those of the directory, and is 503 when one is down. Liveness does
// not depend on them. Neither requires a token.
func TestProbes(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	ready := func(down ...string) {
		t.Helper()
		w.clock.Advance(time.Second) // reports are cached for a second
		got := w.ask("GET", "/readyz")
		var report map[string]string
		must(t, json.Unmarshal([]byte(got.body), &report))
		want := http.StatusOK
		if len(down) > 0 {
			want = http.StatusServiceUnavailable
		}
		if got.code != want || len(report) != 6 {
			t.Errorf("%d %s, want %d", got.code, got.body, want)
		}
		for name, state := range report {
			if isDown := state != "ok"; isDown != slices.Contains(down, name) {
				t.Errorf("%s is %s", name, state)
			}
		}
		if live := w.ask("GET", "/livez"); live.code != http.StatusOK {
			t.Errorf("livez %d", live.code)
		}
	}
	ready()
	for name, broken := range map[string]*door{
		"job_store": w.jobDoor, "queue": w.queueDoor, "object_store": w.objectDoor,
	} {
		broken.Shut()
		ready(name)
		broken.Open()
	}
	ready()
	file := filepath.Join(w.users.dir, "access.yaml")
	must(t, os.Rename(file, file+".kept"))
	spoil(t, w.users.dir, filepath.Base(file), "{{ garbage")
	ready("access")
	must(t, os.Rename(file+".kept", file))
	must(t, os.Rename(w.users.dir, w.users.dir+".away"))
	ready("groups", "access")
	must(t, os.Rename(w.users.dir+".away", w.users.dir))
	ready()
	wantOutcome(t, w.ask("POST", "/livez"), http.StatusMethodNotAllowed, "not-supported", "GET")

	// Any number of requests causes only one check of the dependencies per second.
	w.jobDoor.Shut()
	if got := w.ask("GET", "/readyz"); got.code != http.StatusOK {
		t.Errorf("asked again within a second: %d %s", got.code, got.body)
	}
	ready("job_store")
}

// A directory without a check is left out.
func TestChecksAreOptional(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	deps := w.deps
	deps.Groups, deps.Access = struct{ directory.Groups }{w.users}, struct{ directory.Access }{w.users.Access}
	if checks := deps.Checks(); len(checks) != 4 || checks["groups"] != nil || checks["access"] != nil {
		t.Errorf("%d checks", len(checks))
	}
}

// Large request bodies are refused unread.
func TestBodyLimit(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	body := strings.NewReader(strings.Repeat("x", 1<<20+1))
	request := httptest.NewRequestWithContext(t.Context(), "GET", groupExport, body)
	wantOutcome(t, w.answer(request), http.StatusRequestEntityTooLarge, "too-long", "body")
}

// The base URL's path is where the routes are, and every emitted URL begins with it.
func TestBaseURL(t *testing.T) {
	t.Parallel()
	for raw, path := range map[string]string{
		"https://h.example.org": "", "https://h.example.org/": "", "http://h.example.org:8080/a/b": "/a/b",
		"https://h.example.org/fhir/": "/fhir",
	} {
		w := newFixture(t, func(cfg *httpapi.Config) { cfg.BaseURL = mustURL(t, raw) })
		got := w.serve("GET", path+"/Group/g1/$export", w.as("alice")...)
		location, found := strings.CutPrefix(got.header.Get("Content-Location"), strings.TrimSuffix(raw, "/")+"/exports/")
		if _, err := export.ParseJobID(location); got.code != http.StatusAccepted || !found || err != nil {
			t.Errorf("%s: %d, Content-Location %q", raw, got.code, got.header.Get("Content-Location"))
		}
		text := w.metrics()
		if !strings.Contains(text, `sluice_api_kickoffs_total{outcome="accepted"} 1`) {
			t.Errorf("%s: the kick-off is not counted", raw)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	at := func(raw string) func(*httpapi.Config) {
		return func(cfg *httpapi.Config) { cfg.BaseURL = mustURL(t, raw) }
	}
	for _, test := range []struct {
		want   string
		change func(*httpapi.Config)
	}{
		{"missing", func(cfg *httpapi.Config) { cfg.BaseURL = nil }},
		{"scheme", at("/fhir")},
		{"scheme", at("ftp://h.example.org/fhir")},
		{"host", at("https:///fhir")},
		{"query", at("https://h.example.org/fhir?x=1")},
		{"fragment", at("https://h.example.org/fhir#x")},
		{"user", at("https://a:b@h.example.org/fhir")},
		{"':'", at("https://h.example.org/:x")},
		{"clean", at("https://h.example.org/a/../b")},
		{"encoded", at("https://h.example.org/a%2fb")},
		{"dialect", func(cfg *httpapi.Config) { cfg.Dialect = "smart" }},
		{"dialect", func(cfg *httpapi.Config) { cfg.Dialect = "" }},
		{"POLL_LIMIT", func(cfg *httpapi.Config) { cfg.PollLimit = 0 }},
		{"JOB_LIMIT", func(cfg *httpapi.Config) { cfg.JobLimit = 0 }},
		{"KICKOFF_LIMIT", func(cfg *httpapi.Config) { cfg.KickOffLimit = -1 }},
		{"STATUS_LIMIT", func(cfg *httpapi.Config) { cfg.StatusLimit = 0 }},
		{"DOWNLOAD_LIMIT", func(cfg *httpapi.Config) { cfg.DownloadLimit = 0 }},
		{"FINISHED_LIMIT", func(cfg *httpapi.Config) { cfg.FinishedLimit = 0 }},
		{"STORED_LIMIT", func(cfg *httpapi.Config) { cfg.StoredLimit = 0 }},
		{"KICKOFF_REPEAT", func(cfg *httpapi.Config) { cfg.Repeat = "" }},
		{"dependency", func(cfg *httpapi.Config) { cfg.Now = nil }},
		{"dependency", func(*httpapi.Config) { w.deps.Jobs = nil }},
	} {
		_, err := httpapi.New(w.config(test.change), w.deps)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v, want an error about %s", err, test.want)
		}
	}
}
