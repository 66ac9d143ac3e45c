package adminui

import (
	"net/http"
	"net/netip"
	"net/url"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// step is a change that an operator may make: what the page that asks for a confirmation says, and what is done.
type step struct {
	title, what, button string
	about               []fact
	back                string // where to go if not
	after               string // where to go afterwards
	done                string // key of what is said there
	harm                bool   // it takes something away
	pause               bool   // the form asks for a reason and a time
	take                func(*http.Request) error
}

// done is what is said after a step, by a key that stands in the URL: no text is taken from there.
var done = map[string]string{
	"cancel": "The job is cancelled. Its files are being deleted.",
	"purge":  "The job is being purged: its files first, then its record.",
	"retry":  "The unit was handed to the queue again.",
	"fail":   "The unit was given up. The rest of the job goes on.",
	"pause":  "Intake is paused.",
	"resume": "Intake is open again.",
	"drain":  "The worker takes no new unit, and ends within seconds.",
}

// steps are all changes, by their paths.
func (p *Page) steps() map[string]func(*http.Request) (step, error) {
	return map[string]func(*http.Request) (step, error){
		"jobs/{job}/cancel":             p.cancel,
		"jobs/{job}/purge":              p.purge,
		"jobs/{job}/units/{unit}/retry": p.retry,
		"jobs/{job}/units/{unit}/fail":  p.fail,
		"intake/pause":                  p.pause,
		"intake/resume":                 p.resume,
		"workers/{worker}/drain":        p.drain,
	}
}

type confirmPage struct {
	frame
	Step, Token, What, Button, Back string
	About                           []fact
	Harm, Pause                     bool
}

// confirm shows what a step will do, with the form that has it done.
func (p *Page) confirm(w http.ResponseWriter, r *http.Request, of func(*http.Request) (step, error)) {
	s, err := of(r)
	if err != nil {
		p.refuse(w, err, Path)
		return
	}
	p.render(w, http.StatusOK, "confirm.html", confirmPage{
		frame: frame{Title: s.title}, Step: r.URL.EscapedPath(), Token: p.guard.token(session(w, r), r.URL.Path),
		What: s.what, Button: s.button, Back: s.back, About: s.about, Harm: s.harm, Pause: s.pause,
	})
}

// take does the step, if the form comes from the page above.
func (p *Page) take(w http.ResponseWriter, r *http.Request, of func(*http.Request) (step, error)) {
	if err := p.guard.admits(r); err != nil {
		p.deny(w, r, err)
		return
	}
	s, err := of(r)
	if err != nil {
		p.refuse(w, err, Path)
		return
	}
	err = s.take(r)
	p.overviews.forget()
	p.details.forget()
	if err != nil {
		p.refuse(w, err, s.back)
		return
	}
	http.Redirect(w, r, s.after+"?done="+url.QueryEscape(s.done), http.StatusSeeOther)
}

// deny refuses a form that did not come from the page. It is on record like every request that is turned away.
func (p *Page) deny(w http.ResponseWriter, r *http.Request, reason error) {
	p.log.Warn("a form for the operator's page was refused", "err", reason)
	err := p.Audit.Record(audit.Event{
		Action: audit.Denied, Outcome: audit.Refused, Address: addressOf(r), HTTPStatus: http.StatusForbidden,
		Target: "the operator's page", Reason: reason.Error(),
	})
	if err != nil {
		p.log.Error("a refusal is not on record", "err", err)
	}
	p.problem(w, http.StatusForbidden, "Nothing was changed", "Refused: "+reason.Error()+".", Path)
}

// addressOf is where a request came from; the zero Addr when that is not known.
func addressOf(r *http.Request) netip.Addr {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap()
}

func jobPath(id export.JobID) string { return Path + "jobs/" + string(id) }

func unitPath(id export.JobID, unit export.UnitID, act string) string {
	return jobPath(id) + "/units/" + url.PathEscape(string(unit)) + "/" + act
}
