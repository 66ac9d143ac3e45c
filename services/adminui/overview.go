package adminui

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/services/ops"
)

const (
	jobsShown   = 25
	purgesShown = 6
	// summedMost is how many jobs of each index are added up to the bytes that are stored.
	summedMost = 5000
)

// fact is something with a name.
type fact struct{ Label, Value, Note string }

type overviewPage struct {
	frame
	Intake       intakeView
	Tiles        []fact
	Jobs         []jobRow
	JobsTold     string
	Filtered     bool
	Newer, Older string
	States       []option
	Owner        string
	Chart        chart
	Queues       []queueRow
	Workers      []workerRow
	Stored       string
	Purges       []purgeRow
}

type intakeView struct {
	Paused               bool
	Since, Until, Reason string
}

type option struct {
	Name   string
	Chosen bool
}

type jobRow struct {
	ID                          export.JobID
	Short                       string
	State                       label
	Percent                     int
	Owner, Age, Group, Exported string
}

type queueRow struct {
	Name                       string
	Pending, Active, Scheduled int
	Oldest                     string
}

type workerRow struct {
	Host     string
	PID      int
	State    label
	Up, Busy string
	Drain    string // path of the step; "": it takes no orders
}

type purgeRow struct {
	ID           export.JobID
	Short        string
	State        label
	Stored, When string
}

// overviewLook is what the page is made of, read at one time.
type overviewLook struct {
	list    ops.Page
	at      time.Time                        // when the look began
	totals  map[export.JobID]jobstore.Totals // of the jobs listed and of those to be purged
	jobs    int                              // that were added up
	stored  int64                            // bytes in the object store, of all jobs
	intake  ops.Intake
	queues  []queue.Waiting
	workers []queue.Process
	due     []jobstore.Entry
	states  map[export.JobID]export.State // of those due
}

func (p *Page) look(ctx context.Context, filter ops.Filter) (look overviewLook, err error) {
	look.at = p.Now()
	if look.list, err = p.operator.List(ctx, filter); err != nil {
		return look, err
	}
	if look.intake, err = p.operator.Intake(ctx); err != nil {
		return look, err
	}
	if look.queues, err = p.operator.Queues(ctx); err != nil {
		return look, err
	}
	if look.workers, err = p.operator.Workers(ctx); err != nil {
		return look, err
	}
	// Everything that has an end is due at some time; ten years hence all of it is.
	if look.due, err = p.Jobs.Due(ctx, p.Now().AddDate(10, 0, 0), purgesShown); err != nil {
		return look, err
	}
	due := make([]export.JobID, 0, len(look.due))
	for _, entry := range look.due {
		due = append(due, entry.ID)
	}
	records, err := p.Jobs.Jobs(ctx, due)
	if err != nil {
		return look, err
	}
	look.states = map[export.JobID]export.State{}
	for _, record := range records {
		look.states[record.ID] = record.State
	}
	shown := map[export.JobID]bool{}
	for _, job := range look.list.Jobs {
		shown[job.ID] = true
	}
	for _, id := range due {
		shown[id] = true
	}
	look.totals, look.jobs, look.stored, err = p.sum(ctx, shown)
	return look, err
}

// sum returns what each of the jobs shown has exported, how many jobs there are, and how much the object store holds of
// all of them.
func (p *Page) sum(
	ctx context.Context, shown map[export.JobID]bool,
) (of map[export.JobID]jobstore.Totals, jobs int, stored int64, err error) {
	ids, _, err := p.Jobs.Known(ctx, summedMost)
	if err != nil {
		return nil, 0, 0, err
	}
	of = make(map[export.JobID]jobstore.Totals, len(shown))
	for batch := range slices.Chunk(ids, 500) {
		totals, err := p.Jobs.Totals(ctx, batch)
		if err != nil {
			return nil, 0, 0, err
		}
		for i, id := range batch {
			if shown[id] {
				of[id] = totals[i]
			}
			stored += totals[i].Stored
		}
	}
	return of, len(ids), stored, nil
}

// filterOf reads which jobs are asked for. What is none is left out: a list shows more then, never something else.
func filterOf(query url.Values) ops.Filter {
	filter := ops.Filter{Limit: jobsShown}
	if state := export.State(query.Get("state")); slices.Contains(export.States(), state) {
		filter.States = []export.State{state}
	}
	if owner := query.Get("owner"); len(owner) <= 64 {
		filter.Owner = owner
	}
	if offset, err := strconv.Atoi(query.Get("from")); err == nil && offset > 0 {
		filter.Offset = offset
	}
	return filter
}

func (p *Page) overview(w http.ResponseWriter, r *http.Request) {
	filter := filterOf(r.URL.Query())
	key := fmt.Sprint(filter.States, "\x00", filter.Owner, "\x00", filter.Offset)
	look, err := p.overviews.at(r.Context(), key, func(ctx context.Context) (overviewLook, error) {
		return p.look(ctx, filter)
	})
	if err != nil {
		p.refuse(w, err, Path)
		return
	}
	now := look.at
	samples := p.meter.all()
	page := overviewPage{
		frame: p.frame(r, "Exports", now), Chart: draw(samples, p.Now()), Owner: filter.Owner,
		Filtered: len(filter.States) > 0 || filter.Owner != "", Intake: showIntake(look.intake), Tiles: tiles(look, samples),
	}
	for _, state := range export.States() {
		page.States = append(page.States, option{string(state), slices.Contains(filter.States, state)})
	}
	page.JobsTold = told(look.list, filter)
	for _, job := range look.list.Jobs {
		page.Jobs = append(page.Jobs, jobRow{
			ID: job.ID, Short: abbreviated(job.ID), State: stateOf(job.State), Percent: job.Percent, Owner: job.Owner[:16],
			Age: age(job.Age), Group: job.Group, Exported: size(look.totals[job.ID].Bytes),
		})
	}
	if filter.Offset > 0 {
		page.Newer = from(filter, max(filter.Offset-jobsShown, 0))
	}
	if end := filter.Offset + len(look.list.Jobs); end < look.list.Matches {
		page.Older = from(filter, end)
	}
	for _, q := range look.queues {
		page.Queues = append(page.Queues, queueRow{
			Name: q.Queue, Pending: q.Pending, Active: q.Active, Scheduled: q.Scheduled + q.Retry, Oldest: waited(q),
		})
	}
	for _, worker := range look.workers {
		page.Workers = append(page.Workers, showWorker(worker, now))
	}
	page.Stored = fmt.Sprintf("%s in the object store, of %s.", size(look.stored), plural(look.jobs, "job"))
	for _, entry := range look.due {
		state, there := look.states[entry.ID]
		if !there {
			continue // purged a moment ago
		}
		page.Purges = append(page.Purges, purgeRow{
			ID: entry.ID, Short: abbreviated(entry.ID), State: stateOf(state), Stored: size(look.totals[entry.ID].Stored),
			When: until(entry.At, now),
		})
	}
	p.render(w, http.StatusOK, "overview.html", page)
}

// tiles are the few numbers to look at first.
func tiles(look overviewLook, samples []sample) []fact {
	live, failed := 0, look.list.States[export.Failed]
	all := 0
	for state, n := range look.list.States {
		all += n
		if state.Live() {
			live += n
		}
	}
	pending, active := 0, 0
	var oldest time.Duration
	for _, q := range look.queues {
		if q.Units {
			pending += q.Pending
			active += q.Active
			oldest = max(oldest, q.Oldest)
		}
	}
	slots := 0
	for _, worker := range look.workers {
		slots += worker.Slots
	}
	wait := "nothing waits"
	if pending > 0 {
		wait = "the oldest for " + age(oldest)
	}
	resources, bytes := lately(samples)
	return []fact{
		{"Jobs at work", count(int64(live)), fmt.Sprintf("of %s", plural(all, "job"))},
		{"Failed jobs", count(int64(failed)), "kept until they expire"},
		{"Units waiting", count(int64(pending)), wait},
		{"Units at work", count(int64(active)), "in " + plural(slots, "slot")},
		{"Resources a second", short(resources), size(int64(bytes)) + "/s, last minute"},
		{"Stored", size(look.stored), "of jobs not yet purged"},
	}
}

// lately is the mean of the samples of the last minute.
func lately(samples []sample) (resources, bytes float64) {
	var sum sample
	for _, s := range slices.Backward(samples) {
		if sum.Took >= time.Minute {
			break
		}
		sum.Took += s.Took
		sum.Resources += s.Resources
		sum.Bytes += s.Bytes
	}
	return sum.perSecond()
}

func showIntake(intake ops.Intake) intakeView {
	view := intakeView{Paused: !intake.Open, Reason: intake.Pause.Reason}
	if view.Paused {
		view.Since = instant(intake.Pause.Since)
		if !intake.Pause.Until.IsZero() {
			view.Until = instant(intake.Pause.Until)
		}
	}
	return view
}

func showWorker(worker queue.Process, now time.Time) workerRow {
	row := workerRow{
		Host: worker.Host, PID: worker.PID, State: label{"idle", quiet}, Up: since(worker.Started, now),
		Busy: fmt.Sprintf("%d of %d", len(worker.Tasks), worker.Slots),
	}
	switch {
	case worker.Draining:
		row.State = label{"draining", warn}
	case len(worker.Tasks) > 0:
		row.State = label{"at work", busy}
	}
	if worker.Obeys && !worker.Draining {
		row.Drain = Path + "workers/" + url.PathEscape(worker.ID) + "/drain"
	}
	return row
}

// told says which part of which jobs a list is.
func told(list ops.Page, filter ops.Filter) string {
	text := fmt.Sprintf("%s, the newest first", plural(list.Matches, "job"))
	if list.Matches > len(list.Jobs) {
		text = fmt.Sprintf("%d to %d of %s", filter.Offset+1, filter.Offset+len(list.Jobs), text)
	}
	if list.Bounded {
		text += "; older ones are not looked at"
	}
	return text
}

// from is the address of another page of the list.
func from(filter ops.Filter, offset int) string {
	query := url.Values{}
	if len(filter.States) > 0 {
		query.Set("state", string(filter.States[0]))
	}
	if filter.Owner != "" {
		query.Set("owner", filter.Owner)
	}
	if offset > 0 {
		query.Set("from", strconv.Itoa(offset))
	}
	return Path + "?" + query.Encode()
}

func waited(q queue.Waiting) string {
	if q.Pending == 0 {
		return "–"
	}
	return age(q.Oldest)
}
