package jobs

import (
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func newLifecycle(t *testing.T) *Lifecycle {
	t.Helper()
	url, s3 := testenv.Redis(t), testenv.ObjectStore(t)
	store, err := jobstore.Open(url, nil)
	must(t, err)
	tasks, err := queue.Open(url)
	must(t, err)
	bucket, err := objects.Open(objects.Config{
		Endpoint: s3.Endpoint, AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	})
	must(t, err)
	must(t, bucket.EnsureBucket(t.Context()))
	events, err := audit.Open(audit.Config{
		Path: filepath.Join(t.TempDir(), "audit.ndjson"), Process: "scheduler", Now: time.Now,
	})
	must(t, err)
	t.Cleanup(func() { bucket.Close(); _, _, _ = store.Close(), tasks.Close(), events.Close() })
	return &Lifecycle{
		Store: store, Queue: tasks, Objects: bucket, Audit: events, Now: time.Now, Settings: Settings{Retention: time.Hour},
	}
}

func newJob() export.Job {
	return export.Job{
		ID: export.NewJobID(), State: export.Scheduled, Created: time.Now(), Owner: export.Owner{Issuer: "i", Subject: "s"},
		Request: export.Request{GroupID: "g", Types: []string{"Patient"}},
	}
}

// started creates a job with two objects in the bucket.
func (l *Lifecycle) started(t *testing.T) export.JobID {
	t.Helper()
	id, _, err := l.Start(t.Context(), newJob(), jobstore.Admission{Limit: 5}, func(export.JobID) error { return nil })
	must(t, err)
	for _, key := range []string{export.FileKey(id, "Patient", "Patient.u.1.0.ndjson"), export.CohortPrefix(id, 1) + "chunk"} {
		object := l.Objects.Create(t.Context(), key, "text/plain")
		_, err := object.Write([]byte("x"))
		must(t, err)
		_, err = object.Commit()
		must(t, err)
	}
	return id
}

func TestAPurgeKilledBetweenAnyTwoSteps(t *testing.T) { // spec 6
	l := newLifecycle(t)
	for done := range len(l.purgeSteps("")) + 1 {
		id := l.started(t)
		queueErr, err := l.Cancel(t.Context(), id)
		must(t, errors.Join(queueErr, err))
		for _, step := range l.purgeSteps(id)[:done] { // the process dies after these
			must(t, step(t.Context()))
		}
		_, err = l.Purge(t.Context(), id)
		must(t, err)
		must(t, l.Objects.List(t.Context(), export.JobPrefix(id), func(objects.Info) error { return errNotEmpty }))
		if _, err := l.Store.Job(t.Context(), id); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("killed after %d steps: %v", done, err)
		}
		due, err := l.Store.Due(t.Context(), time.Now(), 0, 10)
		must(t, err)
		if len(due) != 0 {
			t.Errorf("killed after %d steps: due %v", done, due)
		}
	}
}

func TestAJobThatCannotBeRecordedInTheAuditLogIsNotStarted(t *testing.T) {
	l := newLifecycle(t)
	job, full := newJob(), errors.New("the disk is full")
	if _, _, err := l.Start(t.Context(), job, jobstore.Admission{Limit: 5}, func(export.JobID) error { return full }); !errors.Is(err, full) {
		t.Errorf("start: %v", err)
	}
	if _, err := l.Store.Job(t.Context(), job.ID); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("the job: %v", err)
	}
}

func TestAFailedJobKeepsItsReasonAndLosesItsFiles(t *testing.T) {
	l := newLifecycle(t)
	id := l.started(t)
	must(t, l.FailJob(t.Context(), id, "it broke"))
	if purged, err := l.Purge(t.Context(), id); purged || err != nil {
		t.Errorf("purged %v, %v", purged, err)
	}
	must(t, l.Objects.List(t.Context(), export.JobPrefix(id), func(objects.Info) error { return errNotEmpty }))
	if job, err := l.Store.Job(t.Context(), id); err != nil || job.Failure != "it broke" {
		t.Errorf("%+v, %v", job, err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
