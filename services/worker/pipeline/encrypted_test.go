package pipeline_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

// TestAPartThatAnOldWorkerWroteInPlaintext: a worker without encryption writes a part of an encrypted job, as during a
// rollout. The job fails instead of listing a file that the API refuses to serve.
func TestAPartThatAnOldWorkerWroteInPlaintext(t *testing.T) {
	t.Parallel()
	for name, old := range map[string]func(task queue.Task) bool{
		"none":  func(queue.Task) bool { return false },
		"plan":  func(task queue.Task) bool { return task.Kind == export.KindPlan },
		"units": func(task queue.Task) bool { return task.Kind == export.KindExport },
		"both":  func(task queue.Task) bool { return task.Kind == export.KindPlan || task.Kind == export.KindExport },
	} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			fx := newFixture(t, all, members...)
			plain := fx.worker()
			fx.encrypt(func(context.Context, string) ([]byte, error) { return make([]byte, 32), nil })
			fresh := fx.worker()
			job := export.Job{
				ID: export.NewJobID(), State: export.Scheduled, Created: instant, Owner: owner, Key: []byte("wrapped"),
				Request: export.Request{URL: "https://x/fhir/Group/g/$export", GroupID: groupID, Types: []string{"Patient"}},
			}
			fx.record(job)
			done := fx.drive(job.ID, func(task queue.Task) {
				w := fresh
				if old(task) {
					w = plain
				}
				must(t, w.Handle(t.Context(), task))
			})
			if name == "none" {
				fx.outcome(done).wantLines(t, patient(1), patient(2), patient(3))
				return
			}
			if done.State != export.Failed || done.Manifest != "" {
				t.Errorf("the job is %s with manifest %q, want it failed", done.State, done.Manifest)
			}
			if name == "both" && !strings.Contains(done.Failure, "encryption") {
				t.Errorf("it failed because %q, which does not name the reason", done.Failure)
			}
		})
	}
}

// encrypt replaces the fixture's store with one that encrypts with the keys.
func (fx *fixture) encrypt(keys objects.Keys) {
	fx.t.Helper()
	cfg := fx.place
	cfg.Keys = keys
	store, err := objects.Open(cfg)
	must(fx.t, err)
	fx.t.Cleanup(fx.objects.Close)
	fx.objects = store
}

// The keys of objects are in Redis, and a unit needs one for each object.
func TestTheKeysOfObjectsWaitForRedis(t *testing.T) {
	t.Parallel()
	log := &testenv.Buffer{}
	down := true
	asked, pinged := 0, 0
	keys := pipeline.OutlastKeys(func(context.Context, string) ([]byte, error) {
		if asked++; asked < 3 {
			return nil, export.ErrUnavailable
		}
		return []byte("key"), nil
	}, func(context.Context) error {
		pinged++
		if down {
			down = false
			return export.ErrUnavailable
		}
		return nil
	}, slog.New(slog.NewTextHandler(log, nil)))
	if key, err := keys(t.Context(), "object"); string(key) != "key" || err != nil || asked != 3 || pinged != 2 {
		t.Errorf("%q, %v after %d lookups and %d pings", key, err, asked, pinged)
	}
	unknown := func(context.Context, string) ([]byte, error) { return nil, export.ErrUnavailable }
	reachable := func(context.Context) error { return nil }
	if _, err := pipeline.OutlastKeys(unknown, reachable, nil)(t.Context(), "object"); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("a master key that the worker does not have: %v", err)
	}
}
