package adminui

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

// agentIssuer is the issuer of this page's users in the audit log.
const agentIssuer = "urn:sluice:operator-page"

// action is a change by an operator, with the texts of its confirmation page.
type action struct {
	Title, What, Button string
	About               []fact
	Back                string // URL when the operator declines
	Harm                bool   // it is destructive
	Pause               bool   // the form has a reason and a duration
	after               string // URL after the action
	done                string // key of doneTexts
	do                  func(*http.Request, *ops.Operator) error
}

// doneTexts are the notices shown after an action. The URL contains only the key, because text from a URL is never shown.
var doneTexts = map[string]string{
	"cancel": "The job is cancelled. Its files are being deleted.",
	"purge":  "The job is being purged: its files first, then its record.",
	"retry":  "The unit is in the queue again.",
	"fail":   "The unit was given up. The rest of the job continues.",
	"pause":  "New exports are paused.",
	"resume": "New exports are accepted again.",
	"drain":  "The worker takes no new unit and stops within seconds.",
}

// preparation returns an action on the object in the request's path.
type preparation = func(*http.Request) (action, error)

func (p *Page) actions() map[string]preparation { // by path
	return map[string]preparation{
		"jobs/{job}/cancel": p.jobAction(action{
			Title: "Cancel this job?", Button: "Cancel the job", done: "cancel", Harm: true,
			What: "The owner loses access at once. Running units stop, and the files are deleted. This cannot be undone.",
		}, (*ops.Operator).Cancel),
		"jobs/{job}/purge": p.jobAction(action{
			Title: "Purge this job now?", Button: "Purge it now", done: "purge", Harm: true,
			What: "The job expires now: its files are deleted, then its record. This cannot be undone.",
		}, (*ops.Operator).PurgeNow),
		"jobs/{job}/units/{unit}/retry": p.unitAction(action{
			Title: "Retry this unit?", Button: "Retry the unit", done: "retry",
			What: "The unit runs at once under a new fence, with its attempts reset. The result of its current worker is " +
				"discarded.",
		}, (*ops.Operator).RetryUnit),
		"jobs/{job}/units/{unit}/fail": p.unitAction(action{
			Title: "Give up this unit?", Button: "Give up the unit", done: "fail", Harm: true,
			What: "The unit's data will be missing: it becomes an entry of the manifest's error list, and the rest of the job " +
				"continues. It can be retried until the job's next stage begins.",
		}, (*ops.Operator).GiveUpUnit),
		"kickoffs/pause":         p.pause,
		"kickoffs/resume":        p.resume,
		"workers/{worker}/drain": p.drain,
	}
}

type confirmPage struct {
	frame
	Action     action
	URL, Token string
}

func (p *Page) confirm(w http.ResponseWriter, r *http.Request, prepare preparation) {
	a, err := prepare(r)
	if err != nil {
		p.refuse(r.Context(), w, err, Path)
		return
	}
	p.render(w, http.StatusOK, "confirm.html", confirmPage{
		frame: frame{Title: a.Title}, Action: a, URL: r.URL.EscapedPath(), Token: p.guard.token(session(w, r), r.URL.Path),
	})
}

// perform performs an action if the form comes from the confirmation page.
func (p *Page) perform(w http.ResponseWriter, r *http.Request, prepare preparation) {
	if err := p.guard.checkForm(r); err != nil {
		p.deny(w, r, err)
		return
	}
	a, err := prepare(r)
	if err != nil {
		p.refuse(r.Context(), w, err, Path)
		return
	}
	err = a.do(r, p.operator.As(agentOf(r)))
	p.overviews.clear()
	p.details.clear()
	if err != nil {
		p.refuse(r.Context(), w, err, a.Back)
		return
	}
	http.Redirect(w, r, a.after+"?done="+url.QueryEscape(a.done), http.StatusSeeOther)
}

// deny refuses a form that was not sent from the page, and records the refusal in the audit log.
func (p *Page) deny(w http.ResponseWriter, r *http.Request, reason error) {
	p.log.Warn("operator's page: form refused", "err", reason)
	err := p.operator.Audit.Record(audit.Event{
		Action: audit.Denied, Outcome: audit.Refused, Address: addressOf(r), HTTPStatus: http.StatusForbidden,
		Target: "the operator's page", Reason: reason.Error(),
	})
	if err != nil {
		p.log.Error("operator's page: refusal not recorded in the audit log", "err", err)
	}
	p.problem(w, http.StatusForbidden, "Nothing was changed", "Refused: "+reason.Error()+".", Path)
}

// agentOf returns the agent of a request for the audit log: the subject of the client certificate that the listener has
// verified, otherwise the client's address.
func agentOf(r *http.Request) export.Owner {
	agent := export.Owner{Issuer: agentIssuer, Subject: "address " + addressOf(r).String()}
	if r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
		agent.Subject = "certificate " + r.TLS.VerifiedChains[0][0].Subject.String()
	}
	return agent
}

// addressOf returns the client's address, or the zero Addr if it is unknown.
func addressOf(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

func jobPath(id export.JobID) string { return Path + "jobs/" + string(id) }

func (p *Page) jobAction(a action, do func(*ops.Operator, context.Context, export.JobID) error) preparation {
	return func(r *http.Request) (action, error) {
		job, err := p.readJob(r.Context(), r.PathValue("job"))
		if err != nil {
			return action{}, err
		}
		a := a
		a.Back, a.after = jobPath(job.ID), Path // the job's page may no longer exist
		a.About = []fact{
			{Label: "Job", Value: string(job.ID)}, {Label: "State", Value: string(job.State)},
			{Label: "Age", Value: age(job.Age.Duration)}, {Label: "Owner (digest)", Value: job.Owner[:16]},
		}
		a.do = func(r *http.Request, o *ops.Operator) error { return do(o, r.Context(), job.ID) }
		return a, nil
	}
}

func (p *Page) unitAction(
	a action, do func(*ops.Operator, context.Context, export.JobID, export.UnitID) error,
) preparation {
	return func(r *http.Request) (action, error) {
		job, err := p.readJob(r.Context(), r.PathValue("job"))
		if err != nil {
			return action{}, err
		}
		at := slices.IndexFunc(job.Units, func(u ops.Unit) bool { return string(u.ID) == r.PathValue("unit") })
		if at < 0 {
			return action{}, fmt.Errorf("unit of job %s: %w", job.ID, export.ErrNotFound)
		}
		a, unit := a, job.Units[at]
		a.Back, a.after = jobPath(job.ID), jobPath(job.ID)
		a.About = []fact{
			{Label: "Job", Value: string(job.ID)}, {Label: "Unit", Value: string(unit.ID)},
			{Label: "State", Value: string(unit.State)}, {Label: "Failed attempts", Value: count(int64(unit.Attempts))},
		}
		a.do = func(r *http.Request, o *ops.Operator) error { return do(o, r.Context(), job.ID, unit.ID) }
		return a, nil
	}
}

func (p *Page) pause(*http.Request) (action, error) {
	return action{
		Title: "Pause new exports?", Button: "Pause new exports", done: "pause", Back: Path, after: Path, Pause: true,
		What: "Every replica of the API answers kick-offs with 503 and Retry-After. Existing jobs continue; status, files and " +
			"cancel are not affected.",
		do: func(r *http.Request, o *ops.Operator) error {
			var until time.Time
			if length := r.PostForm.Get("for"); length != "" {
				d, err := time.ParseDuration(length)
				if err != nil || d <= 0 || d > 31*24*time.Hour {
					return invalidInput{"Invalid duration of the pause."}
				}
				until = p.operator.Now().Add(d)
			}
			reason := r.PostForm.Get("reason")
			if err := ops.CheckReason(reason); err != nil {
				return invalidInput{"Invalid reason: " + err.Error() + "."}
			}
			return o.PauseKickoffs(r.Context(), reason, until)
		},
	}, nil
}

func (p *Page) resume(*http.Request) (action, error) {
	return action{
		Title: "Resume new exports?", Button: "Resume new exports", done: "resume", Back: Path, after: Path,
		What: "Every replica of the API accepts kick-offs again.",
		do:   func(r *http.Request, o *ops.Operator) error { return o.ResumeKickoffs(r.Context()) },
	}, nil
}

func (p *Page) drain(r *http.Request) (action, error) {
	workers, err := p.operator.Workers(r.Context())
	if err != nil {
		return action{}, err
	}
	at := slices.IndexFunc(workers, func(w ops.Worker) bool { return w.ID == r.PathValue("worker") })
	if at < 0 {
		return action{}, fmt.Errorf("worker: %w", export.ErrNotFound)
	}
	worker := workers[at]
	return action{
		Title: "Drain this worker?", Button: "Drain the worker", done: "drain", Back: Path, after: Path, Harm: true,
		What: "The worker takes no new unit, finishes or returns its units, and exits as on SIGTERM. Its supervisor " +
			"starts another.",
		About: []fact{
			{Label: "Worker", Value: worker.ID}, {Label: "Running units", Value: count(int64(len(worker.Units)))},
		},
		do: func(r *http.Request, o *ops.Operator) error { return o.DrainWorker(r.Context(), worker.ID) },
	}, nil
}
