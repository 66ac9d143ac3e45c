package pipeline

import (
	"context"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/idset"
)

// verdict is what the guard says of a resource.
type verdict int

const (
	admitted  verdict = iota
	withheld          // it is about the cohort, and about somebody outside of it too
	elsewhere         // it is about somebody asked for, and written or withheld where its home is asked for
)

// guard checks every resource against the cohort before it becomes a line, whatever the source says of it (SPEC 10).
// It reads the subject from the line itself; only for a Provenance it has to take the source's word for whom the
// targets are about, and then only to be stricter.
type guard struct {
	typ     string
	cohort  *idset.List
	scanner fhir.Scanner
	chunk   []string // the part of the cohort that was asked for, ascending
	people  []string // scratch
}

// check returns whether the resource may be written. A resource about several members comes for each of them
// (source.Source); it is at home with the smallest of their ids, so that exactly one chunk writes or counts it. An
// error is a refusal: the source gave something that it was not asked for, so nothing it gives can be trusted, and the
// unit fails.
func (g *guard) check(ctx context.Context, r source.Resource) (verdict, error) {
	facts, err := g.scanner.Scan(r.Body)
	if err != nil {
		return 0, refuse("a line that cannot be read")
	}
	if facts.Type != g.typ || r.Type != g.typ || facts.ID != r.ID {
		return 0, refuse("a resource of another type or id than asked for")
	}
	g.people = g.people[:0]
	if facts.Type == "Patient" {
		g.people = append(g.people, facts.ID)
	}
	for _, subject := range facts.Subjects {
		if subject.Type == "Patient" {
			g.people = append(g.people, subject.ID)
		}
	}
	if facts.Type == "Provenance" {
		g.people = append(g.people, r.Subjects...)
	}
	home, outside, asked := "", false, false // home: the smallest that is in the cohort
	for _, patient := range g.people {
		_, found := slices.BinarySearch(g.chunk, patient)
		asked = asked || found
		if !found {
			if found, err = g.cohort.Contains(ctx, patient); err != nil {
				return 0, fmt.Errorf("look up the cohort: %w", err)
			}
		}
		switch {
		case !found:
			outside = true
		case home == "" || patient < home:
			home = patient
		}
	}
	_, here := slices.BinarySearch(g.chunk, home)
	switch {
	case home == "":
		return 0, refuse("a resource that is about nobody in the cohort")
	case !asked:
		return 0, refuse("a resource that is about nobody it was asked for")
	case !here:
		return elsewhere, nil
	case outside:
		return withheld, nil
	}
	return admitted, nil
}

func refuse(what string) error {
	return export.Permanent("the source gave %s; nothing of this part was published", what)
}
