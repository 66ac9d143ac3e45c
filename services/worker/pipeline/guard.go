package pipeline

import (
	"context"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// verdict is what the guard says of a resource.
type verdict int

const (
	admitted  verdict = iota
	withheld          // it is about the cohort, and about somebody outside of it too
	elsewhere         // it is about somebody asked for, and written or withheld where its home is asked for
)

// guard checks every resource against the cohort before it becomes a line, whatever the source says of it (spec 10).
// It reads the subject from the line itself, or takes what was read from it when it was stored, as long as the
// attestation shows that the line and the reading belong together; one line in every auditEvery is read all the same.
// Only for a Provenance it has to take the source's word for whom the targets are about, and then only to be stricter.
type guard struct {
	typ     string
	cohort  *spillset.List
	scanner fhir.Scanner
	chunk   []string // the part of the cohort that was asked for, ascending
	people  []string // whom the resource is about; a patient may stand twice
	last    string   // the patient of the last resource that was admitted as about that one alone
	count   int      // resources checked
	reading source.Resource
}

// auditEvery is how many attested resources pass for one that is read again: often enough to stop a store that was
// loaded by broken rules within the first file, and rarely enough to cost nothing.
const auditEvery = 64

// ask says which part of the cohort the resources that follow were asked for.
func (g *guard) ask(chunk []string) { g.chunk, g.last = chunk, "" }

// check returns whether the resource may be written. A resource about several members comes for each of them
// (source.Source); it is at home with the smallest of their ids, so that exactly one chunk writes or counts it. An
// error is a refusal: the source gave something that it was not asked for, so nothing it gives can be trusted, and the
// unit fails.
func (g *guard) check(ctx context.Context, r source.Resource) (verdict, error) {
	err := g.identify(r)
	if err != nil {
		return 0, err
	}
	if len(g.people) == 1 && g.people[0] == g.last { // the lines of one patient stand together
		return admitted, nil
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
	if len(g.people) == 1 {
		g.last = home
	}
	return admitted, nil
}

// identify finds whom the resource is about.
func (g *guard) identify(r source.Resource) error {
	if r.Type != g.typ {
		return refuse("a resource of another type or id than asked for")
	}
	audit := g.count%auditEvery == 0
	g.count++
	switch {
	case !r.Attested():
		if _, err := g.scan(r); err != nil {
			return err
		}
	case r.Attest() != r.Attestation:
		return refuse("a resource that is not what was loaded")
	case audit:
		facts, err := g.scan(r)
		if err != nil {
			return err
		}
		if !slices.Equal(g.people, r.Named) {
			return refuse("a resource that is about others than was loaded")
		}
		if source.Read(&g.reading, facts, r.Body); g.reading.Attestation != r.Attestation {
			return refuse("a resource that references others than was loaded")
		}
	default:
		g.people = append(g.people[:0], r.Named...)
	}
	if r.Type == "Provenance" {
		g.people = append(g.people, r.Subjects...)
	}
	return nil
}

// scan reads from the line itself whom it is about.
func (g *guard) scan(r source.Resource) (fhir.Facts, error) {
	facts, err := g.scanner.Scan(r.Body)
	if err != nil {
		return facts, refuse("a line that cannot be read")
	}
	if facts.Type != g.typ || facts.ID != r.ID {
		return facts, refuse("a resource of another type or id than asked for")
	}
	g.people = source.Named(g.people[:0], facts)
	return facts, nil
}

func refuse(what string) error {
	return export.Permanent("the source gave %s; nothing of this part was published", what)
}
