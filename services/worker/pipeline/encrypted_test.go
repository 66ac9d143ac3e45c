package pipeline_test

import (
	"context"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
)

// TestAPartThatAnOldWorkerWroteInPlaintext has units of an encrypted job done by a worker that knows no encryption, as in
// an update that has not reached all of them: the job fails instead of listing a file that nobody may read.
func TestAPartThatAnOldWorkerWroteInPlaintext(t *testing.T) {
	for name, old := range map[string]func(task queue.Task) bool{
		"none":  func(queue.Task) bool { return false },
		"plan":  func(task queue.Task) bool { return task.Kind == export.KindPlan },
		"units": func(task queue.Task) bool { return task.Kind == export.KindExport },
		"both":  func(task queue.Task) bool { return task.Kind == export.KindPlan || task.Kind == export.KindExport },
	} {
		t.Run(name, func(t *testing.T) {
			all, _, _ := clinical(t)
			b := newBench(t, all, members...)
			plain := b.worker()
			b.encrypt(func(context.Context, string) ([]byte, error) { return make([]byte, 32), nil })
			fresh := b.worker()
			job := export.Job{
				ID: export.NewJobID(), State: export.Scheduled, Created: instant, Owner: owner, Key: []byte("wrapped"),
				Request: export.Request{URL: "https://x/fhir/Group/g/$export", GroupID: groupID, Types: []string{"Patient"}},
			}
			must(t, b.jobs.Create(t.Context(), job, export.FirstUnit()))
			done := b.drive(job.ID, func(task queue.Task) {
				w := fresh
				if old(task) {
					w = plain
				}
				must(t, w.Handle(t.Context(), task))
			})
			if name == "none" {
				b.outcome(done).wantLines(t, patient(1), patient(2), patient(3))
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

// encrypt puts a store in the place of the bench's that encrypts with the keys.
func (b *bench) encrypt(keys objects.Keys) {
	b.t.Helper()
	cfg := b.place
	cfg.Keys = keys
	store, err := objects.Open(cfg)
	must(b.t, err)
	b.t.Cleanup(b.objects.Close)
	b.objects = store
}
