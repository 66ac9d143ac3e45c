package adminui

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/ops"
)

const unitsShown = 50

type jobPage struct {
	frame
	Base                string // path of the job
	Job                 jobRow
	CanCancel, CanPurge bool
	Failure             string
	Facts               []fact
	Types               []typeRow
	Units               []unitRow
	All                 bool // also units that are done
	UnitsTold           string
	Fewer, More         string
}

type typeRow struct {
	Name                string
	Percent             int
	Units, Done, Failed int
	Resources, Bytes    string
}

type unitRow struct {
	ID          export.UnitID
	State       label
	Fence       int64
	Attempts    int
	Heard       string
	Error       string
	Retry, Fail string // paths of the steps; "": it cannot be done
}

// detail reads a job. What stands in a URL and cannot be a job's id is none.
func (p *Page) detail(ctx context.Context, text string) (ops.Detail, error) {
	id, err := export.ParseJobID(text)
	if err != nil {
		return ops.Detail{}, err
	}
	return p.details.at(ctx, string(id), func(ctx context.Context) (ops.Detail, error) {
		return p.operator.Inspect(ctx, id)
	})
}

func (p *Page) job(w http.ResponseWriter, r *http.Request) {
	job, err := p.detail(r.Context(), r.PathValue("job"))
	if err != nil {
		p.refuse(w, err, Path)
		return
	}
	page := jobPage{
		frame: p.frame(r, "Job "+abbreviated(job.ID), p.Now()), Base: jobPath(job.ID),
		Job:       jobRow{ID: job.ID, Short: abbreviated(job.ID), State: stateOf(job.State), Percent: job.Percent},
		CanCancel: job.State.CanBecome(export.Cancelled), CanPurge: !job.State.Live(), Failure: job.Failure,
		Facts: factsOf(job),
	}
	for _, progress := range job.Progress {
		page.Types = append(page.Types, showProgress(progress))
	}
	page.All = r.URL.Query().Get("all") != ""
	units := ordered(job.Units, page.All)
	offset, err := strconv.Atoi(r.URL.Query().Get("units"))
	if err != nil || offset < 0 || offset >= len(units) {
		offset = 0
	}
	end := min(offset+unitsShown, len(units))
	for _, unit := range units[offset:end] {
		page.Units = append(page.Units, showUnit(job, unit))
	}
	page.UnitsTold = unitsTold(job)
	if len(page.Units) < len(units) {
		page.UnitsTold += fmt.Sprintf("; shown: %d to %d of %d", offset+1, end, len(units))
	}
	if offset > 0 {
		page.Fewer = page.unitsFrom(max(offset-unitsShown, 0))
	}
	if end < len(units) {
		page.More = page.unitsFrom(end)
	}
	p.render(w, http.StatusOK, "job.html", page)
}

func factsOf(job ops.Detail) []fact {
	var total ops.Progress
	for _, progress := range job.Progress {
		total.Resources += progress.Resources
		total.Bytes += progress.Bytes
		total.Stored += progress.Stored
		total.Files += progress.Files
		total.Withheld += progress.Withheld
	}
	patients := "–"
	if !job.Snapshot.IsZero() {
		patients = count(job.Patients)
	}
	return []fact{
		{"Age", age(job.Age), "kicked off " + instant(job.Created)},
		{"Owner (digest)", job.Owner[:16], ""},
		{"Group", job.Group, plural(len(job.Types), "type") + " asked for"},
		{"Patients in the cohort", patients, ""},
		{"Exported", count(total.Resources) + " resources", size(total.Bytes)},
		{"Stored", size(total.Stored), plural(int(total.Files), "file")},
		{"Withheld", count(total.Withheld), "also about somebody else"},
		{"Finished", instant(job.Finished), ""},
		{"Expires", instant(job.Expires), ""},
	}
}

func showProgress(progress ops.Progress) typeRow {
	row := typeRow{
		Name: progress.Type, Units: progress.Units, Done: progress.Done, Failed: progress.Failed,
		Resources: count(progress.Resources), Bytes: size(progress.Bytes),
	}
	if progress.Units > 0 {
		row.Percent = 100 * (progress.Done + progress.Failed) / progress.Units
	}
	return row
}

// unitOrder is the order of units: what needs somebody's eyes comes first.
var unitOrder = []ops.UnitState{
	ops.UnitFailed, ops.UnitDelayed, ops.UnitRunning, ops.UnitQueued, ops.UnitWaiting, ops.UnitDone,
}

func ordered(units []ops.Unit, all bool) []ops.Unit {
	sorted := slices.Clone(units)
	if !all {
		sorted = slices.DeleteFunc(sorted, func(u ops.Unit) bool { return u.State == ops.UnitDone })
	}
	slices.SortStableFunc(sorted, func(a, b ops.Unit) int {
		return cmp.Compare(slices.Index(unitOrder, a.State), slices.Index(unitOrder, b.State))
	})
	return sorted
}

// unitsFrom is the address of another part of the units.
func (p jobPage) unitsFrom(offset int) string {
	query := url.Values{"units": {strconv.Itoa(offset)}}
	if p.All {
		query.Set("all", "true")
	}
	return p.Base + "?" + query.Encode()
}

// unitsTold counts the units by their states.
func unitsTold(job ops.Detail) string {
	in := map[ops.UnitState]int{}
	for _, unit := range job.Units {
		in[unit.State]++
	}
	var parts []string
	for _, state := range unitOrder {
		if in[state] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", in[state], state))
		}
	}
	return strings.Join(parts, ", ")
}

func showUnit(job ops.Detail, unit ops.Unit) unitRow {
	row := unitRow{
		ID: unit.ID, Fence: unit.Fence, Attempts: unit.Attempts, Heard: "–", Error: string(unit.Cause),
		State: label{string(unit.State), map[ops.UnitState]string{
			ops.UnitFailed: bad, ops.UnitDelayed: warn, ops.UnitRunning: busy, ops.UnitDone: good,
		}[unit.State]},
	}
	if row.State.Tone == "" {
		row.State.Tone = quiet
	}
	switch unit.State {
	case ops.UnitFailed:
		row.Error = unit.Failure
	case ops.UnitDelayed:
		row.Heard = "tried in " + age(-unit.Silent)
	case ops.UnitRunning, ops.UnitQueued:
		row.Heard = age(unit.Silent) + " ago"
	case ops.UnitWaiting, ops.UnitDone:
	}
	// What is offered is a guess at this moment; the step itself decides.
	if !job.State.Live() {
		return row
	}
	open := unit.State != ops.UnitDone && unit.State != ops.UnitFailed
	if unit.State == ops.UnitFailed && job.State != export.Sealing || open && unit.State != ops.UnitWaiting {
		row.Retry = unitPath(job.ID, unit.ID, "retry")
	}
	if open && unit.Kind != export.KindPlan && unit.Kind != export.KindSeal {
		row.Fail = unitPath(job.ID, unit.ID, "fail")
	}
	return row
}
