// Package adminui serves the operator's page, which shows the state of the deployment and offers a few actions.
//
// The server renders the page; it works without scripts. It shows states, counts and ids, never a patient's data, a subject
// or a token. A change takes two steps: a confirmation page, and the form on it. The form carries a token that
// is valid for this browser and this action for an hour. Requests with an unknown Host and cross-site requests are refused.
//
// The page has no login. Access to its listener must be restricted (docs/operators-page.md).
package adminui

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

// Path is where the page is mounted.
const Path = "/operator/"

//go:embed templates/*.html static/*
var files embed.FS

// Config configures the page.
type Config struct {
	Hosts  []string // accepted Host names, besides localhost and addresses
	Logger *slog.Logger
}

var templates = template.Must(template.New("").Funcs(functions).ParseFS(files, "templates/*.html"))

// Page is the operator's page: a handler for everything below Path, and a loop that samples the throughput.
type Page struct {
	operator  *ops.Operator
	log       *slog.Logger
	guard     *guard
	sampler   *sampler
	overviews *cache[overview]
	details   *cache[jobView]
	mux       *http.ServeMux
	// incomplete has completed jobs, and whether data is missing in them. overviews.get guards it.
	incomplete map[export.JobID]bool
}

// New returns the page.
func New(cfg Config, operator *ops.Operator) *Page {
	now := operator.Now
	p := &Page{
		operator: operator, log: cfg.Logger, guard: newGuard(cfg.Hosts, now), sampler: &sampler{jobs: operator.Jobs, now: now},
		overviews: newCache[overview](now), details: newCache[jobView](now), mux: http.NewServeMux(),
		incomplete: map[export.JobID]bool{},
	}
	p.mux.HandleFunc("GET "+Path+"{$}", p.showOverview)
	p.mux.HandleFunc("GET "+Path+"jobs/{job}", p.showJob)
	for _, name := range []string{"style.css", "live.js", "icon.svg"} {
		p.mux.HandleFunc("GET "+Path+name, func(w http.ResponseWriter, r *http.Request) {
			http.ServeFileFS(w, r, files, "static/"+name)
		})
	}
	for path, prepare := range p.actions() {
		p.mux.HandleFunc("GET "+Path+path, func(w http.ResponseWriter, r *http.Request) { p.confirm(w, r, prepare) })
		p.mux.HandleFunc("POST "+Path+path, func(w http.ResponseWriter, r *http.Request) { p.perform(w, r, prepare) })
	}
	p.mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, _ *http.Request) {
		p.problem(w, http.StatusNotFound, "Page not found", "There is no page at this address.", Path)
	})
	return p
}

// AcceptsHost reports whether the Host of a request is a name of this server.
func (p *Page) AcceptsHost(host string) bool { return p.guard.accepts(host) }

// ServeHTTP serves requests below Path.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	setHeaders(w.Header())
	if !p.AcceptsHost(r.Host) {
		p.problem(w, http.StatusMisdirectedRequest, "Unknown host name",
			"The host name in the URL is not in SLUICE_OPERATOR_HOSTS. Addresses and localhost are always accepted.", Path)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, formBytes)
	p.mux.ServeHTTP(w, r)
}

// Run samples the throughput until the context ends.
func (p *Page) Run(ctx context.Context) error {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		if err := p.sampler.runOnce(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("operator's page", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

type frame struct {
	Title  string
	Live   bool   // the page updates itself
	Now    string // when its data was read
	Notice string // the action that has just been performed
}

func (p *Page) frame(r *http.Request, title string, read time.Time) frame {
	return frame{
		Title: title, Live: true, Now: read.UTC().Format("15:04:05 UTC"), Notice: doneTexts[r.URL.Query().Get("done")],
	}
}

// render responds with a page. It renders the whole page before it writes the response.
func (p *Page) render(w http.ResponseWriter, status int, name string, page any) {
	var body bytes.Buffer
	if err := templates.ExecuteTemplate(&body, name, page); err != nil {
		p.log.Error("operator's page", "template", name, "err", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // an error means that the browser has disconnected
}

type problemPage struct {
	frame
	What, Back string
}

func (p *Page) problem(w http.ResponseWriter, status int, title, what, back string) {
	p.render(w, status, "problem.html", problemPage{frame{Title: title}, what, back})
}

// refuse responds to a failed action. The details of unexpected errors are only logged.
func (p *Page) refuse(ctx context.Context, w http.ResponseWriter, err error, back string) {
	var invalid invalidInput
	var part partError
	switch {
	case errors.Is(err, context.Canceled): // the browser has disconnected
	case errors.As(err, &part):
		p.log.Warn("operator's page", "err", err)
		p.problem(w, http.StatusConflict, "Only a part was changed", fmt.Sprintf("%d of %d were changed. The state of the "+
			"others does not allow this, or a dependency is unavailable.", part.done, part.all), back)
	case errors.As(err, &invalid):
		p.problem(w, http.StatusBadRequest, "Nothing was changed", invalid.text, back)
	case errors.Is(err, export.ErrNotFound):
		p.problem(w, http.StatusNotFound, "Not found", "It does not exist, or it was purged.", Path)
	case errors.Is(err, export.ErrConflict), errors.Is(err, export.ErrNotLive), errors.Is(err, export.ErrFenced):
		p.problem(w, http.StatusConflict, "Nothing was changed",
			"The current state does not allow this. It may have changed a moment ago.", back)
	case errors.Is(err, export.ErrUnavailable):
		p.log.Warn("operator's page", "err", err)
		p.problem(w, http.StatusServiceUnavailable, "Temporarily unavailable",
			p.unreachable(ctx)+" If you just submitted an action, check whether it took effect.", back)
	default:
		p.log.Error("operator's page", "err", err)
		p.problem(w, http.StatusInternalServerError, "Internal error", "See the server's log.", back)
	}
}

// unreachable says which dependency does not answer.
func (p *Page) unreachable(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second) // the request may be over
	defer cancel()
	if err := p.operator.Jobs.Ping(ctx); err != nil {
		return "Redis cannot be reached."
	}
	return "The object store or the audit log cannot be reached."
}

// partError is the error of an action on several objects that has changed some of them.
type partError struct {
	done, all int
	err       error
}

func (e partError) Error() string { return fmt.Sprintf("%d of %d changed: %v", e.done, e.all, e.err) }
func (e partError) Unwrap() error { return e.err }

// invalidInput is an error in a form, as text for the operator.
type invalidInput struct{ text string }

func (i invalidInput) Error() string { return i.text }
