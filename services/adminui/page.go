package adminui

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"io/fs"
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

// Config says how the page is shown.
type Config struct {
	Hosts  []string // names that this server is asked by, besides localhost and its addresses
	Logger *slog.Logger
}

// Page is the operator's page: a handler of everything below Path, and a loop that takes down the throughput.
type Page struct {
	ops.Parts
	operator  *ops.Operator
	log       *slog.Logger
	guard     *guard
	meter     *meter
	overviews *looks[overviewLook]
	details   *looks[ops.Detail]
	templates *template.Template
	mux       *http.ServeMux
}

// New returns the page of what the parts hold.
func New(cfg Config, parts ops.Parts) (*Page, error) {
	operator, err := ops.New(parts)
	if err != nil {
		return nil, fmt.Errorf("operator's page: %w", err)
	}
	templates, err := template.ParseFS(files, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("operator's page: %w", err)
	}
	static, err := fs.Sub(files, "static")
	if err != nil {
		return nil, fmt.Errorf("operator's page: %w", err)
	}
	p := &Page{
		Parts: parts, operator: operator, log: cfg.Logger, guard: newGuard(cfg.Hosts, parts.Now),
		meter:     &meter{jobs: parts.Jobs, now: parts.Now},
		overviews: newLooks[overviewLook](parts.Now), details: newLooks[ops.Detail](parts.Now),
		templates: templates, mux: http.NewServeMux(),
	}
	p.mux.HandleFunc("GET "+Path+"{$}", p.overview)
	p.mux.HandleFunc("GET "+Path+"jobs/{job}", p.job)
	for _, name := range []string{"style.css", "live.js", "icon.svg"} {
		p.mux.HandleFunc("GET "+Path+name, func(w http.ResponseWriter, r *http.Request) { http.ServeFileFS(w, r, static, name) })
	}
	for path, of := range p.steps() {
		p.mux.HandleFunc("GET "+Path+path, func(w http.ResponseWriter, r *http.Request) { p.confirm(w, r, of) })
		p.mux.HandleFunc("POST "+Path+path, func(w http.ResponseWriter, r *http.Request) { p.take(w, r, of) })
	}
	p.mux.HandleFunc("GET "+Path, func(w http.ResponseWriter, _ *http.Request) {
		p.problem(w, http.StatusNotFound, "There is no such page", "Nothing is at this address.", Path)
	})
	return p, nil
}

// ServeHTTP answers requests below Path.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	secure(w.Header())
	if !p.guard.knows(r.Host) {
		p.problem(w, http.StatusMisdirectedRequest, "This is not that server",
			"The name that this page was asked by is not among SLUICE_OPERATOR_HOSTS. Addresses and localhost always are.", Path)
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, formBytes)
	p.mux.ServeHTTP(w, r)
}

// Run takes the throughput down until the context ends.
func (p *Page) Run(ctx context.Context) error {
	ticker := time.NewTicker(sampleEvery)
	defer ticker.Stop()
	for {
		if err := p.meter.runOnce(ctx); err != nil && ctx.Err() == nil {
			p.log.Warn("throughput is not sampled", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// frame is what every page has. The templates find its fields in each page's own.
type frame struct {
	Title  string
	Live   bool   // it is kept up to date
	Now    string // when what it shows was read
	Notice string // what has just been done
}

func (p *Page) frame(r *http.Request, title string, seen time.Time) frame {
	return frame{Title: title, Live: true, Now: seen.UTC().Format("15:04:05 UTC"), Notice: done[r.URL.Query().Get("done")]}
}

// render answers with a page, which is made as a whole before any of it is sent.
func (p *Page) render(w http.ResponseWriter, status int, name string, page any) {
	var body bytes.Buffer
	if err := p.templates.ExecuteTemplate(&body, name, page); err != nil {
		p.log.Error("operator's page is not rendered", "page", name, "err", err)
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = body.WriteTo(w) // the browser has gone: there is nobody to tell
}

type problemPage struct {
	frame
	What, Back string
}

func (p *Page) problem(w http.ResponseWriter, status int, title, what, back string) {
	p.render(w, status, "problem.html", problemPage{frame{Title: title}, what, back})
}

// refuse answers an error of a use case. What has no words below is ours to mend, and told to the log alone.
func (p *Page) refuse(w http.ResponseWriter, err error, back string) {
	var wrong wrongInput
	switch {
	case errors.Is(err, context.Canceled): // the browser has gone: there is nobody to answer
	case errors.As(err, &wrong):
		p.problem(w, http.StatusBadRequest, "Nothing was changed", wrong.what, back)
	case errors.Is(err, export.ErrNotFound):
		p.problem(w, http.StatusNotFound, "It is not there",
			"There is no such thing, or none any more: a job that was purged leaves nothing behind.", Path)
	case errors.Is(err, export.ErrConflict), errors.Is(err, export.ErrNotLive), errors.Is(err, export.ErrFenced):
		p.problem(w, http.StatusConflict, "Nothing was changed",
			"It is in a state in which this cannot be done; it may have changed a moment ago.", back)
	case errors.Is(err, export.ErrUnavailable):
		p.log.Warn("operator's page", "err", err)
		p.problem(w, http.StatusServiceUnavailable, "It cannot be told now",
			"Redis, the object store or the audit log cannot be reached. If this was a step, look whether it was taken.", back)
	default:
		p.log.Error("operator's page", "err", err)
		p.problem(w, http.StatusInternalServerError, "That went wrong", "The server's log says why.", back)
	}
}

// wrongInput is what somebody has filled in and cannot be meant, in words for them.
type wrongInput struct{ what string }

func (w wrongInput) Error() string { return w.what }
