package jobs

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func newLifecycle(t *testing.T) *Lifecycle {
	t.Helper()
	return newLifecycleOn(t, testenv.Redis(t))
}

func newLifecycleOn(t *testing.T, url string) *Lifecycle {
	t.Helper()
	s3 := testenv.ObjectStore(t)
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
	id, err := l.Start(t.Context(), newJob(), nil, jobstore.Admission{Limit: 5}, func(export.JobID) error { return nil })
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
	if _, err := l.Start(t.Context(), job, nil, jobstore.Admission{Limit: 5}, func(export.JobID) error { return full }); !errors.Is(err, full) {
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

// A full Redis refuses the tasks of purges, and only purges make room.
func TestAFullRedisIsEmptiedByPurges(t *testing.T) {
	url := testenv.RedisServer(t, "--maxmemory-policy", "noeviction")
	l := newLifecycleOn(t, url)
	queued := l.started(t) // its purge is in the queue already
	queueErr, err := l.Cancel(t.Context(), queued)
	must(t, errors.Join(queueErr, err))
	id := l.started(t)
	options, err := redis.ParseURL(url)
	must(t, err)
	server := redis.NewClient(options)
	t.Cleanup(func() { _ = server.Close() })
	must(t, server.ConfigSet(t.Context(), "maxmemory", "1").Err()) // less than it uses
	queueErr, err = l.Cancel(t.Context(), id)
	if err != nil || !redisclient.Full(queueErr) {
		t.Fatalf("cancel: %v, its purge: %v; want only the purge to be refused", err, queueErr)
	}
	_, err = l.ExpireDue(t.Context(), true)
	must(t, err)
	for _, id := range []export.JobID{queued, id} {
		if _, err := l.Store.Job(t.Context(), id); !errors.Is(err, export.ErrNotFound) {
			t.Errorf("the job: %v", err)
		}
		must(t, l.Objects.List(t.Context(), export.JobPrefix(id), func(objects.Info) error { return errNotEmpty }))
	}
}

// A kick-off whose confirmation is lost may have been confirmed, and an identical one may have joined its job.
func TestAConfirmedKickOffIsNotUndone(t *testing.T) {
	l := newLifecycle(t)
	id := l.started(t)
	lost := errors.New("the answer was lost")
	if got, err := l.undo(t.Context(), export.Job{ID: id}, lost); got != id || err != nil {
		t.Errorf("undo of a confirmed job: %q, %v", got, err)
	}
	job := newJob()
	_, err := l.Store.Create(t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: 5})
	must(t, err)
	for range 2 { // the second time there is no record
		if got, err := l.undo(t.Context(), job, lost); got != "" || !errors.Is(err, lost) {
			t.Errorf("undo of an unconfirmed job: %q, %v", got, err)
		}
	}
	if err := l.Store.Queued(t.Context(), job.ID); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a late confirmation: %v", err)
	}
}

// The list of the asked patients is stored before the plan can run. If the job cannot be started, neither is left.
func TestAKickOffStoresItsPatients(t *testing.T) {
	l := newLifecycle(t)
	job, patients := newJob(), []string{"a", "b"}
	id, err := l.Start(t.Context(), job, patients, jobstore.Admission{Limit: 5}, func(export.JobID) error { return nil })
	must(t, err)
	stored, err := l.Store.Job(t.Context(), id)
	must(t, err)
	object, err := l.Objects.Open(t.Context(), export.AskedKey(id), 0, -1)
	must(t, err)
	text, err := io.ReadAll(object)
	must(t, errors.Join(err, object.Close()))
	want := export.Asked{Key: export.AskedKey(id), Patients: 2, SHA256: fmt.Sprintf("%x", sha256.Sum256(text))}
	if string(text) != "a\nb\n" || stored.Request.Asked == nil || *stored.Request.Asked != want {
		t.Errorf("%q is described as %+v, want %+v", text, stored.Request.Asked, want)
	}

	must(t, l.Queue.Close())
	lost := newJob()
	if _, err := l.Start(t.Context(), lost, patients, jobstore.Admission{Limit: 5}, func(export.JobID) error { return nil }); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("a start without a queue: %v", err)
	}
	must(t, l.Objects.List(t.Context(), export.JobPrefix(lost.ID), func(objects.Info) error { return errNotEmpty }))
	if _, err := l.Store.Job(t.Context(), lost.ID); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("the job: %v", err)
	}
}

// A wrong clock of one machine must not expire jobs.
func TestASchedulerThatIsAheadExpiresNothing(t *testing.T) { // spec 6
	l := newLifecycle(t)
	id := l.started(t)
	must(t, l.FailJob(t.Context(), id, "it broke")) // expires in an hour
	l.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	expired, err := l.ExpireDue(t.Context(), false)
	must(t, err)
	if job, err := l.Store.Job(t.Context(), id); len(expired) > 0 || err != nil || job.State != export.Failed {
		t.Errorf("expired %d, the job is %s (%v)", len(expired), job.State, err)
	}
}

func TestAWrongClockDoesNotShortenTheRetention(t *testing.T) { // spec 6
	l := newLifecycle(t)
	id := l.started(t)
	l.Now = func() time.Time { return time.Now().Add(-2 * time.Hour) }
	must(t, l.FailJob(t.Context(), id, "it broke")) // expires in an hour
	job, err := l.Store.Job(t.Context(), id)
	must(t, err)
	if !job.Visible(time.Now()) {
		t.Errorf("it is over at %v", job.Expires)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
