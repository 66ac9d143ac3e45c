package adminui

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/services/ops"
)

const (
	jobsShown    = 25
	purgesShown  = 6
	actionsShown = 8
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
	Actions  []deed        // of operators on this page, the last ones
}

// deed is an entry of the audit log.
type deed struct {
	audit.Entry
	What string
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
	if len(p.incomplete) > summedMost {
		clear(p.incomplete)
	}
	if err = p.operator.MarkIncomplete(ctx, o.List.Jobs, p.incomplete); err != nil {
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
	entries, err := p.operator.Audit.Recent(agentIssuer, 2*actionsShown)
	if err != nil { // the rest of the page does not need it
		p.log.Warn("the audit log cannot be read", "err", err)
	}
	o.Actions = deedsOf(entries)
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

// deedsOf describes the entries, the newest first. An action that was refused or failed has two: the one that was recorded
// before the action is left out.
func deedsOf(entries []audit.Entry) (deeds []deed) {
	type subject struct {
		action audit.Action
		agent  export.Owner
		job    export.JobID
		target string
	}
	undone := map[subject]bool{}
	for _, entry := range entries {
		about := subject{entry.Action, entry.Agent, entry.Job, entry.Target}
		if entry.Outcome == audit.Success && undone[about] {
			delete(undone, about)
			continue
		}
		undone[about] = entry.Outcome != audit.Success
		if len(deeds) < actionsShown {
			deeds = append(deeds, deed{entry, cmp.Or(entry.Target, deedNames[entry.Action], string(entry.Action))})
		}
	}
	return deeds
}

var deedNames = map[audit.Action]string{audit.Cancel: "cancel of a job", audit.Expire: "purge of a job"}

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

// Forms of the fields of the search.
var (
	jobForm   = regexp.MustCompile(`^[a-z2-7]{6,26}$`)
	ownerForm = regexp.MustCompile(`^[0-9a-f]{1,64}$`)
)

// orders and ages are the choices of the search.
var (
	orders = []option{{"", "newest"}, {string(ops.Longest), "longest running"}, {string(ops.Busiest), "most open units"}}
	ages   = []option{
		{"", "any"}, {"under-1h", "under 1 hour"}, {"under-24h", "under 1 day"}, {"over-1h", "over 1 hour"},
		{"over-24h", "over 1 day"}, {"over-168h", "over 7 days"},
	}
)

type option struct{ Value, Text string }

// search is what the list of jobs shows. Query has its fields in a URL, without empty ones.
type search struct {
	ops.Filter
	Query url.Values
}

// searchOf returns the search of a URL's query, or invalidInput.
func searchOf(query url.Values) (search, error) {
	s := search{Filter: ops.Filter{Limit: jobsShown}, Query: url.Values{}}
	for _, name := range []string{"job", "state", "group", "owner", "age", "sort", "from"} {
		text := strings.TrimSpace(query.Get(name))
		if text == "" {
			continue
		}
		if len(text) > 256 {
			return search{}, invalidInput{"The text of the field " + name + " is too long."}
		}
		if problem := s.set(name, text); problem != "" {
			return search{}, invalidInput{problem}
		}
		s.Query.Set(name, text)
	}
	return s, nil
}

// set sets a field, and returns what is wrong with its text.
func (s *search) set(name, text string) (problem string) {
	switch name {
	case "job":
		s.Job = strings.ToLower(strings.TrimSuffix(text, "…")) // as the list shows it
		if !jobForm.MatchString(s.Job) {
			return "Job: enter at least the first 6 characters of the id: letters, and digits from 2 to 7."
		}
	case "state":
		s.States = []export.State{export.State(text)}
		if !slices.Contains(export.States(), s.States[0]) {
			return "State: there is no such state."
		}
	case "group":
		s.Group = text
	case "owner":
		if s.Owner = text; !ownerForm.MatchString(text) {
			return "Owner: enter the first characters of the owner as it is in logs: digits, and letters from a to f."
		}
	case "age":
		side, length, _ := strings.Cut(text, "-")
		d, err := time.ParseDuration(length)
		switch {
		case err != nil || d <= 0 || side != "over" && side != "under":
			return "Age: it has the form over-2h or under-30m."
		case side == "over":
			s.Older = d
		default:
			s.Younger = d
		}
	case "sort":
		s.Sort = ops.Order(text)
		if !slices.ContainsFunc(orders, func(o option) bool { return o.Value == text }) {
			return "Sort: it is longest or busiest."
		}
	case "from":
		offset, err := strconv.Atoi(text)
		if s.Offset = offset; err != nil || offset < 0 {
			return "From: it is a number of jobs to skip."
		}
	}
	return ""
}

// url is the address of the part of the list that begins at the offset.
func (s search) url(path string, offset int) string {
	query := maps.Clone(s.Query)
	query.Del("from")
	if offset > 0 {
		query.Set("from", strconv.Itoa(offset))
	}
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

type overviewPage struct {
	frame
	overview
	Search        search
	States        []export.State
	Orders, Ages  []option
	Newer, Older  string // URLs
	CancelSeveral string // URL
	Chart         chart
	Tiles         []fact
}

func (p *Page) showOverview(w http.ResponseWriter, r *http.Request) {
	search, err := searchOf(r.URL.Query())
	if err != nil {
		p.problem(w, http.StatusBadRequest, "Invalid search", err.Error(), Path)
		return
	}
	if id, err := export.ParseJobID(search.Job); err == nil { // it may be older than the listed ones
		http.Redirect(w, r, jobPath(id), http.StatusSeeOther)
		return
	}
	o, err := p.overviews.get(r.Context(), search.Query.Encode(), func(ctx context.Context) (overview, error) {
		return p.readOverview(ctx, search.Filter)
	})
	if err != nil {
		p.refuse(r.Context(), w, err, Path)
		return
	}
	samples := p.sampler.all()
	page := overviewPage{
		frame: p.frame(r, "Exports", o.At), overview: o, Search: search, States: export.States(), Orders: orders, Ages: ages,
		Chart: chartOf(samples), Tiles: tiles(o, samples),
	}
	if search.Offset > 0 {
		page.Newer = search.url(Path, max(search.Offset-jobsShown, 0))
	}
	if end := search.Offset + len(o.List.Jobs); end < o.List.Matches {
		page.Older = search.url(Path, end)
	}
	if slices.ContainsFunc(o.List.Jobs, func(job ops.Job) bool { return job.State.Live() }) {
		page.CancelSeveral = search.url(Path+"cancel", search.Offset)
	}
	p.render(w, http.StatusOK, "overview.html", page)
}

// Filtered reports whether the list has a filter.
func (p overviewPage) Filtered() bool {
	query := maps.Clone(p.Search.Query)
	query.Del("sort")
	return len(query) > 0
}

// Caption describes the part of the list that is shown.
func (p overviewPage) Caption() string {
	text := plural(p.List.Matches, "job")
	for _, order := range orders {
		if order.Value == string(p.Search.Sort) {
			text += ", " + order.Text + " first"
		}
	}
	if p.List.Matches > len(p.List.Jobs) {
		text = fmt.Sprintf("%d to %d of %s", p.Search.Offset+1, p.Search.Offset+len(p.List.Jobs), text)
	}
	if p.List.Bounded {
		text += "; older ones are not listed"
	}
	return text
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
