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

// verdict is the guard's decision on a resource that it does not refuse. The zero value is not a verdict.
type verdict int

const (
	admitted  verdict = iota + 1
	withheld          // guard.why is the reason
	elsewhere         // another chunk of the cohort writes it or counts it as withheld
)

// guard checks every resource against the cohort before it is written, independently of the source's report (spec 10).
// It reads the patients from the line itself, or from the attestation made at load time, if its hash matches the
// line. One line in every recheckEvery is parsed regardless of its attestation. For a
// Provenance the patients of its targets come from the source; they can only make the verdict stricter.
type guard struct {
	typ       string
	cohort    *spillset.List
	joined    *spillset.List // those of the cohort whose data is exported whole by units of their own; nil: none
	gone      *spillset.List // patients who were in the cohort of an earlier export; nil: none
	blocks    bool           // admit a resource about several members for each of them (P-37)
	doubtful  bool           // admit resources that are also about somebody who cannot be identified
	scanner   fhir.Scanner
	requested []string      // the part of the cohort that the source was queried for, ascending
	patients  []string      // of the current resource; may contain duplicates
	why       export.Reason // why the current resource is withheld
	last      string        // the only patient of the last admitted resource
	count     int           // resources checked
	reread    source.Resource
	owned     []int // result of owners
}

// recheckEvery is the number of attested resources of which one is parsed: a store that was loaded with wrong rules is
// detected within the first file, at negligible cost.
const recheckEvery = 64

// request sets the patients for which the source is queried next.
func (g *guard) request(patients []string) { g.requested, g.last = patients, "" }

// check decides whether the resource may be written. A resource about several members is returned for each of them
// (source.Source); it belongs to the smallest of their ids, those who joined first, so that exactly one chunk writes or
// counts it. One that was
// loaded under other rules is returned for each of its Subjects, which decide likewise. An error is a
// refusal: the source returned a resource that was not requested. Then none of its data can be trusted, and the unit
// fails.
func (g *guard) check(ctx context.Context, r source.Resource) (verdict, error) {
	g.why = ""
	err := g.identify(r)
	switch {
	case err != nil:
		return 0, err
	case g.why != "":
		return withheld, nil
	}
	old := outdated(r)
	if !old && len(g.patients) == 1 && g.patients[0] == g.last { // the lines of one patient are adjacent
		return admitted, nil
	}
	home, outside, somebody, requested := "", false, false, false // home: the smallest id in the cohort
	for _, patient := range g.patients {
		if patient == source.Somebody {
			somebody = true
			continue
		}
		asked, found, err := g.member(ctx, patient)
		if err != nil {
			return 0, err
		}
		requested = requested || asked
		if !found {
			outside = true
			continue
		}
		if home, err = g.nearer(ctx, home, patient); err != nil {
			return 0, err
		}
	}
	if old { // the source returns it for the patients that it had when it was loaded
		home, requested = "", false
		for _, patient := range r.Subjects {
			asked, found, err := g.member(ctx, patient)
			if err != nil {
				return 0, err
			}
			requested = requested || asked
			if !found {
				continue
			}
			if home, err = g.nearer(ctx, home, patient); err != nil {
				return 0, err
			}
		}
	}
	_, here := slices.BinarySearch(g.requested, home)
	switch {
	case home == "":
		return 0, refuse("a resource without a patient of the export")
	case !requested:
		return 0, refuse("a resource for a patient that was not requested")
	case !here && (!g.blocks || outside || somebody && !g.doubtful):
		return elsewhere, nil
	case outside:
		g.why = export.OtherPatient
		return withheld, nil
	case somebody && !g.doubtful:
		g.why = export.UnknownPatient
		return withheld, nil
	}
	if len(g.patients) == 1 && !old {
		g.last = home
	}
	return admitted, nil
}

// owners returns the places, among the requested patients, of those whom the admitted resource was returned for. The result
// is valid until the next call.
func (g *guard) owners(r source.Resource) []int {
	patients := g.patients
	if outdated(r) {
		patients = r.Subjects
	}
	g.owned = g.owned[:0]
	for _, patient := range patients {
		if at, asked := slices.BinarySearch(g.requested, patient); asked && !slices.Contains(g.owned, at) {
			g.owned = append(g.owned, at)
		}
	}
	return g.owned
}

// nearer returns which of two patients of the cohort a resource about both belongs to; "" is none. A unit that reads only
// what changed would not see an old resource of somebody who joined.
func (g *guard) nearer(ctx context.Context, home, patient string) (string, error) {
	if home == "" {
		return patient, nil
	}
	if g.joined != nil && home != patient {
		joined, err := g.joined.Contains(ctx, home)
		if err != nil {
			return "", fmt.Errorf("look up those who joined: %w", err)
		}
		other, err := g.joined.Contains(ctx, patient)
		if err != nil {
			return "", fmt.Errorf("look up those who joined: %w", err)
		}
		if joined != other {
			if other {
				return patient, nil
			}
			return home, nil
		}
	}
	return min(home, patient), nil
}

// member reports whether the source is queried for the patient, and whether the cohort has it.
func (g *guard) member(ctx context.Context, patient string) (requested, found bool, err error) {
	if _, requested = slices.BinarySearch(g.requested, patient); requested {
		return true, true, nil
	}
	if found, err = g.cohort.Contains(ctx, patient); err != nil {
		err = fmt.Errorf("look up the cohort: %w", err)
	}
	return false, found, err
}

// identify sets g.patients to the patients that the resource is about.
func (g *guard) identify(r source.Resource) error {
	if r.Type != g.typ {
		return errOtherResource
	}
	recheck := g.count%recheckEvery == 0
	g.count++
	switch {
	case !r.Attested():
		facts, err := scanAs(&g.scanner, g.typ, r)
		switch {
		case err != nil && outdated(r):
			g.why = export.Malformed
			return nil
		case err != nil:
			return err
		}
		g.patients = source.Named(g.patients[:0], facts)
		if len(g.patients) == 0 && outdated(r) && r.Type != "Provenance" {
			g.why = source.Homeless(facts)
			return nil
		}
	case r.Attest() != r.Attestation:
		return errNotAsLoaded
	case recheck:
		facts, err := scanAs(&g.scanner, g.typ, r)
		if err != nil {
			return err
		}
		g.patients = source.Named(g.patients[:0], facts)
		if !slices.Equal(g.patients, r.Named) {
			return refuse("a resource whose patients differ from the loaded ones")
		}
		if source.Read(&g.reread, facts, r.Body); g.reread.Attestation != r.Attestation {
			return refuse("a resource whose references differ from the loaded ones")
		}
	default:
		g.patients = append(g.patients[:0], r.Named...)
	}
	if r.Type == "Provenance" {
		g.patients = append(g.patients, r.Subjects...)
	}
	return nil
}

// outdated reports whether the resource was attested under other rules.
func outdated(r source.Resource) bool { return r.Attestation != 0 && !r.Attested() }

// listGuard checks resources that are not about patients against the list of references.
type listGuard struct {
	lineGuard

	list refList
}

// refList is a set of "Type/id".
type refList interface {
	Contains(ctx context.Context, ref string) (bool, error)
}

// checkListed refuses a resource that is not on the list. It withholds one that contains something about a patient: it
// travels along with every export (spec 10).
func (g *listGuard) checkListed(ctx context.Context, typ string, r source.Resource) (verdict, error) {
	facts, err := g.scan(typ, r)
	switch {
	case err != nil:
		return 0, err
	case g.why != "":
		return withheld, nil
	}
	listed, err := g.list.Contains(ctx, facts.Type+"/"+facts.ID)
	switch {
	case err != nil:
		return 0, err
	case !listed:
		return 0, refuse("a resource that no exported resource references")
	case len(facts.Subjects)+facts.Unresolved+facts.Invalid+facts.Foreign > 0:
		g.why = export.UnknownPatient
		return withheld, nil
	}
	return admitted, nil
}

// home returns the smallest listed target of a Provenance. It refuses one with a target in the patient compartment or of
// unknown type, and one without a listed target. It returns "" for one that is withheld.
func (g *listGuard) home(ctx context.Context, r source.Resource) (string, error) {
	facts, err := g.scan("Provenance", r)
	if err != nil || g.why != "" {
		return "", err
	}
	if facts.Unresolved+facts.Invalid > 0 { // a urn or an identifier may name a patient
		return "", refuse("a Provenance with a target of unknown type")
	}
	home := ""
	for _, target := range facts.Subjects {
		if fhir.InCompartment(target.Type) {
			return "", refuse("a Provenance about a patient that was not requested")
		}
		ref := target.Type + "/" + target.ID
		listed, err := g.list.Contains(ctx, ref)
		if err != nil {
			return "", err
		}
		if listed && (home == "" || ref < home) {
			home = ref
		}
	}
	if home == "" {
		return "", refuse("a Provenance without an exported target")
	}
	return home, nil
}

// scanAs parses the line and refuses one of another type or id.
func scanAs(scanner *fhir.Scanner, typ string, r source.Resource) (fhir.Facts, error) {
	facts, err := scanner.Scan(r.Body)
	if err != nil {
		return facts, refuse("an unreadable line")
	}
	if facts.Type != typ || facts.ID != r.ID {
		return facts, errOtherResource
	}
	return facts, nil
}

var (
	errOtherResource = refuse("a resource of another type or id than requested")
	errNotAsLoaded   = refuse("a resource that differs from the loaded one")
)

// refuse returns the error of a refused resource. It is shown to the owner of the job, so it names no patient.
func refuse(what string) error {
	return export.Permanent("the source returned %s; no data of this part was published", what)
}
