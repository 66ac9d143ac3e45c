package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

const (
	crowdSmall   = 200 // jobs of ten patients
	crowdLarge   = 5   // jobs of the population
	crowdWorkers = 2
	crowdPoll    = time.Second // pause between two polls of a job
)

// crowdFigures are of many jobs at once. Durations of jobs are those of their records, from the kick-off to the seal.
type crowdFigures struct {
	KickOff    []float64 `json:"kick_off_p99_milliseconds"`
	Status     []float64 `json:"status_p99_milliseconds"`
	Rate       []float64 `json:"mb_per_second"` // until the last job is complete
	Jobs       []float64 `json:"jobs_per_second"`
	SmallOnly  []float64 `json:"small_only_jobs_per_second"` // without those of the population
	SmallJobs  []float64 `json:"small_jobs_per_second"`      // until the last small one is complete
	SmallRatio []float64 `json:"ratio_of_small_jobs_per_second"`
	Alone      []float64 `json:"small_alone_seconds"`
	Median     []float64 `json:"small_median_seconds"`
	Worst      []float64 `json:"small_worst_seconds"`
	Ratio      []float64 `json:"ratio_of_median_to_alone"`
	WorstRatio []float64 `json:"ratio_of_worst_to_alone"`
	// Population has the progress of each job of the population, in per cent, when the last small job is complete.
	Population []float64 `json:"population_percent"`
}

// crowd exports ten patients many times and the population a few times, all at once.
func (b *bench) crowd(ctx context.Context) (err error) {
	d, err := b.deployLargest(ctx, crowdWorkers)
	if err != nil {
		return err
	}
	defer d.stop()
	store, err := jobstore.Open(d.redis, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	f := &b.report.Crowd
	for round := range b.options.rounds + 1 {
		job, _, err := d.export(ctx, "ten")
		if err != nil {
			return err
		}
		record, err := store.Job(ctx, export.JobID(lastPart(job.StatusURL)))
		if err == nil && round > 0 { // the first fills caches
			f.Alone = append(f.Alone, record.Finished.Sub(record.Created).Seconds())
		}
		if err := errors.Join(err, d.remove(ctx, job)); err != nil {
			return err
		}
	}
	for range b.options.rounds {
		if err := d.smallCrowd(ctx, store, f); err != nil {
			return err
		}
		if err := d.crowd(ctx, store, f); err != nil {
			return err
		}
	}
	for i := range f.SmallJobs {
		f.SmallRatio = append(f.SmallRatio, f.SmallJobs[i]/f.SmallOnly[i])
	}
	return nil
}

// smallCrowd is a round with the small jobs only.
func (d *deployment) smallCrowd(ctx context.Context, store *jobstore.Store, f *crowdFigures) error {
	began := time.Now()
	small, _, _, err := d.kickOffs(ctx, 0)
	if err != nil {
		return err
	}
	if _, err := d.follow(ctx, small, nil, &vegeta.Metrics{}); err != nil {
		return err
	}
	_, end, err := durations(ctx, store, small)
	if err != nil {
		return err
	}
	f.SmallOnly = append(f.SmallOnly, crowdSmall/end.Sub(began).Seconds())
	return d.clear(ctx, small)
}

// crowd is a round.
func (d *deployment) crowd(ctx context.Context, store *jobstore.Store, f *crowdFigures) error {
	before, err := store.Committed(ctx)
	if err != nil {
		return err
	}
	began := time.Now()
	small, large, kicked, err := d.kickOffs(ctx, crowdLarge)
	if err != nil {
		return err
	}
	var polls vegeta.Metrics
	population, err := d.follow(ctx, small, large, &polls)
	if err != nil {
		return err
	}
	polls.Close()
	f.Population = append(f.Population, population...)
	f.KickOff = append(f.KickOff, milliseconds(kicked.Latencies.P99))
	f.Status = append(f.Status, milliseconds(polls.Latencies.P99))

	took, end, err := durations(ctx, store, small)
	if err != nil {
		return err
	}
	f.Median, f.Worst = append(f.Median, median(took)), append(f.Worst, slices.Max(took))
	f.Ratio = append(f.Ratio, median(took)/median(f.Alone))
	f.WorstRatio = append(f.WorstRatio, slices.Max(took)/median(f.Alone))
	f.SmallJobs = append(f.SmallJobs, crowdSmall/end.Sub(began).Seconds())
	if _, end, err = durations(ctx, store, slices.Concat(small, large)); err != nil {
		return err
	}
	after, err := store.Committed(ctx)
	if err != nil {
		return err
	}
	f.Rate = append(f.Rate, float64(after.Bytes-before.Bytes)/1e6/end.Sub(began).Seconds())
	f.Jobs = append(f.Jobs, (crowdSmall+crowdLarge)/end.Sub(began).Seconds())
	return d.clear(ctx, slices.Concat(small, large))
}

// kickOffs kicks off the small jobs and, spread among them, that many of the population. It returns their status URLs.
func (d *deployment) kickOffs(ctx context.Context, population int) (small, large []string, m vegeta.Metrics, err error) {
	token, err := d.Token(ctx, "")
	if err != nil {
		return nil, nil, m, err
	}
	m, err = load(ctx, callers, crowdSmall+population,
		func(i int) vegeta.Target {
			if population > 0 && i%(crowdSmall/population+1) == 0 {
				return d.kickOff("all", token)
			}
			return d.kickOff("ten", token)
		},
		func(r *vegeta.Result) error {
			to := &small
			if strings.Contains(r.URL, "/all/") {
				to = &large
			}
			*to = append(*to, r.Headers.Get("Content-Location"))
			return wantAccepted(r)
		})
	return small, large, m, err
}

// follow polls all jobs until they are complete. It returns the progress of the large ones, in per cent, when the last
// small one is complete.
func (d *deployment) follow(ctx context.Context, small, large []string, polls *vegeta.Metrics) (then []float64, err error) {
	percent := map[string]float64{} // 100: complete
	live := func(jobs []string) []string {
		return slices.DeleteFunc(slices.Clone(jobs), func(job string) bool { return percent[job] == 100 })
	}
	for {
		left := live(slices.Concat(small, large))
		if then == nil && len(live(small)) == 0 {
			for _, job := range large {
				then = append(then, percent[job])
			}
		}
		if len(left) == 0 {
			return then, nil
		}
		token, err := d.Token(ctx, "")
		if err != nil {
			return nil, err
		}
		_, err = load(ctx, callers, len(left),
			func(i int) vegeta.Target { return authorized(http.MethodGet, left[i], token) },
			func(r *vegeta.Result) error {
				polls.Add(r)
				if r.Code == http.StatusOK {
					percent[r.URL] = 100
					return nil
				}
				if text := r.Headers.Get("X-Progress-Percent"); text != "" {
					done, err := strconv.Atoi(text)
					if err != nil {
						return err
					}
					percent[r.URL] = float64(done)
				}
				return wantAccepted(r)
			})
		if err != nil {
			return nil, err
		}
		if err := pause(ctx, crowdPoll); err != nil {
			return nil, err
		}
	}
}

// durations returns how long each job took, in seconds, and when the last one was complete.
func durations(ctx context.Context, store *jobstore.Store, jobs []string) (took []float64, last time.Time, err error) {
	for _, url := range jobs {
		job, err := store.Job(ctx, export.JobID(lastPart(url)))
		if err != nil {
			return nil, last, err
		}
		if job.State != export.Completed {
			return nil, last, fmt.Errorf("job %s is %s", job.ID, job.State)
		}
		took = append(took, job.Finished.Sub(job.Created).Seconds())
		if job.Finished.After(last) {
			last = job.Finished
		}
	}
	return took, last, nil
}

// clear deletes the jobs and waits until no job has files.
func (d *deployment) clear(ctx context.Context, jobs []string) error {
	token, err := d.Token(ctx, "")
	if err != nil {
		return err
	}
	_, err = load(ctx, callers, len(jobs),
		func(i int) vegeta.Target { return authorized(http.MethodDelete, jobs[i], token) }, wantAccepted)
	if err != nil {
		return err
	}
	return d.awaitEmpty(ctx, export.JobsPrefix)
}
