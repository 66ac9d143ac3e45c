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
	"github.com/sluice-fhir/sluice/services/ops"
)

const (
	jobsShown   = 25
	purgesShown = 6
	// summedMost bounds how many jobs of each index the sum of stored bytes includes.
	summedMost = 5000
)

type fact struct{ Label, Value, Note string }

type overview struct {
	At       time.Time // start of the read
	List     ops.Page
	Totals   map[export.JobID]jobstore.Totals // of the jobs in List and Purges
	JobCount int                              // jobs in Stored
	Stored   int64                            // bytes in the object store, of all jobs
	Kickoffs ops.Kickoffs
	Queues   []ops.Queue
	Workers  []ops.Worker
	Purges   []purge       // the next ones
	Findings []ops.Finding // of the doctor, that need attention
}

type purge struct {
	ID    export.JobID
	State export.State
	At    time.Time
}

func (p *Page) readOverview(ctx context.Context, filter ops.Filter) (o overview, err error) {
	o.At = p.operator.Now()
	if o.List, err = p.operator.List(ctx, filter); err != nil {
		return o, err
	}
	if o.Kickoffs, err = p.operator.Kickoffs(ctx); err != nil {
		return o, err
	}
	if o.Queues, err = p.operator.Queues(ctx); err != nil {
		return o, err
	}
	if o.Workers, err = p.operator.Workers(ctx); err != nil {
		return o, err
	}
	for _, finding := range p.operator.Doctor(ctx, ops.DoctorConfig{}) {
		if finding.Verdict != ops.Good && !finding.Unknown() && finding.Check != "kick-offs" { // these have a notice of their own
			o.Findings = append(o.Findings, finding)
		}
	}
	if err := p.readPurges(ctx, &o); err != nil {
		return o, err
	}
	return o, p.sum(ctx, &o)
}

func (p *Page) readPurges(ctx context.Context, o *overview) error {
	// Every ended job is due for its purge within ten years.
	due, err := p.operator.Jobs.Due(ctx, p.operator.Now().AddDate(10, 0, 0), 0, purgesShown)
	if err != nil {
		return err
	}
	var ids []export.JobID
	for _, entry := range due {
		ids = append(ids, entry.ID)
	}
	records, err := p.operator.Jobs.Jobs(ctx, ids)
	if err != nil {
		return err
	}
	states := map[export.JobID]export.State{}
	for _, record := range records {
		states[record.ID] = record.State
	}
	for _, entry := range due {
		if state, ok := states[entry.ID]; ok { // otherwise it has just been purged
			o.Purges = append(o.Purges, purge{entry.ID, state, entry.At})
		}
	}
	return nil
}

func (p *Page) sum(ctx context.Context, o *overview) error {
	o.Totals = map[export.JobID]jobstore.Totals{}
	for _, job := range o.List.Jobs {
		o.Totals[job.ID] = jobstore.Totals{}
	}
	for _, purge := range o.Purges {
		o.Totals[purge.ID] = jobstore.Totals{}
	}
	ids, _, err := p.operator.Jobs.ListJobs(ctx, summedMost)
	if err != nil {
		return err
	}
	o.JobCount = len(ids)
	for batch := range slices.Chunk(ids, 500) {
		totals, err := p.operator.Jobs.Totals(ctx, batch)
		if err != nil {
			return err
		}
		for i, id := range batch {
			o.Stored += totals[i].Stored
			if _, shown := o.Totals[id]; shown {
				o.Totals[id] = totals[i]
			}
		}
	}
	return nil
}

// filterOf returns the filter of the list of jobs from a URL's query. Invalid values are ignored.
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

type overviewPage struct {
	frame
	overview
	Filter       ops.Filter
	States       []export.State
	Newer, Older string // URLs
	Chart        chart
	Tiles        []fact
}

func (p *Page) showOverview(w http.ResponseWriter, r *http.Request) {
	filter := filterOf(r.URL.Query())
	key := fmt.Sprint(filter.States, "\x00", filter.Owner, "\x00", filter.Offset)
	o, err := p.overviews.get(r.Context(), key, func(ctx context.Context) (overview, error) {
		return p.readOverview(ctx, filter)
	})
	if err != nil {
		p.refuse(r.Context(), w, err, Path)
		return
	}
	samples := p.sampler.all()
	page := overviewPage{
		frame: p.frame(r, "Exports", o.At), overview: o, Filter: filter, States: export.States(), Chart: chartOf(samples),
		Tiles: tiles(o, samples),
	}
	if filter.Offset > 0 {
		page.Newer = listURL(filter, max(filter.Offset-jobsShown, 0))
	}
	if end := filter.Offset + len(o.List.Jobs); end < o.List.Matches {
		page.Older = listURL(filter, end)
	}
	p.render(w, http.StatusOK, "overview.html", page)
}

// Selected reports whether the list is filtered by the state.
func (p overviewPage) Selected(state export.State) bool {
	return slices.Contains(p.Filter.States, state)
}

// Filtered reports whether the list has a filter.
func (p overviewPage) Filtered() bool { return len(p.Filter.States) > 0 || p.Filter.Owner != "" }

// Caption describes the part of the list that is shown.
func (p overviewPage) Caption() string {
	text := plural(p.List.Matches, "job") + ", newest first"
	if p.List.Matches > len(p.List.Jobs) {
		text = fmt.Sprintf("%d to %d of %s", p.Filter.Offset+1, p.Filter.Offset+len(p.List.Jobs), text)
	}
	if p.List.Bounded {
		text += "; older ones are not listed"
	}
	return text
}

func listURL(filter ops.Filter, offset int) string {
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

func tiles(o overview, samples []sample) []fact {
	live, all := 0, 0
	for state, n := range o.List.States {
		all += n
		if state.Live() {
			live += n
		}
	}
	pending, active, slots := 0, 0, 0
	var oldest time.Duration
	for _, q := range o.Queues {
		if q.Units {
			pending += q.Pending
			active += q.Active
			oldest = max(oldest, q.Oldest.Duration)
		}
	}
	for _, worker := range o.Workers {
		slots += worker.Slots
	}
	wait := "none waiting"
	if pending > 0 {
		wait = "the oldest for " + age(oldest)
	}
	resources, bytes := lastMinute(samples)
	return []fact{
		{"Live jobs", count(int64(live)), "of " + plural(all, "job")},
		{"Failed jobs", count(int64(o.List.States[export.Failed])), "kept until they expire"},
		{"Units waiting", count(int64(pending)), wait},
		{"Units running", count(int64(active)), "in " + plural(slots, "slot")},
		{"Resources per second", short(resources), size(int64(bytes)) + "/s, last minute"},
		{"Stored", size(o.Stored), "of jobs not yet purged"},
	}
}
