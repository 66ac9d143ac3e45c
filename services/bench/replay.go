package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/token/development"
)

// replayOwners is the number of owners that replayed jobs are divided among.
const replayOwners = 100

// model is a completed job. A replay records another one like it, by the steps of the workers in the job store, without
// their work.
type model struct {
	Job     export.Job
	Units   []export.Unit // in the order of their ids
	Results map[export.UnitID]export.Result
}

// newModel runs an export of ten patients.
func (d *deployment) newModel(ctx context.Context, store *jobstore.Store) (m model, err error) {
	job, _, err := d.export(ctx, "ten")
	if err != nil {
		return m, err
	}
	if m.Job, err = store.Job(ctx, export.JobID(lastPart(job.StatusURL))); err != nil {
		return m, err
	}
	m.Results = map[export.UnitID]export.Result{}
	err = store.Results(ctx, m.Job.ID, func(unit export.Unit, result export.Result) error {
		m.Units = append(m.Units, unit)
		m.Results[unit.ID] = result
		return nil
	})
	return m, err
}

// renamed returns the model with the id of another job, also in the keys of objects.
func (m model) renamed(id export.JobID) (other model, err error) {
	text, err := json.Marshal(m)
	if err != nil {
		return other, err
	}
	return other, json.Unmarshal([]byte(strings.ReplaceAll(string(text), string(m.Job.ID), string(id))), &other)
}

// files returns the keys of the objects that the job keeps until it expires.
func (m model) files() (keys []string) {
	for _, result := range m.Results {
		for _, file := range result.Files {
			keys = append(keys, file.Key)
		}
	}
	if m.Job.Manifest != "" { // it is sealed
		keys = append(keys, m.Job.Manifest)
	}
	return keys
}

// replay records the n'th job like the model. Without seal it is live: it lacks only its seal.
func (m model) replay(ctx context.Context, store *jobstore.Store, n int, seal bool) (model, error) {
	job, err := m.renamed(export.NewJobID())
	if err != nil {
		return job, err
	}
	job.Job = export.Job{
		ID: job.Job.ID, State: export.Scheduled, Request: job.Job.Request, Cohort: job.Job.Cohort, Data: job.Job.Data,
		Owner:     export.Owner{Issuer: development.IssuerName, Subject: fmt.Sprintf("owner-%d", n%replayOwners)},
		Created:   time.Now().UTC().Truncate(time.Millisecond),
		Snapshot:  job.Job.Snapshot.Add(-time.Duration(n) * time.Second), // no two are equal: see NoteTransactionTime
		Resources: job.Job.Resources,
	}
	plan, err := job.create(ctx, store)
	open := []export.Lease{plan}
	for err == nil && len(open) > 0 && (seal || open[0].Unit.Kind != export.KindSeal) {
		var issued []export.Lease
		issued, err = job.run(ctx, store, open[0])
		open = append(open[1:], issued...)
	}
	return job, err
}

// create records the job and returns its plan.
func (m *model) create(ctx context.Context, store *jobstore.Store) (plan export.Lease, err error) {
	plan = export.Lease{Job: m.Job.ID, Unit: export.FirstUnit(), Fence: jobstore.FirstFence}
	if _, err = store.Create(ctx, m.Job, plan.Unit, jobstore.Admission{Limit: 1 << 30}); err != nil {
		return plan, err
	}
	return plan, store.Queued(ctx, m.Job.ID)
}

// run takes a unit from its claim to its commit, and returns the units that are open afterwards and not yet returned.
func (m *model) run(ctx context.Context, store *jobstore.Store, issued export.Lease) ([]export.Lease, error) {
	lease, err := store.Claim(ctx, issued.Job, issued.Unit.ID, issued.Unit.Kind, issued.Fence, rand.Text())
	if err != nil {
		return nil, err
	}
	result := m.Results[lease.Unit.ID]
	for i, file := range result.Files { // their names have the fence
		if origin, ours := export.ParseKey(file.Key); ours {
			old, fresh := fmt.Sprintf(".%d.", origin.Fence), fmt.Sprintf(".%d.", lease.Fence)
			result.Files[i].Name = strings.Replace(file.Name, old, fresh, 1)
			result.Files[i].Key = strings.Replace(file.Key, old, fresh, 1)
		}
	}
	commit := jobstore.Commit{Result: result, Next: m.Job.Request.Next(lease.Unit.Kind, false)}
	switch lease.Unit.Kind {
	case export.KindPlan:
		commit.Plan = &jobstore.Plan{Snapshot: m.Job.Snapshot, Cohort: m.Job.Cohort, Data: m.Job.Data}
		err = store.Stage(ctx, lease, m.unitsOf(export.KindExport))
	case export.KindResolveReferences:
		err = store.Stage(ctx, lease, m.unitsOf(export.KindExportReferenced))
	case export.KindSeal:
		return nil, m.seal(ctx, store, lease, commit)
	default:
	}
	if err == nil {
		err = store.Commit(ctx, lease, commit)
	}
	if err != nil {
		return nil, err
	}
	return store.Issue(ctx, lease.Job, len(m.Units))
}

func (m *model) seal(ctx context.Context, store *jobstore.Store, lease export.Lease, commit jobstore.Commit) error {
	finished, err := store.Time(ctx)
	if err != nil {
		return err
	}
	m.Job.Finished = finished.Truncate(time.Millisecond)
	m.Job.Manifest = export.ManifestKey(lease.Job, lease.Fence)
	if err := store.NoteTransactionTime(ctx, m.Job, m.Job.TransactionTime()); err != nil {
		return err
	}
	const week = 7 * 24 * time.Hour // the default of RETENTION
	commit.Seal = &jobstore.Seal{
		Manifest: m.Job.Manifest, Digest: strings.Repeat("0", 64), Resources: m.Job.Resources, Finished: m.Job.Finished,
		Expires: m.Job.Finished.Add(week),
	}
	return store.Commit(ctx, lease, commit)
}

func (m *model) unitsOf(kind export.Kind) (units []export.Unit) {
	for _, unit := range m.Units {
		if unit.Kind == kind {
			units = append(units, unit)
		}
	}
	return units
}
