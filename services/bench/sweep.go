package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/services/scheduler/maintenance"
)

const (
	sweepOrphans = 10  // one of so many jobs has no record
	sweepLive    = 100 // one of so many is live; the others are complete
)

// sweepFigures are of one sweep by a scheduler that has just started. It runs its other passes meanwhile.
type sweepFigures struct {
	Objects  int     `json:"objects"`
	Jobs     int     `json:"jobs"`
	Orphans  int     `json:"orphans"` // objects of jobs without a record: these and no others are deleted
	Seconds  float64 `json:"seconds"`
	Finished bool    `json:"finished"`         // false: the pass reached its time limit; the next one would continue
	Interval float64 `json:"interval_seconds"` // the default of SWEEP_EVERY
	Rate     float64 `json:"objects_per_second"`
	Ratio    float64 `json:"ratio_to_interval"`
	Before   float64 `json:"scheduler_before_mib"`
	Peak     float64 `json:"scheduler_peak_mib"`
}

// sweep fills a bucket with objects of many jobs, of which some have no record, and has a scheduler sweep it.
func (b *bench) sweep(ctx context.Context) (err error) {
	like, err := b.sweepModel(ctx)
	if err != nil {
		return err
	}
	url := b.servers.newRedis()
	store, err := jobstore.Open(url, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	bucket, name, err := b.servers.newBucket(ctx)
	if err != nil {
		return err
	}
	defer bucket.Close()
	began := time.Now()
	full, err := fill(ctx, like, store, bucket, b.options.objects)
	if err != nil {
		return err
	}
	say("the objects of %d jobs were written in %.0f s", full.jobs, time.Since(began).Seconds())
	f := &b.report.Sweep
	f.Objects, f.Jobs, f.Orphans = full.kept+full.orphans, full.jobs, full.orphans

	scheduler, err := startService(filepath.Join(b.binaries, "scheduler"), append(b.servers.settings(url, name),
		"SLUICE_SWEEP_GRACE=0s", "SLUICE_RESTORE_GRACE=0s")) // the objects and this Redis are new
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, scheduler.Stop(time.Minute)) }()
	if err := scheduler.sweep(ctx, f); err != nil {
		return err
	}
	f.Interval = envconfig.Defaults[maintenance.Config]().SweepEvery.Seconds()
	f.Ratio = f.Seconds / f.Interval
	if !f.Finished {
		return nil
	}
	f.Rate = float64(f.Objects) / f.Seconds
	return full.check(ctx, bucket)
}

// sweepModel returns the job whose objects fill the bucket.
func (b *bench) sweepModel(ctx context.Context) (like model, err error) {
	d, err := b.deployLargest(ctx, 1)
	if err != nil {
		return like, err
	}
	defer d.stop()
	store, err := jobstore.Open(d.redis, nil)
	if err != nil {
		return like, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return d.newModel(ctx, store)
}

// filled is what a bucket holds.
type filled struct {
	jobs, kept, orphans int // kept and orphans are objects

	mu    sync.Mutex
	known map[export.JobID]bool // jobs with a record
}

// fill writes that many objects of jobs like the model and records the jobs.
func fill(ctx context.Context, like model, store *jobstore.Store, bucket *objects.Store, count int) (*filled, error) {
	full := &filled{known: map[export.JobID]bool{}}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(replays)
	left := count
	for ; left > 0 && ctx.Err() == nil; full.jobs++ {
		n, most := full.jobs, min(left, len(like.files()))
		orphan := n%sweepOrphans == 1
		if n%sweepLive == 0 {
			most = min(most, len(like.files())-1) // it has no manifest
		}
		if left -= most; orphan {
			full.orphans += most
		} else {
			full.kept += most
		}
		group.Go(func() error { return full.add(ctx, like, store, bucket, n, most, orphan) })
	}
	return full, group.Wait()
}

// add adds the n'th job with at most so many objects.
func (f *filled) add(
	ctx context.Context, like model, store *jobstore.Store, bucket *objects.Store, n, most int, orphan bool,
) error {
	var job model
	var err error
	if orphan {
		job, err = like.renamed(export.NewJobID())
	} else {
		job, err = like.replay(ctx, store, n, n%sweepLive != 0)
	}
	if err != nil {
		return err
	}
	for _, key := range job.files()[:most] {
		object := bucket.Create(ctx, key, "application/fhir+ndjson")
		_, err := object.Write([]byte("{}\n"))
		if err == nil {
			_, err = object.Commit()
		}
		if err != nil {
			return errors.Join(err, object.Abort())
		}
	}
	if !orphan {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.known[job.Job.ID] = true
	}
	return nil
}

// check fails unless the bucket has every object of a known job, and no other.
func (f *filled) check(ctx context.Context, bucket *objects.Store) error {
	kept := 0
	err := bucket.List(ctx, export.JobsPrefix, func(object objects.Info) error {
		if job, _ := export.JobOf(object.Key); !f.known[job] {
			return fmt.Errorf("the sweep left %s, which belongs to no job", object.Key)
		}
		kept++
		return nil
	})
	if err == nil && kept != f.kept {
		err = fmt.Errorf("the sweep left %d objects of jobs, of %d", kept, f.kept)
	}
	return err
}

// sweep waits for the end of the scheduler's first sweep, which begins when the scheduler starts.
func (s *service) sweep(ctx context.Context, f *sweepFigures) error {
	before, err := s.use(ctx)
	if err != nil {
		return err
	}
	f.Before = before.Memory
	for began := time.Now(); ; {
		metrics, err := s.metrics(ctx)
		if err != nil {
			return err
		}
		f.Seconds, f.Peak = time.Since(began).Seconds(), s.PeakMemory()
		f.Finished = metrics[`sluice_scheduler_passes_total{duty="sweep",outcome="done"}`] > 0
		if f.Finished || metrics[`sluice_scheduler_passes_total{duty="sweep",outcome="failed"}`] > 0 {
			return nil
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}
