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
	if request.OrganizedBy != "" {
		return cutOrganized(request, chosen, sizes, cfg)
	}
	types, scope := allowed(request.Types, chosen.grant), export.ScopeCohort
	system := request.AtLevel() == export.SystemLevel
	switch {
	case system && chosen.everybody:
		scope = export.ScopeAll
	case !system && !slices.ContainsFunc(types, func(typ string) bool { return ofPatients(request, typ) }):
		types, scope = allowed(request.Through, chosen.grant), export.ScopeFollowed
	}
	var wholes, units []export.Unit
	var total int64
	add := func(typ string, scope export.Scope, suffix string, chunks int, bytes int64) {
		unit := export.Unit{
			ID: export.UnitID(typ + suffix), Kind: export.KindExport, Type: typ, Scope: scope,
			Slice: export.Slice{From: 0, To: chunks}, Bytes: bytes,
		}
		if request.Incremental() && scope != export.ScopeJoined && scope != export.ScopeFollowed {
			unit.Bytes /= changedShare
		}
		wholes = append(wholes, unit)
		total += unit.Bytes
	}
	for _, typ := range types {
		size, held := sizes.Types[typ]
		if !held || scope != export.ScopeAll && fhir.MayNamePatients(typ) {
			continue
		}
		bytes := share(size, sizes, chosen.cohort.Patients)
		switch {
		case !fhir.InCompartment(typ) && system && scope == export.ScopeAll:
			add(typ, scope, "-nobody", 0, size.Bytes)
		case !fhir.InCompartment(typ) && system:
			add(typ, export.ScopeNobody, "-nobody", 0, size.Bytes)
		case !fhir.InCompartment(typ):
		case scope == export.ScopeAll:
			add(typ, scope, "", chosen.cohort.Chunks, size.Bytes)
		default:
			if chosen.cohort.Chunks > 0 {
				add(typ, scope, "", chosen.cohort.Chunks, bytes)
			}
			if n := chosen.cohort.Joined.Chunks; n > 0 && scope == export.ScopeCohort {
				add(typ, export.ScopeJoined, "-joined", n, share(size, sizes, chosen.joinedCount))
			}
			if n := chosen.cohort.Gone.Chunks; n > 0 && scope == export.ScopeCohort {
				add(typ, export.ScopeGone, "-gone", n, 0)
			}
			if chosen.followAll && scope == export.ScopeCohort {
				add(typ, export.ScopeFollowed, "-followed", chosen.cohort.Chunks, bytes)
			}
			if system {
				add(typ, export.ScopeNobody, "-nobody", 0, 0) // its size is unknown, and mostly small
			}
		}
	}
	if chosen.leading.Chunks > 0 && chosen.cohort.Chunks > 0 && scope == export.ScopeCohort {
		if whole := leadingUnit(types, chosen, sizes); whole.Types != "" { // else there is no data that could lead
			wholes = append(wholes, whole)
			total += whole.Bytes
		}
	}
	for _, whole := range wholes {
		units = append(units, divide(whole, cfg.unitBytes(total))...)
	}
	return units
}

// changedShare is the part of the data that an incremental export is expected to read: one in so many bytes. It decides
// only the number of units.
const changedShare = 32

// share is the estimated size of the part of a type that some patients have.
func share(size source.TypeSize, sizes source.Sizes, patients int64) int64 {
	if sizes.Patients <= patients {
		return size.Bytes
	}
	return int64(float64(size.Bytes) * float64(patients) / float64(sizes.Patients))
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
