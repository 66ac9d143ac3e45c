package maintenance

import (
	"context"
	"errors"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/objects"
)

// sweepBatch is how many objects are looked up at once: a page of the object store.
const sweepBatch = 1000

// Sweep deletes orphaned objects and unfinished uploads: everything of jobs without a record and of failed jobs, and, of
// other ended jobs, what no listed unit wrote. It leaves everything younger than the grace, everything of live jobs and,
// while Redis is younger than its grace, everything of jobs without a record. If it does not finish, the next sweep
// continues after the last object that it has looked at.
func (r *Runner) Sweep(ctx context.Context) error {
	now, err := r.lifecycle.Clock(ctx)
	if err != nil {
		return err
	}
	before := now.Add(-r.cfg.SweepGrace)
	s := &sweep{Runner: r, now: now}
	errs := []error{s.sweepUploads(ctx, before)}
	last, err := r.Jobs.Swept(ctx)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	var batch []string
	listed, foreign := 0, false
	flush := func() error {
		err := s.sweepObjects(ctx, batch)
		batch = batch[:0]
		if ctx.Err() != nil || errors.Is(err, export.ErrUnavailable) {
			return err
		}
		errs = append(errs, err) // of one job or object: the others are swept
		return r.Jobs.SetSwept(ctx, last)
	}
	err = r.Objects.ListAfter(ctx, export.JobsPrefix, last, func(object objects.Info) error {
		last = object.Key
		_, ours := export.JobOf(object.Key)
		foreign = foreign || !ours
		if ours && !object.Modified.After(before) {
			batch = append(batch, object.Key)
		}
		if listed++; listed%sweepBatch == 0 {
			return flush()
		}
		return nil
	})
	if err == nil {
		last = "" // finished
		err = flush()
	}
	if s.spared > 0 {
		r.Logger.Warn("the bucket has objects of jobs that Redis does not know; if Redis has lost its data, restore it",
			"objects", s.spared, "kept_for", r.cfg.RestoreGrace.String())
	}
	if foreign {
		r.Logger.Warn("the bucket has a foreign prefix, which is left alone")
	}
	return errors.Join(append(errs, err)...)
}

// sweep is a running sweep.
type sweep struct {
	*Runner
	now    time.Time
	spared int // objects of jobs without a record that are kept: Redis may have lost the records
}

func (r *sweep) sweepObjects(ctx context.Context, keys []string) error {
	orphaned, err := r.orphaned(ctx, keys)
	var orphans []string
	for i, key := range keys {
		if orphaned[i] {
			orphans = append(orphans, key)
		}
	}
	deleted, deleteErr := r.Objects.DeleteAll(ctx, orphans...)
	if deleted > 0 {
		r.metrics.orphans.Add(float64(deleted))
		r.Logger.Info("orphaned objects deleted", "objects", deleted)
	}
	return errors.Join(err, deleteErr)
}

// sweepUploads aborts orphaned uploads. There are few at a time.
func (r *sweep) sweepUploads(ctx context.Context, before time.Time) error {
	var uploads []objects.Upload
	var keys []string
	err := r.Objects.Uploads(ctx, func(upload objects.Upload) error {
		if _, ours := export.JobOf(upload.Key); ours && !upload.Started.After(before) {
			uploads, keys = append(uploads, upload), append(keys, upload.Key)
		}
		return nil
	})
	errs := []error{err}
	orphaned, err := r.orphaned(ctx, keys)
	errs = append(errs, err)
	for i, upload := range uploads {
		if !orphaned[i] {
			continue
		}
		err := r.Objects.AbortUpload(ctx, upload.Key, upload.ID)
		errs = append(errs, err)
		if err == nil {
			r.metrics.aborted.Inc()
		}
	}
	return errors.Join(errs...)
}

// orphaned reports for each object whether nothing needs it: its job is not live, and has failed or is gone, or no listed
// unit wrote the object. Keys outside of the layout are left alone, and, with an error, those that cannot be looked up. It
// makes two round trips to Redis for each thousand keys.
func (r *sweep) orphaned(ctx context.Context, keys []string) ([]bool, error) {
	orphaned := make([]bool, len(keys))
	var errs []error
	for begin := 0; begin < len(keys); begin += sweepBatch {
		end := min(begin+sweepBatch, len(keys))
		errs = append(errs, r.lookUp(ctx, keys[begin:end], orphaned[begin:end]))
	}
	return orphaned, errors.Join(errs...)
}

func (r *sweep) lookUp(ctx context.Context, keys []string, orphaned []bool) error {
	origins := make([]export.Origin, len(keys))
	states := map[export.JobID]export.State{}
	var jobs []jobstore.Entry
	for i, key := range keys {
		origin, ours := export.ParseKey(key)
		if !ours {
			continue
		}
		origins[i] = origin
		if _, known := states[origin.Job]; !known {
			states[origin.Job] = ""
			jobs = append(jobs, jobstore.Entry{ID: origin.Job})
		}
	}
	found, born, err := r.Jobs.States(ctx, jobs)
	if err != nil {
		return err
	}
	young := born.IsZero() || r.now.Sub(born) < r.cfg.RestoreGrace
	for i, job := range jobs {
		states[job.ID] = found[i]
	}
	var attempts []export.Origin
	var at [][]int // the keys of each attempt
	known := map[export.Origin]int{}
	for i, origin := range origins {
		state := states[origin.Job]
		switch {
		case origin.Job == "", state.Live():
		case state == "" && young:
			r.spared++
		case state == "", state == export.Failed, origin.Scaffolding:
			orphaned[i] = true
		default:
			n, again := known[origin]
			if !again {
				n = len(attempts)
				known[origin] = n
				attempts, at = append(attempts, origin), append(at, nil)
			}
			at[n] = append(at[n], i)
		}
	}
	published, err := r.Jobs.Published(ctx, attempts)
	for n, listed := range published {
		for _, i := range at[n] {
			orphaned[i] = !listed
		}
	}
	return err
}
