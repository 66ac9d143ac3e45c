package adminui

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/ops"
)

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open returns the page of a service on that Redis.
func open(t *testing.T, redis string) *Page {
	t.Helper()
	jobs, err := jobstore.Open(redis, nil)
	must(t, err)
	tasks, err := queue.Open(redis)
	must(t, err)
	events, err := audit.Open(audit.Config{Path: filepath.Join(t.TempDir(), "audit.ndjson"), Process: "scheduler"})
	must(t, err)
	t.Cleanup(func() {
		if err := errors.Join(events.Close(), tasks.Close(), jobs.Close()); err != nil {
			t.Error(err)
		}
	})
	return New(Config{Logger: slog.New(slog.DiscardHandler)}, &ops.Operator{Jobs: jobs, Queue: tasks, Audit: events, Now: time.Now})
}

func get(t *testing.T, page *Page, method, path string) (int, string) {
	t.Helper()
	recorder := httptest.NewRecorder()
	page.ServeHTTP(recorder, httptest.NewRequest(method, "http://localhost:9090"+path, nil))
	response := recorder.Result()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	if !strings.HasPrefix(response.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Errorf("%s %s: no policy for its content", method, path)
	}
	return response.StatusCode, string(body)
}

func TestPages(t *testing.T) {
	page := open(t, testenv.Redis(t))
	none := string(export.NewJobID())
	for _, row := range []struct {
		method, path string
		status       int
		says         string
	}{
		{"GET", "/operator/", http.StatusOK, "There are no jobs."},
		{"GET", "/operator/?state=running&group=%3Cscript%3E", http.StatusOK, "No jobs match."},
		{"GET", "/operator/?state=nonsense", http.StatusBadRequest, "State: "},
		{"GET", "/operator/?job=abcde", http.StatusBadRequest, "Job: enter at least the first 6 characters"},
		{"GET", "/operator/?owner=%3Cscript%3E", http.StatusBadRequest, "Owner: "},
		{"GET", "/operator/?age=2h", http.StatusBadRequest, "Age: "},
		{"GET", "/operator/?sort=size", http.StatusBadRequest, "Sort: "},
		{"GET", "/operator/?from=-1", http.StatusBadRequest, "From: "},
		{"GET", "/operator/?age=over-2h&sort=longest&owner=0f", http.StatusOK, "No jobs match."},
		{"GET", "/operator/?job=" + none, http.StatusSeeOther, ""},
		{"GET", "/operator/cancel", http.StatusBadRequest, "There is no live job"},
		{"GET", "/operator/?done=%3Cscript%3E", http.StatusOK, "No worker is running"},
		{"GET", "/operator/style.css", http.StatusOK, "prefers-color-scheme"},
		{"GET", "/operator/live.js", http.StatusOK, "use strict"},
		{"GET", "/operator/icon.svg", http.StatusOK, "<svg"},
		{"GET", "/operator/templates/layout.html", http.StatusNotFound, "Page not found"},
		{"GET", "/operator/jobs/" + none, http.StatusNotFound, "Not found"},
		{"GET", "/operator/jobs/%3Cscript%3E", http.StatusNotFound, "Not found"},
		{"GET", "/operator/jobs/" + none + "/cancel", http.StatusNotFound, "Not found"},
		{"GET", "/operator/jobs/" + none + "/units/failed/retry", http.StatusNotFound, "Not found"},
		{"GET", "/operator/workers/none:1/drain", http.StatusNotFound, "Not found"},
		{"GET", "/operator/kickoffs/pause", http.StatusOK, "Pause new exports?"},
		{"POST", "/operator/", http.StatusMethodNotAllowed, ""},
		{"POST", "/operator/kickoffs/pause", http.StatusForbidden, "Nothing was changed"},
		{"DELETE", "/operator/kickoffs/pause", http.StatusMethodNotAllowed, ""},
	} {
		status, body := get(t, page, row.method, row.path)
		if status != row.status || !strings.Contains(body, row.says) || strings.Contains(body, "<script>") {
			t.Errorf("%s %s: %d, want %d with %q\n%s", row.method, row.path, status, row.status, row.says, body)
		}
	}
}

// A completed job in which data is missing does not look complete.
func TestAnIncompleteJob(t *testing.T) {
	page := open(t, testenv.Redis(t))
	id, ctx, jobs := kickOff(t, page, "Observation"), t.Context(), page.operator.Jobs
	for _, unit := range []export.Unit{
		{ID: "Observation-00000", Kind: export.KindExport}, {ID: "Observation-00001", Kind: export.KindExport},
		{ID: export.SealUnit, Kind: export.KindSeal},
	} {
		commit := jobstore.Commit{Next: export.Unit{ID: export.SealUnit, Kind: export.KindSeal}}
		if commit.Result.Failure = "it broke"; unit.ID == export.SealUnit {
			_, err := jobs.Issue(ctx, id, 10)
			must(t, err)
			commit = jobstore.Commit{
				Result: export.Result{Files: []export.File{{Name: "e", Type: "OperationOutcome", Error: true, Count: 2}}},
				Seal:   &jobstore.Seal{Manifest: "m", Finished: time.Now(), Expires: time.Now().Add(time.Hour)},
			}
		}
		lease, err := jobs.Claim(ctx, id, unit.ID, unit.Kind, 1, "")
		must(t, err)
		must(t, jobs.Commit(ctx, lease, commit))
	}
	for _, path := range []string{"/operator/", jobPath(id)} {
		_, body := get(t, page, "GET", path)
		if !strings.Contains(body, "Data is missing") || !strings.Contains(body, `<span class="state warn">completed</span>`) {
			t.Errorf("%s does not show that data is missing:\n%s", path, body)
		}
	}
}

// TestTheDoctorsFindingsComeFirst: the page is red while units wait and no worker is alive.
func TestTheDoctorsFindingsComeFirst(t *testing.T) {
	page := open(t, testenv.Redis(t))
	must(t, page.operator.Queue.EnqueueUnit(t.Context(), queue.Task{Kind: export.KindPlan, Job: export.NewJobID(), Unit: export.PlanUnit, Fence: 1, Short: true}))
	_, body := get(t, page, "GET", "/operator/")
	finding, jobs := strings.Index(body, `<div class="notice bad" role="alert"><p><strong>workers:</strong> 0 live`), strings.Index(body, `id="jobs"`)
	if finding < 0 || finding > jobs || !strings.Contains(body, "start workers; if they are running, check their logs") {
		t.Errorf("no finding about workers before the jobs:\n%s", body)
	}
}

// Without Redis the page is unavailable. It shows neither the address nor the password of Redis.
func TestPagesWithoutRedis(t *testing.T) {
	page := open(t, "redis://:hunter2@127.0.0.1:1")
	for _, path := range []string{"/operator/", "/operator/jobs/" + string(export.NewJobID()), "/operator/workers/w/drain"} {
		status, body := get(t, page, "GET", path)
		if status != http.StatusServiceUnavailable || !strings.Contains(body, "Redis cannot be reached.") || strings.Contains(body, "127.0.0.1") || strings.Contains(body, "hunter2") {
			t.Errorf("%s: %d\n%s", path, status, body)
		}
	}
	if err := page.sampler.runOnce(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("a sample without Redis: %v", err)
	}
}

// The audit log names the verified client certificate, otherwise the address.
func TestAgent(t *testing.T) {
	request := httptest.NewRequest(http.MethodPost, "http://localhost/operator/kickoffs/resume", nil)
	request.RemoteAddr = "[::ffff:192.0.2.7]:1234"
	if got := agentOf(request); got != (export.Owner{Issuer: agentIssuer, Subject: "address 192.0.2.7"}) {
		t.Errorf("without a certificate: %+v", got)
	}
	certificate := &x509.Certificate{Subject: pkix.Name{CommonName: "jane", Organization: []string{"operators"}}}
	request.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}}
	if got := agentOf(request); got.Subject != "address 192.0.2.7" {
		t.Errorf("with an unverified certificate: %+v", got)
	}
	request.TLS.VerifiedChains = [][]*x509.Certificate{{certificate}}
	if got := agentOf(request); got.Subject != "certificate CN=jane,O=operators" {
		t.Errorf("with a certificate: %+v", got)
	}
}
