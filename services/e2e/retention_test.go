package e2e

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/development"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// inProcess runs the whole service in the process of the test, on real servers, with a clock that the test sets.
func inProcess(t *testing.T, data string) (s *stack, passes *maintenance.Runner, clock *atomic.Int64) {
	t.Helper()
	clock = &atomic.Int64{}
	clock.Store(time.Now().UnixMilli())
	now := func() time.Time { return time.UnixMilli(clock.Load()).UTC() }
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	s = &stack{t: t, redis: testenv.Redis(t), s3: testenv.ObjectStore(t)}

	issuer, err := development.Open(filepath.Join(t.TempDir(), "issuer"))
	check.Must(t, err)
	s.issuer = issuer
	// Tokens use the real clock; only jobs age in these tests.
	tokens, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{{
		Name: development.IssuerName, Audiences: []string{publicBase}, JWKSFile: issuer.JWKSFile(),
	}}})
	check.Must(t, err)
	jobs, err := jobstore.Open(s.redis, now)
	check.Must(t, err)
	tasks, err := queue.Open(s.redis)
	check.Must(t, err)
	store := s.store()
	check.Must(t, store.EnsureBucket(t.Context()))
	from := envconfig.Defaults[config.Source]()
	from.Dir = data
	source, err := from.Open(t.Context(), log, 0)
	check.Must(t, err)
	groups, err := filedir.OpenGroups(t.Context(), data, nil, time.Now, slog.New(slog.DiscardHandler))
	check.Must(t, err)
	access := filedir.AllowOnly(export.Owner{Issuer: development.IssuerName, Subject: "everything"})
	base, err := url.Parse(publicBase)
	check.Must(t, err)
	events, err := audit.Open(audit.Config{Path: filepath.Join(t.TempDir(), "audit.ndjson"), Process: "api", Now: now})
	check.Must(t, err)
	t.Cleanup(func() { check.Must(t, events.Close()) })
	keys, err := jobs.SigningKeys()
	check.Must(t, err)
	check.Must(t, keys.Refresh(t.Context()))
	handler, err := httpapi.New(httpapi.Config{
		BaseURL: base, Dialect: httpapi.DialectAuto, Now: now, Logger: log,
		Limits: envconfig.Defaults[httpapi.Limits](),
	}, httpapi.Deps{
		Jobs: jobs, Queue: tasks, Objects: store, Tokens: tokens, Groups: groups, Access: access, Keys: keys, Audit: events,
		Registry: telemetry.NewRegistry(),
	})
	check.Must(t, err)
	server := httptest.NewServer(handler)
	s.client = &http.Client{Transport: mapped{
		to: strings.TrimPrefix(server.URL, "http://"), inner: &http.Transport{DisableCompression: true},
	}}
	worker, err := pipeline.New(envconfig.Defaults[pipeline.Config](), pipeline.Deps{
		Jobs: jobs, Queue: tasks, Objects: store, Source: source, Groups: groups, Access: access,
		Now: now, Logger: log, Registry: prometheus.NewRegistry(),
	})
	check.Must(t, err)
	cfg := envconfig.Defaults[maintenance.Config]()
	cfg.SweepGrace = 0
	passes, err = maintenance.New(cfg, maintenance.Deps{
		Jobs: jobs, Queue: tasks, Objects: store, Audit: events, Now: now, Logger: log, Registry: prometheus.NewRegistry(),
	})
	check.Must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- queue.Serve(ctx, queue.ServerConfig{URL: s.redis, Concurrency: 4, Logger: log},
			queue.Handlers{Unit: worker.Handle, Purge: passes.Purge})
	}()
	t.Cleanup(func() {
		stop()
		check.Must(t, <-served)
		server.Close()
		check.Must(t, source.Close())
		_, _ = jobs.Close(), tasks.Close()
	})
	return s, passes, clock
}

// awaitPurge waits until the job of the status URL is forgotten: the purge is a task.
func (s *stack) awaitPurge(status string) {
	s.t.Helper()
	jobs, err := jobstore.Open(s.redis, nil)
	check.Must(s.t, err)
	defer jobs.Close()
	id := export.JobID(status[strings.LastIndexByte(status, '/')+1:])
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		exists, err := jobs.Exists(s.t.Context(), id)
		check.Must(s.t, err)
		if !exists {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatal("the job was not purged within a minute")
		}
	}
}

func TestRetentionAsClientsSeeIt(t *testing.T) { // spec 6, pitfall 17
	t.Parallel()
	data := generated(t, 6)
	s, passes, clock := inProcess(t, data)
	status := s.kickoff("all", "")
	m := s.wait(status, time.Minute)
	before := s.lines(m.Output)

	resp := s.request(http.MethodGet, status, "everything", nil)
	expires, err := http.ParseTime(resp.Header.Get("Expires"))
	check.Must(t, err)
	finished, err := time.Parse(time.RFC3339, m.TransactionTime)
	check.Must(t, err)
	if kept := expires.Sub(finished); kept < 168*time.Hour-time.Second || kept > 168*time.Hour+time.Second {
		t.Errorf("Expires is %s after the export finished, want 168h", kept)
	}
	never := s.answer(publicBase + "/exports/" + string(export.NewJobID()))

	// The header is in whole seconds; the expiry of the job is within that second.
	clock.Store(expires.Add(-time.Second).UnixMilli())
	check.Must(t, passes.Expire(t.Context()))
	check.Must(t, passes.Sweep(t.Context()))
	expect.SameLines(t, "a second before", s.lines(s.wait(status, time.Minute).Output), before)

	clock.Store(expires.Add(time.Second).UnixMilli())
	// Before any sweep, status and files are the same 404 as an unknown job.
	for what, url := range map[string]string{"status": status, "file": m.Output[0].URL} {
		if got := s.answer(url); got != never {
			t.Errorf("%s after expiry: %s\nwant that of an unknown job: %s", what, got, never)
		}
	}
	if keys := s.objectKeys(); len(keys) == 0 {
		t.Fatal("the objects are deleted before the sweep")
	}
	check.Must(t, passes.Expire(t.Context()))
	s.awaitPurge(status)
	if keys := s.objectKeys(); len(keys) != 0 {
		t.Errorf("left in the bucket: %v", keys)
	}
	opts, err := redis.ParseURL(s.redis)
	check.Must(t, err)
	client := redis.NewClient(opts)
	defer client.Close()
	keys, err := client.Keys(t.Context(), "sluice:*").Result()
	check.Must(t, err)
	// Counters of requests and the mark of the removal expire within minutes; the totals of all jobs stay, as do the keys
	// that sign manifests, and the instant from which the client can continue.
	keys = slices.DeleteFunc(keys, func(key string) bool {
		return strings.HasPrefix(key, "sluice:rate:") || strings.HasSuffix(key, "}:removed") ||
			strings.HasPrefix(key, "sluice:continue:") ||
			slices.Contains([]string{"sluice:committed", "sluice:outage", "sluice:slots", "sluice:signing"}, key)
	})
	if len(keys) != 0 {
		t.Errorf("left in Redis: %v", keys)
	}
	if got := s.answer(status); got != never {
		t.Errorf("status after the purge: %s", got)
	}
}

func TestCancelDeletesEverything(t *testing.T) { // spec 5, pitfalls 15, 16
	t.Parallel()
	data := generated(t, 6)
	s, passes, _ := inProcess(t, data)
	status := s.kickoff("all", "")
	m := s.wait(status, time.Minute)
	never := s.answer(publicBase + "/exports/" + string(export.NewJobID()))
	if resp := s.request(http.MethodDelete, status, "other", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("DELETE by another owner: %s", resp.Status)
	}
	if resp := s.request(http.MethodDelete, status, "everything", nil); resp.StatusCode != http.StatusAccepted {
		t.Fatalf("DELETE: %s", resp.Status)
	}
	for what, url := range map[string]string{"status": status, "file": m.Output[0].URL} {
		if got := s.answer(url); got != never {
			t.Errorf("%s after the cancel: %s\nwant %s", what, got, never)
		}
	}
	if resp := s.request(http.MethodDelete, status, "everything", nil); resp.StatusCode != http.StatusNotFound {
		t.Errorf("second DELETE: %s", resp.Status)
	}
	check.Must(t, passes.Expire(t.Context()))
	s.awaitPurge(status)
	if keys := s.objectKeys(); len(keys) != 0 {
		t.Errorf("left in the bucket: %v", keys)
	}
	uploads := 0
	check.Must(t, s.store().Uploads(t.Context(), func(objects.Upload) error { uploads++; return nil }))
	if uploads != 0 {
		t.Errorf("%d unfinished uploads are left", uploads)
	}
}

// answer is a response as a client sees it: status, headers except Date and X-Request-Id, and body.
func (s *stack) answer(url string) string {
	s.t.Helper()
	resp := s.request(http.MethodGet, url, "everything", nil)
	body, err := io.ReadAll(resp.Body)
	check.Must(s.t, err)
	header := resp.Header.Clone()
	header.Del("Date")
	header.Del("X-Request-Id")
	var b strings.Builder
	b.WriteString(resp.Status + "\n")
	check.Must(s.t, header.Write(&b))
	return b.String() + string(body)
}
