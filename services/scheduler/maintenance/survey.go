package maintenance

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

const (
	// surveyPage is how many jobs one round trip of a survey asks about.
	surveyPage = 500
	// surveyMost bounds what a survey costs Redis: of so many active jobs, and of so many kept ones, it asks for the state.
	surveyMost = 10_000
)

// uncounted is the state under which jobs are counted that a survey did not get to.
const uncounted = "uncounted"

// survey is what one look at all jobs gives, and what it remembers of the one before.
type survey struct {
	gauges  gauges
	closed  map[export.JobID]progress // of live jobs
	moved   time.Time                 // when any of them last got on; while there is none, the present
	nothing bool                      // whether there was no live job at the last look
}

// progress is how far a live job is, and since when.
type progress struct {
	state  export.State
	closed int64
	since  time.Time
}

// Survey looks at all jobs and queues at its interval until the context ends, and sets the gauges that tell of them.
// Every scheduler does so for itself: a gauge that only whoever got the task would set goes stale in all the others.
func (u *Upkeep) Survey(ctx context.Context) error {
	s := &survey{gauges: u.metrics.gauges, nothing: true}
	ticker := time.NewTicker(u.cfg.SurveyEvery)
	defer ticker.Stop()
	for {
		err := u.look(ctx, s)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			u.Logger.Warn("jobs could not be surveyed", "err", err)
		}
		u.passed(dutySurvey, err)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// look is one survey. When it fails the gauges stay as they were, and the time of the last pass tells how old they are.
func (u *Upkeep) look(ctx context.Context, s *survey) error {
	now := u.Now()
	active, kept, err := u.Jobs.Sizes(ctx)
	if err != nil {
		return err
	}
	live, ended, err := u.liveJobs(ctx)
	if err != nil {
		return err
	}
	counts, err := u.keptJobs(ctx)
	if err != nil {
		return err
	}
	lag, err := u.lag(ctx, now)
	if err != nil {
		return err
	}
	queues, err := u.Queue.Waiting(ctx)
	if err != nil {
		return err
	}
	workers, err := u.Queue.Workers(ctx)
	if err != nil {
		return err
	}
	if counts[uncounted] = max(active-surveyMost, 0) + max(kept-surveyMost, 0); counts[uncounted] > 0 {
		u.Logger.Warn("more jobs than a survey counts", "uncounted", counts[uncounted])
	}
	var open int64
	var oldest time.Duration
	for _, job := range live {
		counts[string(job.State)]++
		open += job.Open
		oldest = max(oldest, now.Sub(job.Entered))
	}
	finished, err := u.finished(ctx, s, live, ended)
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
	u.metrics.purgeLag.Set(lag.Seconds())
	return nil
}

// liveJobs are the active jobs that have work to do, and the ids of those that have none any more.
func (u *Upkeep) liveJobs(ctx context.Context) (live []jobstore.Standing, ended map[export.JobID]export.State, err error) {
	ended = map[export.JobID]export.State{}
	for offset := 0; offset < surveyMost; offset += surveyPage {
		page, err := u.Jobs.Active(ctx, offset, surveyPage)
		if err != nil {
			return nil, nil, err
		}
		standings, err := u.Jobs.Standings(ctx, page)
		if err != nil {
			return nil, nil, err
		}
		for _, job := range standings {
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

// keptJobs counts the jobs that have ended, by state.
func (u *Upkeep) keptJobs(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	for offset := 0; offset < surveyMost; offset += surveyPage {
		page, err := u.Jobs.Kept(ctx, offset, surveyPage)
		if err != nil {
			return nil, err
		}
		states, err := u.Jobs.States(ctx, page)
		if err != nil {
			return nil, err
		}
		for _, state := range states {
			if state != "" && !state.Live() { // live in both indexes, for a moment: counted in the other
				counts[string(state)]++
			}
		}
		if len(page) < surveyPage {
			break
		}
	}
	return counts, nil
}

// lag is how long overdue the next job to expire or purge is.
func (u *Upkeep) lag(ctx context.Context, now time.Time) (time.Duration, error) {
	due, err := u.Jobs.Due(ctx, now, 1)
	if err != nil || len(due) == 0 {
		return 0, err
	}
	return now.Sub(due[0].At), nil
}

// finished reports whether a job that was live at the last look has been completed since. One that was cancelled, failed
// or given up has not got on: clients that lose patience must not make a standstill look like progress.
func (u *Upkeep) finished(
	ctx context.Context, s *survey, live []jobstore.Standing, ended map[export.JobID]export.State,
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
	states, err := u.Jobs.States(ctx, ask)
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

// progress returns for how long no job has got on while there was one, and for how long that one has not which has waited
// longest. A job gets on when a unit of it is closed or its state changes.
func (s *survey) progress(now time.Time, live []jobstore.Standing, finished bool) (stalled, slowest time.Duration) {
	if len(live) == 0 || s.nothing || finished {
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
	s.closed, s.nothing = next, len(live) == 0
	return now.Sub(s.moved), slowest
}

func stateNames() []string {
	var names []string
	for _, state := range export.States() {
		names = append(names, string(state))
	}
	return names
}

// gauges tell of all jobs and queues, as the last survey found them.
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
			Name: "sluice_scheduler_jobs", Help: "Jobs by state; uncounted: more than a survey looks at.",
		}, []string{"state"}),
		tasks: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_queue_tasks", Help: "Tasks in a queue by what Asynq has them in.",
		}, []string{"queue", "state"}),
		waiting: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sluice_scheduler_queue_oldest_seconds",
			Help: "Since when the oldest task waits that anybody could take; 0: there is none.",
		}, []string{"queue"}),
		workers: gauge("sluice_scheduler_workers", "Workers that take units."),
		open:    gauge("sluice_scheduler_open_units", "Units of live jobs that are waiting, queued or running."),
		oldest:  gauge("sluice_scheduler_oldest_job_seconds", "Age of the oldest live job."),
		stalled: gauge("sluice_scheduler_stalled_seconds",
			"For how long no unit of any job was closed while there were live jobs."),
		slowest: gauge("sluice_scheduler_stalled_job_seconds",
			"For how long no unit was closed of that live job which has waited longest."),
	}
	registry.MustRegister(g.jobs, g.tasks, g.waiting, g.open, g.oldest, g.stalled, g.slowest, g.workers)
	return g
}
