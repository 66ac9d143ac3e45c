package adminui

import (
	"cmp"
	"context"
	"errors"
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
	Choices             []choice
	after               string // URL after the action
	done                string // key of doneTexts
	do                  func(*http.Request, *ops.Operator) error
}

// choice is an object of an action on several: a box of the form. The form has the ids of the checked ones.
type choice struct {
	ID, Note string
	Checked  bool
}

// choicesMost bounds the choices of a form.
const choicesMost = 200

// each calls do for each checked object. It continues after an object whose state does not allow it, and stops if a
// dependency is unavailable.
func each(r *http.Request, do func(ctx context.Context, id string) error) error {
	ids := r.PostForm["id"]
	if len(ids) == 0 {
		return invalidInput{"Nothing was chosen."}
	}
	done := 0
	var first error
	for _, id := range ids {
		err := do(r.Context(), id)
		if err == nil {
			done++
		}
		first = cmp.Or(first, err)
		if errors.Is(err, export.ErrUnavailable) {
			break
		}
	}
	if first != nil && done > 0 {
		return partError{done, len(ids), first}
	}
	return first
}

// doneTexts are the notices shown after an action. The URL contains only the key, because text from a URL is never shown.
var doneTexts = map[string]string{
	"cancel":  "The job is cancelled. Its files are being deleted.",
	"purge":   "The job is being purged: its files first, then its record.",
	"cancels": "The jobs are cancelled. Their files are being deleted.",
	"retry":   "The units are in the queue again.",
	"fail":    "The units were given up. The rest of the job continues.",
	"pause":   "New exports are paused.",
	"resume":  "New exports are accepted again.",
	"drain":   "The worker takes no new unit and stops within seconds.",
}

// preparation returns an action on the object in the request's path.
type preparation = func(*http.Request) (action, error)

func (p *Page) actions() map[string]preparation { // by path
	return map[string]preparation{
		"cancel": p.cancelSeveral,
		"jobs/{job}/cancel": p.jobAction(action{
			Title: "Cancel this job?", Button: "Cancel the job", done: "cancel", Harm: true,
		}, (*ops.Operator).Cancel),
		"jobs/{job}/purge": p.jobAction(action{
			Title: "Purge this job now?", Button: "Purge it now", done: "purge", Harm: true,
			What: "The job expires now: its files are deleted, then its record. This cannot be undone.",
		}, (*ops.Operator).PurgeNow),
		"jobs/{job}/units/{state}/retry": p.unitsAction(action{
			Title: "Retry these units?", Button: "Retry the chosen units", done: "retry",
			What: "Each chosen unit starts again at once, with all its attempts. What its current worker writes is discarded.",
		}, canRetry, (*ops.Operator).RetryUnit),
		"jobs/{job}/units/{state}/fail": p.unitsAction(action{
			Title: "Give up these units?", Button: "Give up the chosen units", done: "fail", Harm: true,
			What: "The data of each chosen unit will be missing: it becomes an entry of the manifest's error list, and the rest " +
				"of the job continues. It can be retried until the job's next stage begins.",
		}, canGiveUp, (*ops.Operator).GiveUpUnit),
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
		a.What = cmp.Or(a.What, cancelText(job.State))
		a.About = []fact{
			{Label: "Job", Value: string(job.ID)}, {Label: "State", Value: string(job.State)},
			{Label: "Age", Value: age(job.Age.Duration)}, {Label: "Group", Value: job.Group},
			{Label: "Owner in logs", Value: job.Owner[:16]},
		}
		a.do = func(r *http.Request, o *ops.Operator) error { return do(o, r.Context(), job.ID) }
		return a, nil
	}
}

func cancelText(state export.State) string {
	if !state.Live() {
		return "The owner loses access at once, and the files are deleted. This cannot be undone."
	}
	return "The owner loses access at once. Running units stop, and the files are deleted. This cannot be undone."
}

// cancelSeveral cancels live jobs of the part of the list that the URL names.
func (p *Page) cancelSeveral(r *http.Request) (action, error) {
	a := action{
		Title: "Cancel several jobs?", Button: "Cancel the chosen jobs", done: "cancels", Back: Path, after: Path, Harm: true,
		What: "The owners of the chosen jobs lose access at once. Running units stop, and the files are deleted. This cannot " +
			"be undone.",
		do: func(r *http.Request, o *ops.Operator) error {
			return each(r, func(ctx context.Context, text string) error {
				id, err := export.ParseJobID(text)
				if err != nil {
					return err
				}
				return o.Cancel(ctx, id)
			})
		},
	}
	if r.Method == http.MethodPost {
		return a, nil
	}
	search, err := searchOf(r.URL.Query())
	if err != nil {
		return action{}, err
	}
	a.Back = search.url(Path, search.Offset)
	list, err := p.operator.List(r.Context(), search.Filter)
	if err != nil {
		return action{}, err
	}
	for _, job := range list.Jobs {
		if job.State.Live() {
			a.Choices = append(a.Choices, choice{ID: string(job.ID), Note: fmt.Sprintf("%s, %d %%, %s old, group %s, owner %s",
				job.State, job.Percent, age(job.Age.Duration), job.Group, job.Owner[:16])})
		}
	}
	if len(a.Choices) == 0 {
		return action{}, invalidInput{"There is no live job in this part of the list."}
	}
	return a, nil
}

// unitsAction is an action on units of a job that are in the state of the URL.
func (p *Page) unitsAction(
	a action, can func(ops.Detail, ops.Unit) bool,
	do func(*ops.Operator, context.Context, export.JobID, export.UnitID) error,
) preparation {
	return func(r *http.Request) (action, error) {
		job, err := p.readJob(r.Context(), r.PathValue("job"))
		if err != nil {
			return action{}, err
		}
		a, state := a, ops.UnitState(r.PathValue("state"))
		a.Back, a.after = jobPath(job.ID), jobPath(job.ID)
		a.About = []fact{{Label: "Job", Value: string(job.ID)}, {Label: "State of the units", Value: string(state)}}
		a.do = func(r *http.Request, o *ops.Operator) error {
			return each(r, func(ctx context.Context, unit string) error { return do(o, ctx, job.ID, export.UnitID(unit)) })
		}
		if r.Method == http.MethodPost {
			return a, nil
		}
		units := unitsIn(job.Detail, state, can)
		if len(units) == 0 {
			return action{}, invalidInput{"The job has no unit in this state for which this can be done. It may have changed a " +
				"moment ago."}
		}
		if len(units) > choicesMost {
			a.What += fmt.Sprintf(" This form has the first %d of %d units.", choicesMost, len(units))
		}
		for _, unit := range units[:min(len(units), choicesMost)] {
			a.Choices = append(a.Choices, choice{
				ID: string(unit.ID), Note: cmp.Or(causeText(unit), "last heartbeat "+lastHeard(unit)),
				Checked: !a.Harm && state != ops.UnitRunning,
			})
		}
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
