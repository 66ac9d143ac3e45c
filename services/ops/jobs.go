package ops

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Job is the operator's view of a job. sluice admin --json prints it.
type Job struct {
	ID       export.JobID   `json:"id"`
	State    export.State   `json:"state"`
	Percent  int            `json:"percent"` // as reported to the owner
	Owner    string         `json:"owner"`   // export.Owner.Key
	Group    string         `json:"group"`
	Types    []string       `json:"types"`
	Dialect  export.Dialect `json:"dialect"`
	Created  time.Time      `json:"created"`
	Snapshot time.Time      `json:"snapshot,omitzero"` // zero: not planned yet
	Finished time.Time      `json:"finished,omitzero"`
	Expires  time.Time      `json:"expires,omitzero"`
	Age      Seconds        `json:"ageSeconds"`
	Patients int64          `json:"patients"`          // in the cohort; 0 before the plan
	Failure  string         `json:"failure,omitempty"` // why the whole job failed, as reported to its owner
	Open     int64          `json:"openUnits"`         // units that are neither done nor given up
	// Incomplete reports that data is missing in a completed job: a unit failed, or something is left out that is no
	// information. Inspect and MarkIncomplete set it.
	Incomplete bool `json:"incomplete"`
}

// Seconds is a duration that JSON encodes as a number of seconds.
type Seconds struct{ time.Duration }

// MarshalJSON writes the seconds with at most three decimals.
func (s Seconds) MarshalJSON() ([]byte, error) {
	return strconv.AppendFloat(nil, float64(s.Milliseconds())/1000, 'f', -1, 64), nil
}

// Filter selects jobs. The zero Filter selects the first page of all jobs, newest first.
type Filter struct {
	Job     string         // prefix of the job's id
	States  []export.State // none: all
	Owner   string         // prefix of the owner's key
	Group   string         // prefix of the group's id
	Older   time.Duration  // minimum age
	Younger time.Duration  // maximum age; 0: none
	Sort    Order
	Offset  int // jobs to skip
	Limit   int // jobs on the page; 0: PageSize
}

// Order is the order of a list of jobs.
type Order string

// The orders. All put jobs that compare equal in the order of Newest.
const (
	Newest  Order = ""        // the last kick-off first
	Longest Order = "longest" // live jobs first, those with the first kick-off before the others
	Busiest Order = "busiest" // those with the most open units first
)

func (f Filter) selects(job Job) bool {
	return strings.HasPrefix(string(job.ID), f.Job) && strings.HasPrefix(job.Owner, f.Owner) &&
		strings.HasPrefix(job.Group, f.Group) && (len(f.States) == 0 || slices.Contains(f.States, job.State)) &&
		job.Age.Duration >= f.Older && (f.Younger == 0 || job.Age.Duration <= f.Younger)
}

// PageSize is the default of Filter.Limit.
const PageSize = 50

// listMost bounds how many jobs of each index List reads.
const listMost = 5000

// Page is one page of a list of jobs.
type Page struct {
	Jobs    []Job                `json:"jobs"`
	Matches int                  `json:"matches"` // jobs that match the filter
	States  map[export.State]int `json:"states"`  // of all jobs that were read, regardless of the filter
	Bounded bool                 `json:"bounded"` // there are more jobs than List reads; the oldest are left out
}

// List returns a page of the live jobs, the finished jobs that have not expired, and the jobs that wait for their purge.
func (o *Operator) List(ctx context.Context, filter Filter) (Page, error) {
	ids, more, err := o.Jobs.ListJobs(ctx, listMost)
	if err != nil {
		return Page{}, err
	}
	records, err := o.Jobs.Jobs(ctx, ids)
	if err != nil {
		return Page{}, err
	}
	page := Page{States: map[export.State]int{}, Bounded: more}
	jobs := []Job{}
	for _, record := range records {
		page.States[record.State]++
		if job := o.show(record); filter.selects(job) {
			jobs = append(jobs, job)
		}
	}
	slices.SortFunc(jobs, func(a, b Job) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	switch filter.Sort {
	case Longest:
		slices.SortStableFunc(jobs, longestFirst)
	case Busiest:
		if err := o.countOpen(ctx, jobs); err != nil {
			return Page{}, err
		}
		slices.SortStableFunc(jobs, func(a, b Job) int { return cmp.Compare(b.Open, a.Open) })
	case Newest:
	}
	page.Matches = len(jobs)
	jobs = jobs[min(max(filter.Offset, 0), len(jobs)):]
	limit := filter.Limit
	if limit <= 0 {
		limit = PageSize
	}
	page.Jobs = jobs[:min(limit, len(jobs))]
	if filter.Sort == Busiest {
		return page, nil
	}
	return page, o.countOpen(ctx, page.Jobs)
}

func longestFirst(a, b Job) int {
	switch {
	case a.State.Live() && b.State.Live():
		return a.Created.Compare(b.Created)
	case a.State.Live():
		return -1
	case b.State.Live():
		return 1
	default:
		return 0
	}
}

// countBatch bounds the reply to one read of counts.
const countBatch = 500

// countOpen sets Open of the live jobs.
func (o *Operator) countOpen(ctx context.Context, jobs []Job) error {
	var live []jobstore.Entry
	for _, job := range jobs {
		if job.State.Live() {
			live = append(live, jobstore.Entry{ID: job.ID})
		}
	}
	open := map[export.JobID]int64{}
	for batch := range slices.Chunk(live, countBatch) {
		counts, err := o.Jobs.Counts(ctx, batch)
		if err != nil {
			return err
		}
		for _, count := range counts {
			open[count.ID] = count.Open
		}
	}
	for i := range jobs {
		jobs[i].Open = open[jobs[i].ID]
	}
	return nil
}

// Find returns the ids of the jobs that List can list and whose id has the prefix. more reports that there are too many
// jobs to tell.
func (o *Operator) Find(ctx context.Context, prefix string) (found []export.JobID, more bool, err error) {
	ids, more, err := o.Jobs.ListJobs(ctx, listMost)
	if err != nil {
		return nil, false, err
	}
	found = slices.DeleteFunc(ids, func(id export.JobID) bool { return !strings.HasPrefix(string(id), prefix) })
	slices.Sort(found)
	return found, more, nil
}

func (o *Operator) show(job export.Job) Job {
	return Job{
		ID: job.ID, State: job.State, Owner: job.Owner.Key(), Group: job.Request.GroupID, Types: job.Request.Types,
		Dialect: job.Request.Dialect, Created: job.Created, Snapshot: job.Snapshot.UTC(), Finished: job.Finished.UTC(),
		Expires: job.Expires.UTC(), Age: Seconds{o.Now().Sub(job.Created)}, Percent: job.Percent,
		Patients: job.Cohort.Patients, Failure: job.Failure,
	}
}

// UnitState is the state of a unit.
type UnitState string

// The states of units.
const (
	UnitWaiting UnitState = "waiting" // not yet in the queue
	UnitQueued  UnitState = "queued"  // in the queue
	UnitDelayed UnitState = "delayed" // waiting for its next attempt
	UnitRunning UnitState = "running" // claimed by a worker
	UnitDone    UnitState = "done"
	UnitFailed  UnitState = "failed" // given up: an entry of the manifest's error list
)

// Unit is the operator's view of a unit.
type Unit struct {
	ID        export.UnitID `json:"id"`
	Kind      export.Kind   `json:"kind"`
	Type      string        `json:"type,omitempty"` // resource type; none for plan, references and seal
	State     UnitState     `json:"state"`
	Fence     int64         `json:"fence"`
	Attempts  int           `json:"failedAttempts"`
	Silent    Seconds       `json:"silentSeconds"`       // since its last heartbeat; negative: until its retry
	Cause     export.Cause  `json:"lastCause,omitempty"` // why it was last returned to the queue or lost
	Failure   string        `json:"failure,omitempty"`   // of a failed unit
	Resources int64         `json:"resources"`           // of a done unit
	Bytes     int64         `json:"bytes"`               // NDJSON; written if done, otherwise estimated
}

// Open reports whether the unit is neither done nor given up.
func (u Unit) Open() bool { return u.State != UnitDone && u.State != UnitFailed }

// Progress is the progress of the units of one resource type.
type Progress struct {
	Type      string `json:"type"`
	Units     int    `json:"units"`
	Done      int    `json:"done"`
	Failed    int    `json:"failed"`
	Running   int    `json:"running"`
	Files     int64  `json:"files"` // this and the fields below count units that are done
	Resources int64  `json:"resources"`
	Bytes     int64  `json:"bytes"`       // NDJSON
	Stored    int64  `json:"storedBytes"` // in the object store
	Withheld  int64  `json:"withheld"`    // resources of a patient of the cohort that are left out
}

// Detail is a job with its units.
type Detail struct {
	Job
	Progress []Progress `json:"progress"`
	Units    []Unit     `json:"units"`
	Errors   []string   `json:"errors"` // of the failed units
	// LeftOut is what the finished units left out, as the error list of the manifest has it.
	LeftOut []export.LeftOut `json:"leftOut"`
	// Rate and Left are the average since the plan, and the time that the open units take at this average. Both are zero
	// unless the job is running and has finished units for a while.
	Rate int64   `json:"bytesPerSecond,omitempty"` // NDJSON
	Left Seconds `json:"leftSeconds,omitzero"`
}

// Inspect returns a job with its units and the progress of each type. It returns ErrNotFound for an unknown job.
func (o *Operator) Inspect(ctx context.Context, id export.JobID) (Detail, error) {
	found, err := o.Jobs.Inspect(ctx, id)
	if err != nil {
		return Detail{}, err
	}
	detail := Detail{Job: o.show(found.Job), Progress: []Progress{}, Units: []Unit{}, Errors: []string{}}
	byType := map[string]*Progress{}
	var units export.Shortfall
	var pace pace
	for _, standing := range found.Units {
		unit := showUnit(standing, found.At)
		pace.add(unit, standing.Unit.Bytes)
		if unit.Open() {
			detail.Open++
		}
		units.Add(standing.Unit, standing.Result)
		detail.Units = append(detail.Units, unit)
		if unit.State == UnitFailed {
			detail.Errors = append(detail.Errors, string(unit.ID)+": "+unit.Failure)
		}
		if unit.Type == "" {
			continue
		}
		if byType[unit.Type] == nil {
			byType[unit.Type] = &Progress{Type: unit.Type}
		}
		byType[unit.Type].add(unit, standing.Result)
	}
	detail.LeftOut = leftOut(found.Job, units)
	detail.Incomplete = detail.State == export.Completed && incomplete(units, detail.LeftOut)
	if detail.State == export.Running {
		detail.Rate, detail.Left.Duration = pace.of(found.At.Sub(detail.Snapshot))
	}
	for _, progress := range byType {
		detail.Progress = append(detail.Progress, *progress)
	}
	slices.SortFunc(detail.Progress, func(a, b Progress) int { return strings.Compare(a.Type, b.Type) })
	return detail, nil
}

// pace estimates the speed of a job from the units that write files. Their estimates count one more than their bytes, as in
// the job's progress.
type pace struct {
	written    int64 // NDJSON bytes of units that are done
	done, open int64 // estimates of closed and open units
}

// paceAfter is how long a job has to run before its speed is known.
const paceAfter = 10 * time.Second

func (p *pace) add(unit Unit, estimate int64) {
	switch {
	case !unit.Kind.Writes():
	case unit.Open():
		p.open += estimate + 1
	default:
		p.done += estimate + 1
		if unit.State == UnitDone {
			p.written += unit.Bytes
		}
	}
}

// of returns bytes per second and the time for the open units after the job has run for the duration, or zeros.
func (p *pace) of(ran time.Duration) (rate int64, left time.Duration) {
	if ran < paceAfter || p.written == 0 {
		return 0, 0
	}
	rate = int64(float64(p.written) / ran.Seconds())
	return rate, time.Duration(float64(ran) * float64(p.open) / float64(p.done))
}

func (p *Progress) add(unit Unit, result export.Result) {
	p.Units++
	switch unit.State {
	case UnitDone:
		p.Done++
		p.Resources += unit.Resources
		p.Bytes += unit.Bytes
	case UnitFailed:
		p.Failed++
	case UnitRunning:
		p.Running++
	default:
	}
	for _, file := range result.Files {
		if !file.Error {
			p.Files++
			p.Stored += file.Stored
		}
	}
	p.Withheld += result.Withheld
}

func showUnit(s jobstore.UnitStatus, now time.Time) Unit {
	unit := Unit{
		ID: s.Unit.ID, Kind: s.Unit.Kind, Type: s.Unit.Type, Fence: s.Fence, Attempts: s.Attempts, Cause: s.Cause,
		Failure: s.Result.Failure, Bytes: s.Unit.Bytes,
	}
	if !s.Heard.IsZero() {
		unit.Silent = Seconds{now.Sub(s.Heard)}
	}
	switch {
	case s.Closed && unit.Failure != "":
		unit.State = UnitFailed
	case s.Closed:
		unit.State, unit.Bytes = UnitDone, 0
		for _, file := range s.Result.Files {
			if !file.Error {
				unit.Resources += file.Count
				unit.Bytes += file.Bytes
			}
		}
	case s.Claimed:
		unit.State = UnitRunning
	case unit.Silent.Duration < 0:
		unit.State = UnitDelayed
	case s.Waiting || s.Heard.IsZero():
		unit.State = UnitWaiting
	default:
		unit.State = UnitQueued
	}
	return unit
}
