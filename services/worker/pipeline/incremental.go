package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// requestOf returns the request as the unit carries it out: some units read everything, whatever changed.
func requestOf(job export.Job, unit export.Unit) export.Request {
	request := job.Request
	whole := unit.Kind != export.KindExport && unit.Kind != export.KindExportAssociated
	if whole || slices.Contains([]export.Scope{export.ScopeJoined, export.ScopeFollowed, export.ScopeLeading}, unit.Scope) {
		request.Since, request.After = time.Time{}, time.Time{}
	}
	return request
}

// windowOf returns the window of the unit's queries.
func windowOf(job export.Job, unit export.Unit) source.Window { return window(requestOf(job, unit)) }

// window returns the window that the request asks for.
func window(request export.Request) source.Window {
	return source.Window{After: request.After, Since: request.Since}
}

// sinceOf returns the instant at which the window of an incremental request begins.
func sinceOf(request export.Request) time.Time {
	if !request.After.IsZero() {
		return request.After
	}
	return request.Since
}

// windowStage passes the lines whose lastUpdated is after `_since` and before `_until`, and those without one (P-07, P-12,
// P-36).
func windowStage(request export.Request, _ string) (stage, error) {
	if request.Since.IsZero() && request.Until.IsZero() {
		return nil, nil
	}
	var scanner fhir.Scanner
	return func(line []byte) ([]byte, error) {
		facts, err := scanner.Scan(line)
		if err != nil {
			return nil, fmt.Errorf("read lastUpdated: %w", err)
		}
		at := facts.LastUpdated
		if at.IsZero() || at.After(request.Since) && (request.Until.IsZero() || at.Before(request.Until)) {
			return line, nil
		}
		return nil, nil
	}, nil
}

// chooseIncrement completes the selection of an incremental export. Of an owner who gets everything only the window counts.
func (w *Worker) chooseIncrement(ctx context.Context, job export.Job, snapshot time.Time, chosen *selection) error {
	system := job.Request.AtLevel() == export.SystemLevel && job.Request.OrganizedBy == ""
	if !job.Request.Incremental() || system && chosen.everybody {
		return nil
	}
	joined, err := w.joined(ctx, job, snapshot, chosen.cohort)
	if err != nil {
		return err
	}
	chosen.cohort.Joined, chosen.joinedCount = sublist(joined), joined.Count
	if job.Request.AtLevel() != export.GroupLevel {
		gone, err := w.gone(ctx, job, snapshot, *chosen)
		if err != nil {
			return err
		}
		chosen.cohort.Gone = sublist(gone)
	}
	if system {
		return nil
	}
	return w.chooseFollowed(ctx, job, snapshot, chosen)
}

func sublist(stored spillset.Stored) export.Sublist {
	return export.Sublist{Prefix: stored.Prefix, Chunks: stored.Chunks, Digest: stored.Digest}
}

// joined stores those of the cohort who joined since the window of the job began: their data is exported whole (P-11).
func (w *Worker) joined(
	ctx context.Context, job export.Job, snapshot time.Time, stored export.Cohort,
) (joined spillset.Stored, err error) {
	cohort, err := w.lists.Open(ctx, w.Objects, stored.Prefix, stored.Digest)
	if err != nil {
		return joined, err
	}
	prefix := stored.Prefix + "joined/"
	since := sinceOf(job.Request)
	found := spillset.NewBuilder(w.Objects, prefix)
	add := func(patient string) error {
		if in, err := cohort.Contains(ctx, patient); err != nil || !in {
			return err
		}
		return found.Add(ctx, patient)
	}
	if job.Request.AtLevel() == export.GroupLevel {
		err = w.Groups.Joined(ctx, job.Request.GroupID, since, add)
	} else {
		err = w.Source.NewPatients(ctx, since, snapshot, add)
	}
	if err := streamError(ctx, err); err != nil {
		return joined, fmt.Errorf("find out who joined: %w", err)
	}
	if joined, err = found.Store(ctx, prefix); err != nil {
		return joined, fmt.Errorf("store who joined: %w", err)
	}
	return joined, nil
}

// gone stores the patients that were deleted in the window of the job, of those that the owner may see and the request
// names.
func (w *Worker) gone(
	ctx context.Context, job export.Job, snapshot time.Time, chosen selection,
) (gone spillset.Stored, err error) {
	asked, err := w.asked(ctx, job)
	if err != nil {
		return gone, err
	}
	prefix := chosen.cohort.Prefix + "gone/"
	found := spillset.NewBuilder(w.Objects, prefix)
	query := source.DeletedQuery{Type: "Patient", AsOf: snapshot, Window: windowOf(job, export.Unit{Kind: export.KindExport})}
	err = w.Source.Deleted(ctx, query, func(d source.Deletion) error {
		if _, named := slices.BinarySearch(asked, d.ID); d.Held || job.Request.Asked != nil && !named {
			return nil
		}
		return found.Add(ctx, d.ID)
	})
	if err := streamError(ctx, err); err != nil {
		return gone, fmt.Errorf("find deleted patients: %w", err)
	}
	err = w.Access.Patients(ctx, job.Owner, func(read directory.Grant, patients *directory.PatientFilter) (err error) {
		if read.Few, chosen.grant.Few = nil, nil; !reflect.DeepEqual(read, chosen.grant) {
			return errors.New("the grant changed during the plan") // another attempt plans with one version of it
		}
		gone, err = spillset.Write(ctx, w.Objects, prefix, func(yield func(string) error) error {
			return found.Each(ctx, func(patient string) error {
				if included, err := patients.Includes(patient); err != nil || !included {
					return err
				}
				return yield(patient)
			})
		})
		return err
	})
	if err := streamError(ctx, err); err != nil {
		return gone, fmt.Errorf("store deleted patients: %w", err)
	}
	return gone, nil
}

// errFound ends a stream.
var errFound = errors.New("found")

// without returns the ids that the list does not have.
func without(ctx context.Context, ids []string, list *spillset.List) (rest []string, err error) {
	for _, id := range ids {
		listed, err := list.Contains(ctx, id)
		if err != nil {
			return nil, err
		}
		if !listed {
			rest = append(rest, id)
		}
	}
	return rest, nil
}

// deletionsOfALine is the most deletions in one Bundle.
const deletionsOfALine = 100

// deletions writes Bundles that delete resources (M-10).
type deletions struct {
	out     *files
	entries []map[string]any
}

func (d *deletions) add(typ, id string) error {
	d.entries = append(d.entries, map[string]any{"request": map[string]string{"method": "DELETE", "url": typ + "/" + id}})
	if len(d.entries) < deletionsOfALine {
		return nil
	}
	return d.flush()
}

func (d *deletions) flush() error {
	if len(d.entries) == 0 {
		return nil
	}
	line, err := json.Marshal(map[string]any{"resourceType": "Bundle", "type": "transaction", "entry": d.entries})
	if err != nil {
		return fmt.Errorf("encode deletions: %w", err)
	}
	d.entries = d.entries[:0]
	return d.out.write(line)
}

// writeWithDeleted is writeUnit for a unit that may write deletions beside its lines.
func (w *Worker) writeWithDeleted(
	ctx context.Context, lease export.Lease, write func(*files, *deletions) error,
) ([]export.File, error) {
	var written []export.File
	gone, err := w.writeFiles(ctx, lease, "Bundle", deleted, func(out *files) (err error) {
		d := &deletions{out: out}
		written, err = w.writeUnit(ctx, lease, func(out *files) error { return write(out, d) })
		if err != nil {
			return err
		}
		return d.flush()
	})
	return append(written, gone...), err
}

// deleted streams the deletions of the query in the unit's window. Those of patients who joined go back as far as is
// known: they may have been in the cohort earlier.
func (w *Worker) deleted(
	ctx context.Context, job export.Job, query source.DeletedQuery, unit export.Unit, yield func(source.Deletion) error,
) error {
	if unit.Kind == export.KindExportAssociated {
		return nil // the units of the first reading have written them
	}
	query.Window = windowOf(job, unit)
	return w.deletedUntil(ctx, job, query, yield)
}

// deletedUntil streams the deletions of the query as of the job's snapshot and before `_until`.
func (w *Worker) deletedUntil(
	ctx context.Context, job export.Job, query source.DeletedQuery, yield func(source.Deletion) error,
) error {
	query.AsOf = job.Snapshot
	err := w.Source.Deleted(ctx, query, func(d source.Deletion) error {
		if until := job.Request.Until; !until.IsZero() && !d.At.Before(until) {
			return nil
		}
		return yield(d)
	})
	return streamError(ctx, err)
}

// exportDeleted writes the deletions of the patients for whom the guard's source was queried: of resources that the owner
// could have had and does not get any more (M-09).
func (w *Worker) exportDeleted(ctx context.Context, job export.Job, unit export.Unit, g *guard, sink *sink) error {
	if !job.Request.Incremental() || unit.Scope == export.ScopeFollowed || len(g.requested) == 0 {
		return nil
	}
	query := source.DeletedQuery{Type: unit.Type, Patients: g.requested}
	return w.deleted(ctx, job, query, unit, func(d source.Deletion) error {
		home, had, err := g.exportable(ctx, d.Before, true)
		if err != nil || !had {
			return err
		}
		if _, here := slices.BinarySearch(g.requested, home); !here {
			return nil // another chunk writes it
		}
		if d.Held {
			if job.Request.AtLevel() == export.SystemLevel && len(d.Now) == 0 && job.Request.OrganizedBy == "" {
				return nil // the unit of what is about nobody decides about it
			}
			if _, has, err := g.exportable(ctx, d.Now, false); err != nil || has {
				return err
			}
		}
		return sink.gone.add(unit.Type, d.ID)
	})
}

// deletedReferenced writes the deletions of the resources in the unit's slice of the list: exported data still references
// them.
func (w *Worker) deletedReferenced(
	ctx context.Context, job export.Job, unit export.Unit, list *spillset.List, gone *deletions,
) error {
	if !job.Request.Incremental() || !fhir.IsReferenced(unit.Type) {
		return nil
	}
	query := source.DeletedQuery{Type: unit.Type, Window: window(job.Request)}
	return w.deletedUntil(ctx, job, query, func(d source.Deletion) error {
		ref := unit.Type + "/" + d.ID
		place := list.Place(ref)
		if d.Held || place < unit.Slice.From || place >= unit.Slice.To {
			return nil
		}
		if listed, err := list.Contains(ctx, ref); err != nil || !listed {
			return err
		}
		return gone.add(unit.Type, d.ID)
	})
}

// exportable reports whether a resource about the patients is exported, or was by an earlier export, and the one of them
// that it belongs to.
func (g *guard) exportable(ctx context.Context, patients []string, earlier bool) (home string, is bool, err error) {
	for _, patient := range patients {
		if patient == source.Somebody && g.doubtful {
			continue
		}
		_, found, err := g.member(ctx, patient)
		if err == nil && !found && earlier && g.gone != nil {
			found, err = g.gone.Contains(ctx, patient)
		}
		if err != nil || !found {
			return "", false, err
		}
		if home, err = g.nearer(ctx, home, patient); err != nil {
			return "", false, err
		}
	}
	return home, home != "", nil
}
