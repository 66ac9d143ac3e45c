package model

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"pgregory.net/rapid"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobs"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
)

// The settings of the model's services. They are small, so that few steps reach each limit.
const (
	silence     = 6 * time.Second
	noteEvery   = 3 * time.Second // a scheduler that notes less often counts as an outage
	retention   = time.Hour
	maxAge      = 72 * time.Hour
	maxAttempts = 3
	outstanding = 2 // units of a job that are issued at once
	liveJobs    = 2 // of an owner
)

// servers are used by all histories, one after another.
type servers struct {
	url     string
	raw     *redis.Client // without faults
	objects *objects.Store
	audit   *audit.Log
}

func openServers(t *testing.T) *servers {
	s := &servers{url: testenv.Redis(t)}
	options, err := redis.ParseURL(s.url)
	must(t, err)
	s.raw = redis.NewClient(options)
	s3 := testenv.ObjectStore(t)
	s.objects, err = objects.Open(objects.Config{
		Endpoint: s3.Endpoint, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	})
	must(t, err)
	must(t, s.objects.EnsureBucket(t.Context()))
	s.audit, err = audit.Open(audit.Config{
		Path: filepath.Join(t.TempDir(), "audit.ndjson"), Process: "scheduler", Now: time.Now,
	})
	must(t, err)
	t.Cleanup(func() { s.objects.Close(); _, _ = s.raw.Close(), s.audit.Close() })
	return s
}

// world is one history: the services on an empty Redis and an empty bucket, and what the model knows.
type world struct {
	*servers
	t     *rapid.T
	ctx   context.Context
	clock *testenv.Clock
	link  *link

	store     *jobstore.Store
	queue     *queue.Client
	lifecycle *jobs.Lifecycle // of the API and the workers
	scheduler *maintenance.Runner

	jobs    []*job
	workers []*worker
	acting  *worker // whose step it is, if it is one of a worker
	nested  bool    // the step interrupts another one
	fair    bool    // there are no faults any more
	crooked bool    // the step had a fault

	interrupted bool // the last step was interrupted by one of another actor
	tokens      int  // of claims so far

	seen   *view
	ledger ledger
}

func newWorld(t *rapid.T, s *servers) *world {
	w := &world{
		servers: s, t: t, ctx: t.Context(), link: &link{fault: fault{kind: none, at: -1}}, ledger: newLedger(),
		clock: testenv.NewClock(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)), // the bucket's objects are older
	}
	must(t, s.raw.FlushDB(w.ctx).Err())
	for _, key := range w.bucket("") { // of a history that failed
		must(t, s.objects.Delete(w.ctx, key))
	}
	var err error
	w.store, err = jobstore.Open(s.url, w.clock.Now, redisclient.WithHook(w.link))
	must(t, err)
	w.queue, err = queue.Open(s.url, redisclient.WithHook(w.link))
	must(t, err)
	t.Cleanup(func() { _, _ = w.store.Close(), w.queue.Close() })
	settings := jobs.Settings{Outstanding: outstanding, Retention: retention}
	w.lifecycle = &jobs.Lifecycle{
		Store: w.store, Queue: w.queue, Objects: s.objects, Audit: s.audit, Now: w.clock.Now, Settings: settings,
	}
	cfg := envconfig.Defaults[maintenance.Config]()
	cfg.Silence, cfg.MaxAge, cfg.SweepGrace, cfg.RestoreGrace, cfg.Settings = silence, maxAge, 0, 0, settings
	w.scheduler, err = maintenance.New(cfg, maintenance.Deps{
		Jobs: w.store, Queue: w.queue, Objects: s.objects, Audit: s.audit, Now: w.clock.Now,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Registry: prometheus.NewRegistry(),
	})
	must(t, err)
	for _, name := range []string{"w1", "w2", "w3"} {
		w.workers = append(w.workers, &worker{name: name})
	}
	w.note()
	w.seen, err = read(w.ctx, w.raw, nil)
	must(t, err)
	return w
}

// job is a kick-off.
type job struct {
	id      export.JobID
	owner   export.Owner
	request export.Request
	asked   bool // for some patients
	hidden  bool // its owner got a 404
	ended   bool // it was not live at the last look
	removed bool // it was there, and is gone
}

// note is the scheduler's note that Redis can be reached.
func (w *world) note() {
	if w.link.away {
		return
	}
	if now := w.clock.Now(); now.Sub(w.ledger.noted) > noteEvery {
		w.ledger.over = now
	}
	w.ledger.noted = w.clock.Now()
	must(w.t, w.store.NoteReachable(w.ctx))
}

// perform carries out a step that makes about as many calls to Redis, perhaps with a fault, and then looks at the keys.
func (w *world) perform(by step, calls int, do func() error) error {
	fault, made, crooked := w.link.fault, w.link.calls, w.crooked
	w.link.fault, w.link.calls = w.drawFault(by, calls), 0
	w.crooked = w.link.away || w.link.fault.kind != none
	dies, interrupted := w.link.fault.dies, w.link.fault.kind == interlude
	err := do()
	dies = dies && w.link.calls > w.link.fault.at
	if !w.crooked && unavailable(err) {
		w.t.Fatalf("%s: %v, although every call was answered", by, err)
	}
	w.link.fault, w.link.calls, w.crooked = fault, made, crooked
	w.interrupted = interrupted
	w.observe(by)
	if dies && w.acting != nil {
		w.die(w.acting)
	}
	return err
}

func (w *world) drawFault(by step, calls int) fault {
	if w.fair || w.nested || w.link.away {
		return fault{kind: none, at: -1}
	}
	kinds := []string{none, none, none, none, none, lostAnswer, lostRequest, repeated}
	if calls > 1 {
		kinds = append(kinds, interlude)
	}
	f := fault{kind: rapid.SampledFrom(kinds).Draw(w.t, "fault"), at: -1}
	switch f.kind {
	case none:
		return f
	case interlude:
		f.at = rapid.IntRange(1, calls-1).Draw(w.t, "before call")
		f.lost = rapid.SampledFrom([]string{none, lostRequest, lostAnswer, none}).Draw(w.t, "then")
	default:
		f.at = rapid.IntRange(0, calls-1).Draw(w.t, "call")
	}
	if f.kind == lostAnswer || f.kind == lostRequest {
		f.dies = rapid.Bool().Draw(w.t, "dies")
	}
	f.then = func() {
		acting := w.acting
		w.observe(by)
		w.nested = true
		for range rapid.IntRange(1, 3).Draw(w.t, "steps") {
			w.step()
		}
		w.nested, w.acting = false, acting
	}
	return f
}

// bucket lists the keys of the job's objects, or of all jobs for "".
func (w *world) bucket(id export.JobID) (keys []string) {
	prefix := export.JobsPrefix
	if id != "" {
		prefix = export.JobPrefix(id)
	}
	must(w.t, w.objects.List(w.ctx, prefix, func(object objects.Info) error {
		keys = append(keys, object.Key)
		return nil
	}))
	return keys
}

func (w *world) put(key, text string) objects.Stored {
	object := w.objects.Create(w.ctx, key, "application/x-ndjson")
	_, err := object.Write([]byte(text))
	must(w.t, err)
	stored, err := object.Commit()
	must(w.t, err)
	return stored
}

func must(t interface {
	Helper()
	Fatal(...any)
}, err error,
) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
