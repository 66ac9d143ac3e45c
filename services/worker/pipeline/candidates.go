package pipeline

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// isCandidate reports whether the unit only collects Provenance that may be associated.
func isCandidate(request export.Request, unit export.Unit) bool {
	return request.Associated != "" && unit.Kind == export.KindExport && unit.Type == "Provenance" &&
		unit.Scope != export.ScopeFollowed && unit.Scope != export.ScopeGone
}

// ofPatients reports whether the request asks for the type because it is about patients. Provenance that is only associated
// with referenced types is not.
func ofPatients(request export.Request, typ string) bool {
	return fhir.InCompartment(typ) && (typ != "Provenance" || request.Associated == "" || len(request.Through) == 0)
}

// associate prepares the sink for the unit's part in associated data, if the request asks for it.
func (w *Worker) associate(
	ctx context.Context, lease export.Lease, job export.Job, cohort *spillset.List, sink *sink,
) (err error) {
	unit := lease.Unit
	switch {
	case unit.Kind == export.KindExportAssociated:
		sink.refs.types = nil // the references unit has followed them
		sink.kept, err = w.openKept(ctx, job.Request, unit, cohort)
		return err
	case job.Request.Associated == "" || unit.Scope == export.ScopeFollowed:
		return nil
	}
	prefix := export.ReferencesPrefix(lease.Job, unit.ID, lease.Fence)
	sink.targets = &targetCollector{
		types: sink.refs.types, cohort: cohort, targets: spillset.NewBuilder(w.Objects, prefix+"targets/"),
	}
	if isCandidate(job.Request, unit) {
		sink.targets.links = spillset.NewBuilder(w.Objects, prefix+"links/")
	}
	return nil
}

// targetCollector collects what was written, or what may be associated with it.
type targetCollector struct {
	types   map[string]bool // the referenced types whose references count
	cohort  *spillset.List
	targets *spillset.Builder
	links   *spillset.Builder // of candidates, else nil
}

// areCandidates reports whether the unit reads candidates.
func (c *targetCollector) areCandidates() bool { return c != nil && c.links != nil }

// written adds a resource that was written.
func (c *targetCollector) written(ctx context.Context, r source.Resource) error {
	if c == nil {
		return nil
	}
	return c.targets.Add(ctx, r.Type+"/"+r.ID)
}

// candidate adds a Provenance with its targets and references.
func (c *targetCollector) candidate(ctx context.Context, r source.Resource) error {
	p, err := readProvenance(r)
	if err != nil {
		return err
	}
	place := placeOf(c.cohort, r)
	for _, target := range p.targets {
		if err := c.targets.Add(ctx, fmt.Sprintf("%s,%s,%08d", target, p.rank, place)); err != nil {
			return err
		}
	}
	fhir.References(r.Body, func(ref fhir.Ref) bool {
		if c.types[ref.Type] {
			err = c.links.Add(ctx, fmt.Sprintf("%s,%s/%s", keptKey(place, r.ID), ref.Type, ref.ID))
		}
		return err == nil
	})
	return err
}

// store sets the runs of the unit's result.
func (c *targetCollector) store(ctx context.Context, result *export.Result) (err error) {
	if c == nil {
		return nil
	}
	if result.Targets, err = c.targets.Spill(ctx); err == nil && c.links != nil {
		result.Found, result.Filtered = result.Withheld, 0 // the second reading counts the others
		result.References, err = c.links.Spill(ctx)
	}
	if err != nil {
		return fmt.Errorf("store targets: %w", err)
	}
	return nil
}

// provenance is what decides whether a Provenance is associated.
type provenance struct {
	targets []string // "Type/id"
	rank    string   // "recorded,updated,id"; the newer of two sorts later
}

func readProvenance(r source.Resource) (p provenance, err error) {
	var fields struct {
		Recorded string
		Meta     struct{ LastUpdated string }
		Target   []struct{ Reference string }
	}
	// A field of another JSON type counts as absent.
	if err := json.Unmarshal(r.Body, &fields); err != nil && !errors.As(err, new(*json.UnmarshalTypeError)) {
		return p, fmt.Errorf("read Provenance: %w", err)
	}
	for _, target := range fields.Target {
		if ref, local := fhir.ParseReference(target.Reference); local {
			p.targets = append(p.targets, ref.Type+"/"+ref.ID)
		}
	}
	p.rank = sortable(fields.Recorded) + "," + sortable(fields.Meta.LastUpdated) + "," + r.ID
	return p, nil
}

// sortable returns an instant in a form whose byte order is that of time. What is no instant sorts before all.
func sortable(instant string) string {
	at, err := time.Parse(time.RFC3339Nano, instant)
	if err != nil {
		return "-"
	}
	return at.UTC().Format("2006-01-02T15:04:05.000000000")
}

// keptKey returns the name of a Provenance in the list of those that are kept. The place keeps those of neighbouring
// patients together.
func keptKey(place int, id string) string { return fmt.Sprintf("%08d/%s", place, id) }

// placeOf returns the number of the cohort's chunk that the resource is near, from 1, or 0 for one about no patient.
func placeOf(cohort *spillset.List, r source.Resource) int {
	if cohort == nil || len(r.Subjects) == 0 { // a unit without a cohort reads nothing about patients
		return 0
	}
	return cohort.Place(r.Subjects[0]) + 1
}
