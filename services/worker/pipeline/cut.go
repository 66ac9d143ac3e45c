package pipeline

import (
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// cut divides each type that the grant allows into units of about cfg.unitBytes, never finer than a chunk of the cohort.
// A type that the source has never held has no unit.
//
// At the system level the units of the compartment read ranges of patients, with everything that is about nobody in the
// first range, if the owner may see every patient. An owner who may not gets the data of the cohort, and of each type what
// is about no patient: planShortfall tells which types cannot be told apart.
func cut(request export.Request, chosen selection, sizes source.Sizes, cfg Config) []export.Unit {
	types, scope := allowed(request.Types, chosen.grant), export.ScopeCohort
	system := request.AtLevel() == export.SystemLevel
	switch {
	case system && chosen.everybody:
		scope = export.ScopeAll
	case !system && !slices.ContainsFunc(types, fhir.InCompartment):
		types, scope = allowed(request.Through, chosen.grant), export.ScopeFollowed
	}
	var wholes, units []export.Unit
	var total int64
	for _, typ := range types {
		size, held := sizes.Types[typ]
		if !held {
			continue
		}
		if fhir.InCompartment(typ) && (chosen.cohort.Chunks > 0 || scope == export.ScopeAll) {
			wholes = append(wholes, export.Unit{
				ID: export.UnitID(typ), Kind: export.KindExport, Type: typ, Scope: scope,
				Slice: export.Slice{From: 0, To: chosen.cohort.Chunks}, Bytes: share(size, sizes, chosen.cohort),
			})
			total += wholes[len(wholes)-1].Bytes
		}
		if scope != export.ScopeAll && fhir.MayNamePatients(typ) {
			continue
		}
		if system && (!fhir.InCompartment(typ) || scope != export.ScopeAll) {
			nobody := export.Unit{
				ID: export.UnitID(typ + "-nobody"), Kind: export.KindExport, Type: typ, Scope: scope, Bytes: size.Bytes,
			}
			if scope != export.ScopeAll {
				nobody.Scope = export.ScopeNobody
			}
			if fhir.InCompartment(typ) {
				nobody.Bytes = 0 // unknown, and mostly little
			}
			units = append(units, nobody)
		}
	}
	for _, whole := range wholes {
		units = append(units, divide(whole, cfg.unitBytes(total))...)
	}
	return units
}

// share is the estimated size of the cohort's part of a type.
func share(size source.TypeSize, sizes source.Sizes, cohort export.Cohort) int64 {
	if sizes.Patients <= cohort.Patients {
		return size.Bytes
	}
	return int64(float64(size.Bytes) * float64(cohort.Patients) / float64(sizes.Patients))
}

// unitsWanted is the number of units of a large job: enough for hundreds of workers to finish at about the same time, and
// few enough for Redis.
const unitsWanted = 1024

// unitBytes is the target size of the units of a job. UnitMost is the output of one to three minutes, which bounds
// the loss of a worker. A small job has smaller units, so that all workers share it.
func (c Config) unitBytes(total int64) int64 {
	return max(min(total/unitsWanted, c.UnitMost), c.UnitBytes)
}

// divide cuts a unit into units of about unitBytes, never finer than a chunk, and appends a number to their ids.
func divide(whole export.Unit, unitBytes int64) []export.Unit {
	chunks := whole.Slice.To - whole.Slice.From
	parts := int(max(min((whole.Bytes+unitBytes-1)/unitBytes, int64(chunks)), 1))
	units := make([]export.Unit, parts)
	for i := range units {
		units[i] = whole
		units[i].ID = export.UnitID(fmt.Sprintf("%s-%05d", whole.ID, i))
		units[i].Slice = export.Slice{
			From: whole.Slice.From + i*chunks/parts, To: whole.Slice.From + (i+1)*chunks/parts,
		}
		units[i].Bytes = whole.Bytes / int64(parts)
	}
	return units
}

