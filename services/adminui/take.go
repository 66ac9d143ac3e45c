package adminui

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/ops"
)

// agentIssuer is where the names of who uses the page come from.
const agentIssuer = "urn:sluice:operator-page"

// as returns the use cases in the name of who asks, for the audit log: the subject of the client's certificate, which the
// listener has verified, or else the address that the request came from.
func (p *Page) as(r *http.Request) *ops.Operator {
	agent := export.Owner{Issuer: agentIssuer, Subject: "address " + addressOf(r).String()}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		agent.Subject = "certificate " + r.TLS.VerifiedChains[0][0].Subject.String()
	}
	return p.operator.As(agent)
}

// jobStep is a step about a job, with what is known of it.
func (p *Page) jobStep(
	r *http.Request, s step, take func(*ops.Operator, context.Context, export.JobID) error,
) (step, error) {
	job, err := p.detail(r.Context(), r.PathValue("job"))
	if err != nil {
		return step{}, err
	}
	s.back, s.after = jobPath(job.ID), Path // its own page may be gone by then
	s.about = []fact{
		{Label: "Job", Value: string(job.ID)}, {Label: "State", Value: string(job.State)},
		{Label: "Age", Value: age(job.Age)}, {Label: "Owner (digest)", Value: job.Owner[:16]},
	}
	s.take = func(r *http.Request) error { return take(p.as(r), r.Context(), job.ID) }
	return s, nil
}

func (p *Page) cancel(r *http.Request) (step, error) {
	return p.jobStep(r, step{
		title: "Cancel this job?", button: "Cancel the job", done: "cancel", harm: true,
		what: "For its owner the job is gone at once. Its running units stop, and its files are deleted. This cannot be undone.",
	}, (*ops.Operator).Cancel)
}

func (p *Page) purge(r *http.Request) (step, error) {
	return p.jobStep(r, step{
		title: "Purge this job now?", button: "Purge it now", done: "purge", harm: true,
		what: "The job expires now and not when its time is over: its files are deleted, then its record. This cannot be undone.",
	}, (*ops.Operator).PurgeNow)
}

// unitStep is a step about a unit, with what is known of it.
func (p *Page) unitStep(
	r *http.Request, s step, take func(*ops.Operator, context.Context, export.JobID, export.UnitID) error,
) (step, error) {
	job, err := p.detail(r.Context(), r.PathValue("job"))
	if err != nil {
		return step{}, err
	}
	at := slices.IndexFunc(job.Units, func(u ops.Unit) bool { return string(u.ID) == r.PathValue("unit") })
	if at < 0 {
		return step{}, fmt.Errorf("unit of job %s: %w", job.ID, export.ErrNotFound)
	}
	unit := job.Units[at]
	s.back, s.after = jobPath(job.ID), jobPath(job.ID)
	s.about = []fact{
		{Label: "Job", Value: string(job.ID)}, {Label: "Unit", Value: string(unit.ID)},
		{Label: "State", Value: string(unit.State)}, {Label: "Failed attempts", Value: count(int64(unit.Attempts))},
	}
	s.take = func(r *http.Request) error { return take(p.as(r), r.Context(), job.ID, unit.ID) }
	return s, nil
}

func (p *Page) retry(r *http.Request) (step, error) {
	return p.unitStep(r, step{
		title: "Retry this unit?", button: "Retry the unit", done: "retry",
		what: "The unit runs at once, under a new fence and with all its attempts. If a worker has it now, what that worker " +
			"brings counts no more.",
	}, (*ops.Operator).RetryUnit)
}

func (p *Page) fail(r *http.Request) (step, error) {
	return p.unitStep(r, step{
		title: "Give this unit up?", button: "Give the unit up", done: "fail", harm: true,
		what: "What the unit would have exported will be missing: it becomes an entry of the manifest's error list, and the " +
			"rest of the job goes on. It can be retried until the next stage of the job begins.",
	}, (*ops.Operator).FailUnit)
}

func (p *Page) pause(*http.Request) (step, error) {
	return step{
		title: "Pause the intake?", button: "Pause intake", done: "pause", back: Path, after: Path, pause: true,
		what: "New kick-offs are answered 503 with Retry-After, by every replica of the API. Jobs that are there go on; " +
			"status, files and cancel work as ever.",
		take: func(r *http.Request) error {
			var until time.Time
			if length := r.PostForm.Get("for"); length != "" {
				d, err := time.ParseDuration(length)
				if err != nil || d <= 0 || d > 31*24*time.Hour {
					return wrongInput{"The length of the pause is not one that is offered."}
				}
				until = p.Now().Add(d)
			}
			reason := r.PostForm.Get("reason")
			if err := ops.CheckReason(reason); err != nil {
				return wrongInput{"The pause is not taken: " + err.Error() + "."}
			}
			return p.as(r).PauseIntake(r.Context(), reason, until)
		},
	}, nil
}

func (p *Page) resume(*http.Request) (step, error) {
	return step{
		title: "Resume the intake?", button: "Resume intake", done: "resume", back: Path, after: Path,
		what: "New kick-offs are taken again, by every replica of the API.",
		take: func(r *http.Request) error { return p.as(r).ResumeIntake(r.Context()) },
	}, nil
}

func (p *Page) drain(r *http.Request) (step, error) {
	workers, err := p.operator.Workers(r.Context())
	if err != nil {
		return step{}, err
	}
	id := r.PathValue("worker")
	at := slices.IndexFunc(workers, func(w queue.Process) bool { return w.ID == id })
	if at < 0 {
		return step{}, fmt.Errorf("worker: %w", export.ErrNotFound)
	}
	worker := workers[at]
	return step{
		title: "Drain this worker?", button: "Drain the worker", done: "drain", back: Path, after: Path, harm: true,
		what: "The worker takes no new unit, finishes or hands back what it has, and exits as on SIGTERM. What supervises it " +
			"starts another.",
		about: []fact{
			{Label: "Worker", Value: worker.ID}, {Label: "Units at work", Value: count(int64(len(worker.Tasks)))},
		},
		take: func(r *http.Request) error { return p.as(r).DrainWorker(r.Context(), worker.ID) },
	}, nil
}
