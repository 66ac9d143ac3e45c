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

// jobView is a job and why its units wait.
type jobView struct {
	ops.Detail
	Waits string
}

type jobPage struct {
	frame
	Base           string // path of the job
	Job            jobView
	Total          ops.Progress
	Groups         []unitGroup // of the units on this page
	All            bool        // also units that are done
	UnitCounts     string
	Previous, Next string // URLs of the neighbouring pages of units
}

// unitGroup holds the units in one state, and the actions on them.
type unitGroup struct {
	State         ops.UnitState
	Count         int // in the whole job
	Retry, GiveUp bool
	Units         []ops.Unit // on this page
}

func (p *Page) readJob(ctx context.Context, text string) (jobView, error) {
	id, err := export.ParseJobID(text)
	if err != nil {
		return jobView{}, err
	}
	return p.details.get(ctx, string(id), func(ctx context.Context) (view jobView, err error) {
		if view.Detail, err = p.operator.Inspect(ctx, id); err != nil {
			return view, err
		}
		view.Waits, err = p.operator.Waits(ctx, view.Detail)
		return view, err
	})
}

func (p *Page) showJob(w http.ResponseWriter, r *http.Request) {
	job, err := p.readJob(r.Context(), r.PathValue("job"))
	if err != nil {
		p.refuse(r.Context(), w, err, Path)
		return
	}
	page := jobPage{
		frame: p.frame(r, "Job "+abbreviated(job.ID), p.operator.Now()), Base: jobPath(job.ID), Job: job,
		All: r.URL.Query().Get("all") != "", UnitCounts: unitCounts(job.Units),
	}
	for _, progress := range job.Progress {
		page.Total.Resources += progress.Resources
		page.Total.Bytes += progress.Bytes
		page.Total.Stored += progress.Stored
		page.Total.Files += progress.Files
	}
	units := sortedUnits(job.Units, page.All)
	offset, err := strconv.Atoi(r.URL.Query().Get("units"))
	if err != nil || offset < 0 || offset >= len(units) {
		offset = 0
	}
	end := min(offset+unitsShown, len(units))
	page.Groups = groupsOf(job.Detail, units[offset:end])
	if end-offset < len(units) {
		page.UnitCounts += fmt.Sprintf("; shown: %d to %d of %d", offset+1, end, len(units))
	}
	if offset > 0 {
		page.Previous = page.unitsURL(max(offset-unitsShown, 0))
	}
	if end < len(units) {
		page.Next = page.unitsURL(end)
	}
	p.render(w, http.StatusOK, "job.html", page)
}

func (p jobPage) unitsURL(offset int) string {
	query := url.Values{"units": {strconv.Itoa(offset)}}
	if p.All {
		query.Set("all", "true")
	}
	return p.Base + "?" + query.Encode()
}

// CanCancel and CanPurge report whether an action is offered. The action checks again, because the state may have changed.
func (p jobPage) CanCancel() bool { return p.Job.State.Live() }

// CanPurge is like CanCancel.
func (p jobPage) CanPurge() bool { return !p.Job.State.Live() }

// groupsOf groups the sorted units of a page.
func groupsOf(job ops.Detail, units []ops.Unit) (groups []unitGroup) {
	counts := countsOf(job.Units)
	for _, unit := range units {
		if len(groups) == 0 || groups[len(groups)-1].State != unit.State {
			groups = append(groups, unitGroup{
				State: unit.State, Count: counts[unit.State], Retry: len(unitsIn(job, unit.State, canRetry)) > 0,
				GiveUp: len(unitsIn(job, unit.State, canGiveUp)) > 0,
			})
		}
		last := &groups[len(groups)-1]
		last.Units = append(last.Units, unit)
	}
	return groups
}

func unitsIn(job ops.Detail, state ops.UnitState, can func(ops.Detail, ops.Unit) bool) (units []ops.Unit) {
	for _, unit := range job.Units {
		if unit.State == state && can(job, unit) {
			units = append(units, unit)
		}
	}
	return units
}

// canRetry reports whether the page offers to retry a unit. A unit in the queue runs anyway.
func canRetry(job ops.Detail, u ops.Unit) bool {
	return job.State.Live() && (u.State == ops.UnitFailed && job.State != export.Sealing ||
		u.State == ops.UnitDelayed || u.State == ops.UnitRunning)
}

// canGiveUp reports whether the page offers to give up a unit.
func canGiveUp(job ops.Detail, u ops.Unit) bool {
	return job.State.Live() && (u.State == ops.UnitDelayed || u.State == ops.UnitRunning) &&
		u.Kind != export.KindPlan && u.Kind != export.KindSeal
}

// lastHeard formats the time since a unit's last heartbeat, or until its next attempt.
func lastHeard(u ops.Unit) string {
	switch u.State {
	case ops.UnitDelayed:
		return "retry in " + age(-u.Silent.Duration)
	case ops.UnitRunning, ops.UnitQueued:
		return age(u.Silent.Duration) + " ago"
	case ops.UnitWaiting, ops.UnitDone, ops.UnitFailed:
	}
	return "–"
}

func percent(p ops.Progress) int { return 100 * (p.Done + p.Failed) / max(p.Units, 1) }

// unitOrder puts the units that need attention first.
var unitOrder = []ops.UnitState{
	ops.UnitFailed, ops.UnitDelayed, ops.UnitRunning, ops.UnitQueued, ops.UnitWaiting, ops.UnitDone,
}

func sortedUnits(units []ops.Unit, all bool) []ops.Unit {
	sorted := slices.Clone(units)
	if !all {
		sorted = slices.DeleteFunc(sorted, func(u ops.Unit) bool { return u.State == ops.UnitDone })
	}
	slices.SortStableFunc(sorted, func(a, b ops.Unit) int {
		return cmp.Compare(slices.Index(unitOrder, a.State), slices.Index(unitOrder, b.State))
	})
	return sorted
}

func countsOf(units []ops.Unit) map[ops.UnitState]int {
	counts := map[ops.UnitState]int{}
	for _, unit := range units {
		counts[unit.State]++
	}
	return counts
}

func unitCounts(units []ops.Unit) string {
	counts := countsOf(units)
	var parts []string
	for _, state := range unitOrder {
		if counts[state] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[state], state))
		}
	}
	return strings.Join(parts, ", ")
}
