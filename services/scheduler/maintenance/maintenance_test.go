package maintenance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/objects/objectstest"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

const week = 168 * time.Hour

// world is a Runner on real servers, with a clock that the test moves.
type world struct {
	*Runner
	t     *testing.T
	redis *redis.Client
	proxy *objectstest.Proxy
	ms    *atomic.Int64
	url   string

	events  *audit.Log
	auditAt string
	calls   atomic.Int64 // round trips to Redis
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, ms: &atomic.Int64{}}
	w.ms.Store(time.Now().Add(time.Hour).UnixMilli()) // the store's own clock stamps objects before this
	now := func() time.Time { return time.UnixMilli(w.ms.Load()).UTC() }

	url := testenv.Redis(t)
	w.url = url
	observed := redisclient.WithObserver(func(string, time.Time, error) { w.calls.Add(1) })
	jobs, err := jobstore.Open(url, now, observed)
	w.must(err)
	tasks, err := queue.Open(url, observed)
	w.must(err)
	opts, err := redis.ParseURL(url)
	w.must(err)
	w.redis = redis.NewClient(opts)
	t.Cleanup(func() { _, _, _ = jobs.Close(), tasks.Close(), w.redis.Close() })

	s3 := testenv.ObjectStore(t)
	w.proxy = objectstest.NewProxy(t, s3.Endpoint)
	store, err := objects.Open(objects.Config{
		Endpoint: w.proxy.Endpoint(), AccessKey: s3.AccessKey, SecretKey: s3.SecretKey, Bucket: s3.Bucket,
	})
	w.must(err)
	w.must(store.EnsureBucket(t.Context()))

	cfg := envconfig.Defaults[Config]()
	cfg.SweepGrace, cfg.RestoreGrace = 0, 0
	w.must(w.redis.HSet(t.Context(), "sluice:outage", "born", 1).Err())
	w.auditAt = filepath.Join(t.TempDir(), "audit.ndjson")
	w.events, err = audit.Open(audit.Config{Path: w.auditAt, Process: "scheduler", Now: now})
	w.must(err)
	t.Cleanup(func() { w.must(w.events.Close()) })
	w.Runner, err = New(cfg, Deps{
		Jobs: jobs, Queue: tasks, Objects: store, Audit: w.events, Now: now,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)), Registry: prometheus.NewRegistry(),
	})
	w.must(err)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) set(now time.Time) { w.ms.Store(now.UnixMilli()) }

// job creates a job with seven files in the given state. A finished one expires in a week.
func (w *world) job(state export.State) export.JobID {
	w.t.Helper()
	ctx := w.t.Context()
	id := export.NewJobID()
	_, err := w.Jobs.Create(ctx, export.Job{
		ID: id, State: export.Scheduled, Created: w.Now(), Owner: export.Owner{Issuer: "i", Subject: "s"},
		Request: export.Request{GroupID: "g", Types: []string{"Patient"}},
	}, export.FirstUnit(), jobstore.Admission{Limit: 1000})
	w.must(err)
	w.must(w.Jobs.Queued(ctx, id))
	var files []export.File
	for n := range 7 {
		name := export.FileName("Patient-00000", w.fence(), "Patient", n)
		files = append(files, export.File{Name: name, Type: "Patient", Key: export.FileKey(id, "Patient", name), Count: 1})
		w.put(files[n].Key)
	}
	w.put(export.CohortPrefix(id, w.fence()) + "chunk-000000")
	w.put(export.ManifestKey(id, w.fence()))
	seal := export.Unit{ID: export.SealUnit, Kind: export.KindSeal}
	switch state {
	case export.Completed, export.Expired, export.Cancelled:
		plan := w.claim(id, export.PlanUnit, export.KindPlan)
		unit := export.Unit{ID: "Patient-00000", Kind: export.KindExport, Type: "Patient"}
		w.must(w.Jobs.Stage(ctx, plan, []export.Unit{unit}))
		w.must(w.Jobs.Commit(ctx, plan, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: w.Now()}, Next: seal}))
		_, err = w.Jobs.Issue(ctx, id, 10)
		w.must(err)
		w.must(w.Jobs.Commit(ctx, w.claim(id, unit.ID, unit.Kind), jobstore.Commit{
			Result: export.Result{Files: files}, Next: seal,
		}))
		_, err = w.Jobs.Issue(ctx, id, 10)
		w.must(err)
		w.must(w.Jobs.Commit(ctx, w.claim(id, export.SealUnit, export.KindSeal), jobstore.Commit{
			Seal: &jobstore.Seal{Manifest: export.ManifestKey(id, w.fence()), Finished: w.Now(), Expires: w.Now().Add(week)},
		}))
		if state == export.Cancelled {
			w.must(w.Jobs.Cancel(ctx, id, w.Now()))
		}
		if state == export.Expired {
			w.must(w.Jobs.Expire(ctx, id, w.Now()))
		}
	case export.Failed:
		w.must(w.Jobs.FailJob(ctx, id, "it broke", w.Now(), w.Now().Add(week)))
	default:
	}
	return id
}

// fence is that of a claim now.
func (w *world) fence() int64 { return w.Now().UnixMilli() }

func (w *world) claim(id export.JobID, unit export.UnitID, kind export.Kind) export.Lease {
	w.t.Helper()
	lease, err := w.Jobs.Claim(w.t.Context(), id, unit, kind, 1, "")
	w.must(err)
	return lease
}

func (w *world) put(key string) {
	w.t.Helper()
	object := w.Objects.Create(w.t.Context(), key, "text/plain")
	_, err := object.Write([]byte("x"))
	w.must(err)
	_, err = object.Commit()
	w.must(err)
}

// keys returns the keys of the bucket and the keys of jobs in Redis.
func (w *world) keys() (objectKeys, redisKeys []string) {
	w.t.Helper()
	w.must(w.Objects.List(w.t.Context(), "", func(o objects.Info) error { objectKeys = append(objectKeys, o.Key); return nil }))
	all, err := w.redis.Keys(w.t.Context(), "sluice:*").Result()
	w.must(err)
	// What is known of Redis and the totals of all jobs stay, and the mark of a removal stays for some minutes.
	all = slices.DeleteFunc(all, func(key string) bool {
		return key == "sluice:committed" || key == "sluice:outage" || strings.HasSuffix(key, "}:removed")
	})
	return objectKeys, all
}

// expireAndPurge runs an expire pass and the purges that it queues.
func (w *world) expireAndPurge(ctx context.Context) error {
	w.t.Helper()
	return errors.Join(w.Expire(ctx), w.purgeQueued(ctx))
}

// purgeQueued runs the queued purges.
func (w *world) purgeQueued(ctx context.Context) error {
	w.t.Helper()
	var errs []error
	for {
		task, err := w.redis.RPop(w.t.Context(), "asynq:{upkeep}:pending").Result()
		if errors.Is(err, redis.Nil) {
			return errors.Join(errs...)
		}
		w.must(err)
		w.must(w.redis.Del(w.t.Context(), "asynq:{upkeep}:t:"+task).Err())
		errs = append(errs, w.Purge(ctx, export.JobID(strings.TrimPrefix(task, "purge:"))))
	}
}

func (w *world) nothingLeft(what string) {
	w.t.Helper()
	objectKeys, redisKeys := w.keys()
	if len(objectKeys) > 0 || len(redisKeys) > 0 {
		w.t.Errorf("%s: left in the bucket %v, in Redis %v", what, objectKeys, redisKeys)
	}
}

func TestRetentionToTheSecond(t *testing.T) { // spec 6
	w := newWorld(t)
	start := w.Now()
	id := w.job(export.Completed)
	expires := start.Add(week)

	w.set(expires.Add(-time.Second))
	w.must(w.expireAndPurge(t.Context()))
	job, err := w.Jobs.Job(t.Context(), id)
	w.must(err)
	objectKeys, _ := w.keys()
	if !job.Visible(w.Now()) || job.State != export.Completed || len(objectKeys) != 9 {
		t.Fatalf("a second before: %s, %d objects", job.State, len(objectKeys))
	}

	w.set(expires)
	if job.Visible(w.Now()) {
		t.Error("at seven days the job is still visible, before any sweep")
	}
	w.must(w.expireAndPurge(t.Context()))
	w.nothingLeft("after the sweep")
	w.must(w.expireAndPurge(t.Context())) // again, with nothing to do
}

func TestEveryEndedJobIsPurgedInTime(t *testing.T) { // spec 6, pitfalls 15, 16
	for _, state := range []export.State{export.Cancelled, export.Expired} {
		w := newWorld(t)
		w.job(state)
		w.must(w.expireAndPurge(t.Context()))
		w.nothingLeft(string(state))
	}
	w := newWorld(t)
	id := w.job(export.Failed)
	w.must(w.expireAndPurge(t.Context()))
	if job, err := w.Jobs.Job(t.Context(), id); err != nil || !job.Visible(w.Now()) {
		t.Errorf("a failed job stays for its retention: %v %v", job.State, err)
	}
	w.set(w.Now().Add(week))
	w.must(w.expireAndPurge(t.Context()))
	w.nothingLeft("failed")
}

func TestAPurgeKilledWithinAStep(t *testing.T) {
	t.Run("while objects are deleted", func(t *testing.T) {
		for requests := 1; requests < 12; requests += 2 {
			w := newWorld(t)
			w.job(export.Cancelled)
			left := atomic.Int64{}
			left.Store(int64(requests))
			w.proxy.OnReply(func(*http.Response) error {
				if left.Add(-1) < 0 {
					return errors.New("the machine has died")
				}
				return nil
			})
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			_ = w.expireAndPurge(ctx) // the proxy decides where it fails
			cancel()
			w.proxy.Mend()
			if _, redisKeys := w.keys(); len(redisKeys) == 0 {
				if objectKeys, _ := w.keys(); len(objectKeys) > 0 {
					t.Fatalf("the record was removed while objects are left: %v", objectKeys)
				}
			}
			w.must(w.expireAndPurge(t.Context()))
			w.nothingLeft("after the second purge")
		}
	})
	t.Run("after the record, before the index", func(t *testing.T) {
		w := newWorld(t)
		id := w.job(export.Cancelled)
		keys, err := w.redis.Keys(t.Context(), "sluice:{"+string(id)+"}:*").Result()
		w.must(err)
		w.must(w.redis.Unlink(t.Context(), keys...).Err())
		w.must(w.expireAndPurge(t.Context()))
		w.nothingLeft("after the second purge")
	})
	t.Run("ended, but not filed as due", func(t *testing.T) {
		for _, state := range []export.State{export.Cancelled, export.Completed, export.Failed} {
			w := newWorld(t)
			id := w.job(state)
			w.must(w.redis.ZRem(t.Context(), "sluice:jobs:due", string(id)).Err())
			w.must(w.redis.ZAdd(t.Context(), "sluice:jobs:active",
				redis.Z{Score: float64(w.Now().UnixMilli()), Member: string(id)}).Err())
			w.set(w.Now().Add(week + time.Hour))
			w.must(w.Rescue(t.Context()))
			w.must(w.expireAndPurge(t.Context()))
			w.nothingLeft(string(state))
		}
	})
	t.Run("entered, but never created", func(t *testing.T) {
		w := newWorld(t)
		w.must(w.redis.ZAdd(t.Context(), "sluice:jobs:active",
			redis.Z{Score: float64(w.Now().UnixMilli()), Member: string(export.NewJobID())}).Err())
		w.must(w.Rescue(t.Context()))
		if _, redisKeys := w.keys(); len(redisKeys) != 1 {
			t.Errorf("an entry that is a moment old may belong to a kick-off under way: %v", redisKeys)
		}
		w.set(w.Now().Add(refileAfter + time.Second))
		w.must(w.Rescue(t.Context()))
		w.nothingLeft("entry without a job")
	})
}

func TestTwoPurgesAtOnce(t *testing.T) {
	w := newWorld(t)
	id := w.job(export.Cancelled)
	errs := make(chan error, 4)
	for range 4 {
		go func() { errs <- w.Purge(t.Context(), id) }()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Errorf("purge: %v", err)
		}
	}
	w.nothingLeft("after four purges at once")
}

func TestPurgeLeavesALivingJobAlone(t *testing.T) {
	w := newWorld(t)
	failed := w.job(export.Failed)
	w.must(w.Purge(t.Context(), failed))
	if objectKeys, _ := w.keys(); len(objectKeys) != 0 {
		t.Errorf("a failed job keeps its reason, not its data: %v", objectKeys)
	}
	if exists, err := w.Jobs.Exists(t.Context(), failed); err != nil || !exists {
		t.Errorf("the reason why a job failed is gone (%v)", err)
	}
	for _, state := range []export.State{export.Scheduled, export.Completed} {
		id := w.job(state)
		w.must(w.Purge(t.Context(), id)) // a stray or forged task
		if exists, err := w.Jobs.Exists(t.Context(), id); err != nil || !exists {
			t.Errorf("%s: purged (%v)", state, err)
		}
	}
}

func TestASilentUnitIsRescued(t *testing.T) { // pitfalls 7, 11, 26, 27
	w := newWorld(t)
	id := w.job(export.Scheduled)
	fresh := w.claim(id, export.PlanUnit, export.KindPlan).Fence + 1
	w.set(w.Now().Add(w.cfg.Silence - time.Second))
	w.must(w.Rescue(t.Context()))
	if _, err := w.Jobs.Claim(t.Context(), id, export.PlanUnit, export.KindPlan, fresh, ""); !errors.Is(err, export.ErrFenced) {
		t.Fatalf("rescued before its silence was over: %v", err)
	}
	w.set(w.Now().Add(2 * time.Second))
	w.must(w.Rescue(t.Context()))
	lease, err := w.Jobs.Claim(t.Context(), id, export.PlanUnit, export.KindPlan, fresh, "")
	w.must(err)
	if lease.Failures != 1 {
		t.Errorf("attempt %d", lease.Failures)
	}
	tasks, err := w.redis.Keys(t.Context(), "asynq:*"+string(id)+"*").Result()
	w.must(err)
	if len(tasks) != 1 || !strings.HasSuffix(tasks[0], fmt.Sprintf(":plan:%d", fresh)) {
		t.Errorf("tasks in the queue: %v, want the plan at fence %d", tasks, fresh)
	}
}

// The passes note in Redis that it can be reached. After a gap, the workers could not send heartbeats either.
func TestARescueAfterAnOutageOfRedisWaitsForTheWorkers(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	for began := time.Now(); !w.redis.HExists(t.Context(), "sluice:outage", "seen").Val(); time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > 30*time.Second {
			t.Fatal("no note")
		}
	}
	stop()
	w.must(<-ended)
	id := w.job(export.Scheduled)
	lease := w.claim(id, export.PlanUnit, export.KindPlan)
	w.set(w.Now().Add(2 * w.cfg.Silence))
	w.must(w.Rescue(t.Context()))
	w.must(w.Jobs.Heartbeat(t.Context(), lease))
}

func TestAJobWhoseTaskWasLostIsEnqueuedAgain(t *testing.T) { // pitfall 7: enqueue and record are two steps
	w := newWorld(t)
	id := w.job(export.Scheduled) // the queue has lost its task
	w.set(w.Now().Add(time.Minute))
	w.must(w.Rescue(t.Context()))
	w.must(w.Rescue(t.Context())) // twice: still one task
	tasks, err := w.redis.Keys(t.Context(), "asynq:*"+string(id)+"*").Result()
	w.must(err)
	if len(tasks) != 1 || !strings.HasSuffix(tasks[0], ":plan:1") {
		t.Errorf("tasks in the queue: %v", tasks)
	}
}

// The client of a kick-off that was not confirmed has got an error, or none: its job must not run.
func TestAKickOffThatWasNotConfirmedIsRemoved(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	create := func() export.JobID {
		id := export.NewJobID()
		_, err := w.Jobs.Create(ctx, export.Job{
			ID: id, State: export.Scheduled, Created: w.Now().Add(-time.Hour), // the clock of the API is behind
			Request: export.Request{GroupID: "g", Types: []string{"Patient"}},
		}, export.FirstUnit(), jobstore.Admission{Limit: 1000})
		w.must(err)
		return id
	}
	unconfirmed, begun := create(), create()
	w.claim(begun, export.PlanUnit, export.KindPlan)
	exists := func(id export.JobID) bool {
		there, err := w.Jobs.Exists(ctx, id)
		w.must(err)
		return there
	}
	w.set(w.Now().Add(unconfirmedAfter - time.Second))
	w.must(w.Rescue(ctx))
	if !exists(unconfirmed) {
		t.Error("it was removed while its kick-off may still run")
	}
	w.set(w.Now().Add(2 * time.Second))
	w.must(w.Rescue(ctx))
	if exists(unconfirmed) || !exists(begun) {
		t.Errorf("unconfirmed: %t, begun: %t; want only the second", exists(unconfirmed), exists(begun))
	}
	if err := w.Jobs.Queued(ctx, unconfirmed); !errors.Is(err, export.ErrNotFound) {
		t.Errorf("a late confirmation: %v", err)
	}
}

// A Redis that has lost its data may be restored: until then its jobs' objects are kept.
func TestAnEmptyRedisDeletesNothingForADay(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.cfg.RestoreGrace = 24 * time.Hour
	w.set(w.Now().Add(2 * w.cfg.RestoreGrace))
	id := w.job(export.Completed)
	before, _ := w.keys()
	w.must(w.redis.FlushDB(ctx).Err())
	w.must(w.Sweep(ctx)) // before a scheduler has noted that Redis can be reached
	w.must(w.Jobs.NoteReachable(ctx))
	w.must(w.Purge(ctx, id)) // that of a worker which found no job
	w.set(w.Now().Add(w.cfg.RestoreGrace - time.Second))
	w.must(w.Sweep(ctx))
	if after, _ := w.keys(); !slices.Equal(after, before) {
		t.Errorf("left %v of %v", after, before)
	}
	w.set(w.Now().Add(2 * time.Second))
	w.must(w.Sweep(ctx))
	if after, _ := w.keys(); len(after) > 0 {
		t.Errorf("left after a day: %v", after)
	}
}

// A large job has hundreds of units in the queue, which nobody has claimed.
func TestARescueLooksUpAllQueuedUnitsAtOnce(t *testing.T) {
	w := newWorld(t)
	w.lifecycle.Outstanding = rescueMost
	id := w.job(export.Scheduled)
	plan := w.claim(id, export.PlanUnit, export.KindPlan)
	var units []export.Unit
	for n := range rescueMost {
		units = append(units, export.Unit{
			ID: export.UnitID(fmt.Sprintf("Patient-%05d", n)), Kind: export.KindExport, Type: "Patient", Bytes: export.ShortBytes + 1,
		})
	}
	w.must(w.Jobs.Stage(t.Context(), plan, units))
	w.must(w.Jobs.Commit(t.Context(), plan, jobstore.Commit{Plan: &jobstore.Plan{Snapshot: w.Now()}}))
	w.must(w.Rescue(t.Context())) // issues and enqueues them
	lost := "asynq:{bulk}:t:" + string(id) + ":Patient-00007:1"
	w.must(w.redis.LRem(t.Context(), "asynq:{bulk}:pending", 1, string(id)+":Patient-00007:1").Err())
	w.must(w.redis.Del(t.Context(), lost).Err())
	w.set(w.Now().Add(w.cfg.Silence + time.Second))
	w.calls.Store(0)
	w.must(w.Rescue(t.Context()))
	if n := w.calls.Load(); n > 10 {
		t.Errorf("%d round trips for %d queued units", n, rescueMost)
	}
	if w.redis.Exists(t.Context(), lost).Val() != 1 {
		t.Error("the unit whose task was lost is not enqueued again")
	}
}

// rescueMost is how many silent units of a job one rescue takes.
const rescueMost = 200

func TestAUnitThatWasTakenAndNeverBegunIsRescued(t *testing.T) { // pitfalls 26, 27
	w := newWorld(t)
	id := w.job(export.Scheduled)
	task := queue.Task{Kind: export.KindPlan, Job: id, Unit: export.PlanUnit, Fence: 1}
	w.must(w.Queue.EnqueueUnit(t.Context(), task))
	// A worker takes the task and dies before it claims the unit: Asynq keeps the task active for up to two minutes.
	ctx, stop := context.WithCancel(t.Context())
	taken, ended := make(chan struct{}), make(chan error, 1)
	release := make(chan struct{})
	go func() {
		ended <- queue.Serve(ctx, queue.ServerConfig{URL: w.url, Concurrency: 1, Logger: w.Logger}, queue.Handlers{
			Unit: func(context.Context, queue.Task) error { close(taken); <-release; return nil },
		})
	}()
	<-taken
	w.set(w.Now().Add(w.cfg.Silence + time.Second))
	w.must(w.Rescue(t.Context()))
	if _, err := w.Jobs.Claim(t.Context(), id, export.PlanUnit, export.KindPlan, 1, ""); !errors.Is(err, export.ErrFenced) {
		t.Errorf("the old task can still claim: %v", err)
	}
	tasks, err := w.redis.Keys(t.Context(), "asynq:*"+string(id)+":plan:2").Result()
	if err != nil || len(tasks) != 1 {
		t.Errorf("tasks at the new fence: %v %v", tasks, err)
	}
	lease, err := w.Jobs.Claim(t.Context(), id, export.PlanUnit, export.KindPlan, 2, "")
	w.must(err)
	if lease.Failures != 0 {
		t.Errorf("attempt %d: nothing was attempted", lease.Failures)
	}
	close(release)
	stop()
	w.must(<-ended)
}

func TestAPassDoesNotRunTwiceAtOnce(t *testing.T) {
	w := newWorld(t)
	w.job(export.Cancelled)
	w.running.Store(passExpire, true)
	w.must(w.Pass(t.Context(), passExpire))
	w.must(w.purgeQueued(t.Context()))
	if objectKeys, _ := w.keys(); len(objectKeys) == 0 {
		t.Error("a second pass ran beside the first")
	}
	w.running.Delete(passExpire)
	w.must(w.Pass(t.Context(), passExpire))
	w.must(w.purgeQueued(t.Context()))
	w.nothingLeft("after the pass")
	if err := w.Pass(t.Context(), "something newer"); err == nil {
		t.Error("an unknown pass succeeded")
	}
	w.must(w.Pass(t.Context(), passExpire)) // it can run again
}

func TestAJobThatTakesTooLongFails(t *testing.T) { // pitfall 7
	w := newWorld(t)
	id := w.job(export.Scheduled)
	w.set(w.Now().Add(w.cfg.MaxAge + time.Second))
	w.must(w.Rescue(t.Context()))
	job, err := w.Jobs.Job(t.Context(), id)
	w.must(err)
	if job.State != export.Failed || job.Failure == "" || !job.Expires.Equal(w.Now().Add(week)) {
		t.Errorf("job: %+v", job)
	}
	purges, err := w.redis.Keys(t.Context(), "asynq:{upkeep}:t:purge:"+string(id)+":*").Result()
	if err != nil || len(purges) != 1 {
		t.Errorf("purges in the queue: %v %v, want one", purges, err)
	}
}

func TestTheSweepTakesOnlyWhatBelongsToNothing(t *testing.T) { // spec 6
	w := newWorld(t)
	ctx := t.Context()
	done, running, failed := w.job(export.Completed), w.job(export.Scheduled), w.job(export.Failed)
	stranger := export.NewJobID()
	gone := []string{
		export.FileKey(stranger, "Patient", export.FileName("Patient-00000", 1, "Patient", 0)), // no record
		export.CohortPrefix(stranger, 1) + "chunk-000000",
		export.AskedKey(stranger), export.AskedKey(done), export.AskedKey(failed), // lists of patients of kick-offs
		export.FileKey(done, "Patient", export.FileName("Patient-00000", 1, "Patient", 0)), // a lost attempt
		export.ManifestKey(done, 1),
		export.CohortPrefix(done, 1) + "chunk-000001", // scaffolding of an ended job
		export.ReferencesPrefix(done, "Patient-00000", 1) + "run-000000",
		export.FileKey(done, "Observation", export.FileName("Observation-00000", 1, "Observation", 0)), // of a unit that was given up
		export.FileKey(failed, "Patient", export.FileName("Patient-00000", 1, "Patient", 0)),           // its purge was never enqueued
	}
	kept := []string{
		export.FileKey(running, "Patient", export.FileName("Patient-00000", 2, "Patient", 0)),
		export.CohortPrefix(running, 1) + "chunk-000001",
		export.AskedKey(running),
		"somebody-elses/object",
		"jobs/not-a-job-id/object",
	}
	for _, key := range append(gone, kept...) {
		w.put(key)
	}
	w.must(w.Sweep(ctx))
	w.must(w.Sweep(ctx))
	objectKeys, _ := w.keys()
	there := map[string]bool{}
	for _, key := range objectKeys {
		there[key] = true
	}
	for _, key := range gone {
		if there[key] {
			t.Errorf("%s is still there", key)
		}
	}
	for _, key := range kept {
		if !there[key] {
			t.Errorf("%s is gone", key)
		}
	}
	if job, err := w.Jobs.Job(ctx, done); err != nil || !there[job.Manifest] {
		t.Errorf("the manifest of a completed job is gone (%v)", err)
	}
	for n := range 7 {
		if key := export.FileKey(done, "Patient", export.FileName("Patient-00000", w.fence(), "Patient", n)); !there[key] {
			t.Errorf("a listed file is gone: %s", key)
		}
	}
}

// A sweep of a million objects has to end within its time limit, and one that does not must not begin again.
func TestTheSweepLooksUpAThousandObjectsAtOnceAndContinues(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	done := w.job(export.Completed) // 9 objects, one of them scaffolding
	var puts errgroup.Group
	puts.SetLimit(16)
	orphans := export.JobID("bbbbbbbbbbbbbbbbbbbbbbbbbb")
	for n := range 2 * sweepBatch {
		puts.Go(func() error {
			object := w.Objects.Create(ctx, export.FileKey(orphans, "Patient", export.FileName("Patient-00000", 1, "Patient", n)), "")
			_, err := object.Commit()
			return err
		})
	}
	w.must(puts.Wait())
	// The store fails at the second delete.
	deletes := atomic.Int64{}
	w.proxy.OnReply(func(reply *http.Response) error {
		if reply.Request.URL.Query().Has("delete") && deletes.Add(1) > 1 {
			return errors.New("the store has gone")
		}
		return nil
	})
	if err := w.Sweep(ctx); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("a sweep during an outage: %v", err)
	}
	w.proxy.Mend()
	last, err := w.Jobs.Swept(ctx)
	w.must(err)
	if job, ours := export.JobOf(last); !ours || job != orphans {
		t.Errorf("the sweep stopped at %q", last)
	}
	early := export.ManifestKey("aaaaaaaaaaaaaaaaaaaaaaaaaa", 1)
	w.put(early)
	w.calls.Store(0)
	w.must(w.Sweep(ctx))
	if n := w.calls.Load(); n > 12 { // position, states, results; two or three batches and the uploads
		t.Errorf("%d round trips to Redis for %d objects", n, sweepBatch)
	}
	if keys, _ := w.keys(); len(keys) != 9 || !slices.Contains(keys, early) {
		t.Errorf("left %v, want the early orphan, which is behind the position, and 8 of job %s", keys, done)
	}
	w.must(w.Sweep(ctx))
	if keys, _ := w.keys(); len(keys) != 8 {
		t.Errorf("left %v, want what job %s lists", keys, done)
	}
}

func TestTheSweepSparesTheYoung(t *testing.T) {
	w := newWorld(t)
	w.cfg.SweepGrace = 48 * time.Hour
	key := export.ManifestKey(export.NewJobID(), 1)
	w.put(key)
	w.must(w.Sweep(t.Context()))
	if objectKeys, _ := w.keys(); len(objectKeys) != 1 {
		t.Error("an object younger than the grace was swept")
	}
	w.set(w.Now().Add(72 * time.Hour))
	w.must(w.Sweep(t.Context()))
	w.nothingLeft("an orphan older than the grace")
}

func TestTheSweepAbortsUnfinishedUploads(t *testing.T) { // pitfall 16
	w := newWorld(t)
	ctx := t.Context()
	done := w.job(export.Completed)
	running := w.job(export.Scheduled)
	for _, key := range []string{
		export.FileKey(export.NewJobID(), "Patient", export.FileName("Patient-00000", 1, "Patient", 0)),
		export.FileKey(done, "Patient", export.FileName("Patient-00000", 2, "Patient", 0)),
		export.FileKey(running, "Patient", export.FileName("Patient-00000", 1, "Patient", 9)),
	} {
		object := w.Objects.Create(ctx, key, "text/plain")
		_, err := object.Write(make([]byte, 40<<20)) // more than a part, and never finished
		w.must(err)
	}
	w.must(w.Sweep(ctx))
	var left []string
	w.must(w.Objects.Uploads(ctx, func(u objects.Upload) error { left = append(left, u.Key); return nil }))
	if len(left) != 1 || !strings.HasPrefix(left[0], export.JobPrefix(running)) {
		t.Errorf("unfinished uploads: %v, want only the running job's", left)
	}
}

func TestAnOutageOfTheObjectStoreOnlyDelaysThePurge(t *testing.T) {
	w := newWorld(t)
	id := w.job(export.Cancelled)
	w.proxy.Break()
	if err := w.expireAndPurge(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("purge during an outage: %v", err)
	}
	if exists, err := w.Jobs.Exists(t.Context(), id); err != nil || !exists {
		t.Fatalf("the record was removed during an outage (%v)", err)
	}
	w.proxy.Mend()
	w.must(w.expireAndPurge(t.Context()))
	w.nothingLeft("after the outage")
}

// spec 6: an expiry or a purge is recorded in the audit log first. If that fails, it does not happen.
func TestExpiryAndPurgeAreOnRecord(t *testing.T) {
	w := newWorld(t)
	completed, cancelled, failed := w.job(export.Completed), w.job(export.Cancelled), w.job(export.Failed)

	deaf, err := audit.Open(audit.Config{Path: filepath.Join(t.TempDir(), "audit.ndjson"), Process: "scheduler", Now: w.Now})
	w.must(err)
	w.must(deaf.Close())
	w.lifecycle.Audit = deaf
	purgeErr := w.Purge(t.Context(), failed) // of its files, at once
	w.set(w.Now().Add(week))
	for _, err := range []error{purgeErr, w.expireAndPurge(t.Context())} {
		if !errors.Is(err, export.ErrUnavailable) {
			t.Errorf("without a record: %v", err)
		}
	}
	for _, id := range []export.JobID{completed, cancelled, failed} {
		if job, err := w.Jobs.Job(t.Context(), id); err != nil || job.State == export.Expired {
			t.Errorf("without a record: %s is %q, %v", id, job.State, err)
		}
	}
	if objectKeys, _ := w.keys(); len(objectKeys) != 27 {
		t.Errorf("without a record: %d objects are left, want 27", len(objectKeys))
	}

	w.lifecycle.Audit = w.events
	w.set(w.Now().Add(-week))
	w.must(w.Purge(t.Context(), failed))
	w.set(w.Now().Add(week))
	w.must(w.expireAndPurge(t.Context()))
	w.nothingLeft("on record")
	text, err := os.ReadFile(w.auditAt)
	w.must(err)
	for event, want := range map[string]int{
		`"code":"expire".*` + string(completed): 1, `"code":"purge".*` + string(completed): 1,
		`"code":"expire".*` + string(cancelled): 0, `"code":"purge".*` + string(cancelled): 1,
		`"code":"expire".*` + string(failed): 1, `"code":"purge".*` + string(failed): 2,
	} {
		if found := regexp.MustCompile(event).FindAll(text, -1); len(found) != want {
			t.Errorf("%s: %d lines, want %d: %s", event, len(found), want, text)
		}
	}
}
