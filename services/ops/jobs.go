package ops

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// Job is what an operator sees of a job.
type Job struct {
	ID       export.JobID
	State    export.State
	Owner    string   // export.Owner.Key
	Group    string   // what was asked for
	Types    []string //
	Dialect  export.Dialect
	Created  time.Time
	Snapshot time.Time // zero: not planned yet
	Finished time.Time // zero: not yet
	Expires  time.Time // zero: not yet
	Age      time.Duration
	Percent  int    // as its owner sees it
	Patients int64  // in the cohort; 0 before the plan
	Failure  string // why it failed as a whole, in the words that its owner sees
}

// Filter says which jobs are listed. Its zero value means the first page of all.
type Filter struct {
	States []export.State // none: all
	Owner  string         // the beginning of the owner's key
	Older  time.Duration  // at least this old
	Offset int            // jobs to leave out at the beginning
	Limit  int            // jobs on the page; 0: PageSize
}

// PageSize is how many jobs a page has when nobody says.
const PageSize = 50

// listMost is how many jobs of each index are looked at: what a list costs is bounded, however many jobs there are.
const listMost = 5000

// Page is a part of a list of jobs, the newest first.
type Page struct {
	Jobs    []Job
	Matches int                  // jobs that match the filter
	States  map[export.State]int // of all jobs that were looked at, whatever the filter
	Bounded bool                 // there are more jobs than are looked at; the oldest are left out
}

// List returns a page of the jobs that are at work, finished and not expired, or waiting to be purged.
func (o *Operator) List(ctx context.Context, filter Filter) (Page, error) {
	ids, more, err := o.Jobs.ListJobs(ctx, listMost)
	if err != nil {
		return Page{}, err
	}
	records, err := o.Jobs.Jobs(ctx, ids)
	if err != nil {
		return Page{}, err
	}
	slices.SortFunc(records, func(a, b export.Job) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.ID, b.ID))
	})
	page := Page{Jobs: []Job{}, States: map[export.State]int{}, Bounded: more}
	limit := filter.Limit
	if limit <= 0 {
		limit = PageSize
	}
	for _, record := range records {
		page.States[record.State]++
		job := o.show(record)
		if len(filter.States) > 0 && !slices.Contains(filter.States, job.State) ||
			!strings.HasPrefix(job.Owner, filter.Owner) || job.Age < filter.Older {
			continue
		}
		if page.Matches >= filter.Offset && len(page.Jobs) < limit {
			page.Jobs = append(page.Jobs, job)
		}
		page.Matches++
	}
	return page, nil
}

func (o *Operator) show(job export.Job) Job {
	return Job{
		ID: job.ID, State: job.State, Owner: job.Owner.Key(), Group: job.Request.GroupID, Types: job.Request.Types,
		Dialect: job.Request.Dialect, Created: job.Created, Snapshot: job.Snapshot, Finished: job.Finished,
		Expires: job.Expires, Age: o.Now().Sub(job.Created), Percent: job.Percent, Patients: job.Cohort.Patients,
		Failure: job.Failure,
	}
}

// UnitState is where a unit stands.
type UnitState string

// The states of units.
const (
	UnitWaiting UnitState = "waiting" // not yet handed to the queue
	UnitQueued  UnitState = "queued"  // in the queue
	UnitDelayed UnitState = "delayed" // to be tried again later
	UnitRunning UnitState = "running" // a worker has it
	UnitDone    UnitState = "done"    //
	UnitFailed  UnitState = "failed"  // given up: an entry of the manifest's error list
)

// Unit is what an operator sees of a unit.
type Unit struct {
	ID        export.UnitID
	Kind      export.Kind
	Type      string // resource type; "" for plan, references and seal
	State     UnitState
	Fence     int64
	Attempts  int           // failures so far
	Silent    time.Duration // since it was queued or, running, last heard of; below zero: until a delayed one is tried
	Cause     export.Cause  // why it was last given back or lost; "" when it never was
	Failure   string        // of a failed one
	Resources int64         // of a done one
	Bytes     int64         // NDJSON; of a done one as written, otherwise as estimated
}

// Progress is how far the units of one type are.
type Progress struct {
	Type                            string
	Units, Done, Failed, Run        int   // all; closed; given up; that a worker has
	Files, Resources, Bytes, Stored int64 // of what is done: files, lines, NDJSON bytes, bytes in the object store
	Withheld                        int64 // resources left out because they name somebody outside of the cohort as well
}

// Detail is a job with its units.
type Detail struct {
	Job
	At       time.Time // the instant of Redis' clock that the ages go by
	Progress []Progress
	Units    []Unit
	Errors   []string // what failed, in the words of the manifest's error list
}

// Inspect returns a job with its units and how far each type is. ErrNotFound when there is none.
func (o *Operator) Inspect(ctx context.Context, id export.JobID) (Detail, error) {
	found, err := o.Jobs.Inspect(ctx, id)
	if err != nil {
		return Detail{}, err
	}
	detail := Detail{Job: o.show(found.Job), At: found.At, Units: make([]Unit, 0, len(found.Units))}
	byType := map[string]*Progress{}
	for _, standing := range found.Units {
		unit := showUnit(standing, found.At)
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
	for _, progress := range byType {
		detail.Progress = append(detail.Progress, *progress)
	}
	slices.SortFunc(detail.Progress, func(a, b Progress) int { return strings.Compare(a.Type, b.Type) })
	return detail, nil
}

func (p *Progress) add(unit Unit, result export.Result) {
	p.Units++
	switch unit.State {
	case UnitDone:
		p.Done++
	case UnitFailed:
		p.Failed++
	case UnitRunning:
		p.Run++
	default:
	}
	for _, file := range result.Files {
		if file.Error {
			continue
		}
		p.Files++
		p.Resources += file.Count
		p.Bytes += file.Bytes
		p.Stored += file.Stored
	}
	p.Withheld += result.Withheld
}

func showUnit(s jobstore.UnitStatus, now time.Time) Unit {
	unit := Unit{
		ID: s.Unit.ID, Kind: s.Unit.Kind, Type: s.Unit.Type, Fence: s.Fence, Attempts: s.Attempts, Cause: s.Cause,
		Failure: s.Result.Failure, Bytes: s.Unit.Bytes,
	}
	if !s.Heard.IsZero() {
		unit.Silent = now.Sub(s.Heard)
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
	case unit.Silent < 0:
		unit.State = UnitDelayed
	case s.Waiting || s.Heard.IsZero():
		unit.State = UnitWaiting
	default:
		unit.State = UnitQueued
	}
	return unit
}
