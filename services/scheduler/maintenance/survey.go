package maintenance

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

const (
	// surveyPage is how many jobs one round trip reads.
	surveyPage = 500
	// surveyMost bounds the cost of a survey: how many live jobs it reads, and how many ended ones.
	surveyMost = 10_000
)

// uncounted is the state under which the jobs beyond surveyMost are counted.
const uncounted = "uncounted"

// survey is the state between two surveys.
type survey struct {
	gauges gauges
	closed map[export.JobID]progress // of live jobs
	moved  time.Time                 // when any of them last progressed; now while there is no live job
	idle   bool                      // there was no live job at the last survey
	beyond bool                      // there were uncounted jobs at the last survey
}

// progress is how far a live job is, and since when.
type progress struct {
	state  export.State
	closed int64
	since  time.Time
}

// Survey reads all jobs and queues at its interval and sets their gauges, until the context ends. Every scheduler does
// so for itself: if it were a task, the gauges of the other schedulers would go stale.
func (r *Runner) Survey(ctx context.Context) error {
	s := &survey{gauges: r.metrics.gauges, idle: true}
	ticker := time.NewTicker(r.cfg.SurveyEvery)
	defer ticker.Stop()
	for {
		err := r.surveyOnce(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			r.Logger.Warn("survey failed", "err", err)
		}
		r.passed(passSurvey, err)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// surveyOnce is one survey. If it fails the gauges keep their values; the time of the last pass shows their age.
func (r *Runner) surveyOnce(ctx context.Context, s *survey) error {
	now := r.Now()
	active, ended, err := r.Jobs.Sizes(ctx)
	if err != nil {
		return err
	}
	live, notLive, err := r.liveJobs(ctx)
	if err != nil {
		return err
	}
	counts, err := r.endedJobs(ctx)
	if err != nil {
		return err
	}
	lag, err := r.lag(ctx, now)
	if err != nil {
		return err
	}
	queues, err := r.Queue.Waiting(ctx)
	if err != nil {
		return err
	}
	workers, err := r.Queue.Workers(ctx)
	if err != nil {
		return err
	}
	counts[uncounted] = max(active-surveyMost, 0) + max(ended-surveyMost, 0)
	beyond := counts[uncounted] > 0
	if beyond && !s.beyond {
		r.Logger.Warn("more jobs than a survey reads", "uncounted", counts[uncounted])
	}
	s.beyond = beyond
	var open int64
	var oldest time.Duration
	for _, job := range live {
		counts[string(job.State)]++
		open += job.Open
		oldest = max(oldest, now.Sub(job.At))
	}
	finished, err := r.finished(ctx, s, live, notLive)
	if err != nil {
		return err
	}
	stalled, slowest := s.progress(now, live, finished)
	for _, state := range append(stateNames(), uncounted) {
		s.gauges.jobs.WithLabelValues(state).Set(float64(counts[state]))
	}
	for _, q := range queues {
		for state, tasks := range map[string]int{
			"pending": q.Pending, "active": q.Active, "scheduled": q.Scheduled, "retry": q.Retry,
		} {
			s.gauges.tasks.WithLabelValues(q.Queue, state).Set(float64(tasks))
		}
		s.gauges.waiting.WithLabelValues(q.Queue).Set(q.Oldest.Seconds())
	}
	s.gauges.workers.Set(float64(workers.Alive))
	s.gauges.open.Set(float64(open))
	s.gauges.oldest.Set(oldest.Seconds())
	s.gauges.stalled.Set(stalled.Seconds())
	s.gauges.slowest.Set(slowest.Seconds())
	r.metrics.purgeLag.Set(lag.Seconds())
	return nil
}

// liveJobs returns the live jobs, and the states of those in the active index that are not.
func (r *Runner) liveJobs(ctx context.Context) (live []jobstore.JobCounts, ended map[export.JobID]export.State, err error) {
	ended = map[export.JobID]export.State{}
	for offset := 0; offset < surveyMost; offset += surveyPage {
		page, err := r.Jobs.Active(ctx, offset, surveyPage)
		if err != nil {
			return nil, nil, err
		}
		listed, err := r.Jobs.Counts(ctx, page)
		if err != nil {
			return nil, nil, err
		}
		for _, job := range listed {
			if job.State.Live() {
				live = append(live, job)
			} else {
				ended[job.ID] = job.State
			}
		}
		if len(page) < surveyPage {
			break
		}
	}
	return live, ended, nil
}

// endedJobs counts the ended jobs by state.
func (r *Runner) endedJobs(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	for offset := 0; offset < surveyMost; offset += surveyPage {
		page, err := r.Jobs.ListEnded(ctx, offset, surveyPage)
		if err != nil {
			return nil, err
		}
		states, _, err := r.Jobs.States(ctx, page)
		if err != nil {
			return nil, err
		}
		for _, state := range states {
			if state != "" && !state.Live() { // under the previous release a job may be in both indexes
				counts[string(state)]++
			}
		}
		if len(page) < surveyPage {
			break
		}
	}
	return counts, nil
}

// lag is how long the next job to expire or purge is overdue.
func (r *Runner) lag(ctx context.Context, now time.Time) (time.Duration, error) {
	due, err := r.Jobs.Due(ctx, now, 0, 1)
	if err != nil || len(due) == 0 {
		return 0, err
	}
	return now.Sub(due[0].At), nil
}

// finished reports whether a job that was live at the last survey has completed since. Cancelled and failed jobs do not
// count: cancels by clients must not hide a standstill.
func (r *Runner) finished(
	ctx context.Context, s *survey, live []jobstore.JobCounts, ended map[export.JobID]export.State,
) (bool, error) {
	missing := map[export.JobID]bool{}
	for id := range s.closed {
		missing[id] = true
	}
	for _, job := range live {
		delete(missing, job.ID)
	}
	var ask []jobstore.Entry
	for id := range missing {
		if ended[id] == export.Completed {
			return true, nil
		}
		ask = append(ask, jobstore.Entry{ID: id})
	}
	states, _, err := r.Jobs.States(ctx, ask)
	if err != nil {
		return false, err
	}
	for _, state := range states {
		if state == export.Completed {
			return true, nil
		}
	}
	return false, nil
}

// progress returns how long no live job has progressed, and how long the slowest live job has not. A job progresses when
// one of its units is closed or its state changes.
func (s *survey) progress(now time.Time, live []jobstore.JobCounts, finished bool) (stalled, slowest time.Duration) {
	if len(live) == 0 || s.idle || finished {
		s.moved = now
	}
	next := make(map[export.JobID]progress, len(live))
	for _, job := range live {
		before, known := s.closed[job.ID]
		got := progress{state: job.State, closed: job.Closed, since: before.since}
		switch {
		case !known:
			got.since = now
		case job.Closed > before.closed || job.State != before.state:
			got.since, s.moved = now, now
		}
		next[job.ID] = got
		slowest = max(slowest, now.Sub(got.since))
	}
	s.closed, s.idle = next, len(live) == 0
	return now.Sub(s.moved), slowest
}

func stateNames() []string {
	var names []string
	for _, state := range export.States() {
		names = append(names, string(state))
	}
	return names
}

// gauges are set by each survey.
type gauges struct {
	jobs, tasks, waiting                    *prometheus.GaugeVec
	open, oldest, stalled, slowest, workers prometheus.Gauge
}

func newGauges(registry prometheus.Registerer) gauges {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	g := gauges{
		jobs: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_jobs", Help: "Jobs by state; uncounted: beyond what a survey reads.",
		}, []string{"state"}),
		tasks: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_queue_tasks", Help: "Tasks in a queue by their state in Asynq.",
		}, []string{"queue", "state"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_queue_oldest_seconds",
			Help: "How long the oldest task that can be taken has waited; 0: there is none.",
		}, []string{"queue"}),
		workers: gauge("sluice_scheduler_workers", "Workers that take units."),
		open:    gauge("sluice_scheduler_open_units", "Units of live jobs that are waiting, queued or running."),
		oldest:  gauge("sluice_scheduler_oldest_job_seconds", "Age of the oldest live job."),
		stalled: gauge("sluice_scheduler_stalled_seconds",
			"How long no unit of any live job has been closed."),
		slowest: gauge("sluice_scheduler_stalled_job_seconds",
			"How long no unit of the slowest live job has been closed."),
	}
	registry.MustRegister(g.jobs, g.tasks, g.waiting, g.open, g.oldest, g.stalled, g.slowest, g.workers)
	return g
}
