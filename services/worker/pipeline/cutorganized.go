package pipeline

import (
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// inNoBlock returns what organized output of the types leaves out by design: what is about no patient, unless it is of a
// referenced type and referenced.
func inNoBlock(request export.Request, types []string) (left []export.LeftOut) {
	provenance := slices.ContainsFunc(types, fhir.IsReferenced) // may be about referenced resources alone
	for _, typ := range types {
		if request.AtLevel() == export.SystemLevel && !fhir.InCompartment(typ) || typ == "Provenance" && provenance {
			left = append(left, export.LeftOut{Type: typ, Reason: export.NoPatient})
		}
	}
	return left
}

// cutOrganized cuts units that export all types of a slice of the cohort.
func cutOrganized(request export.Request, chosen selection, sizes source.Sizes, cfg Config) []export.Unit {
	types, scope := allowed(request.Types, chosen.grant), export.ScopeCohort
	clinical := slices.ContainsFunc(types, fhir.InCompartment)
	switch {
	case !clinical:
		types, scope = slices.Concat(types, allowed(request.Through, chosen.grant)), export.ScopeFollowed
	case chosen.followAll:
		scope = export.ScopeFollowed
	}
	types = slices.DeleteFunc(types, func(typ string) bool {
		_, held := sizes.Types[typ]
		return !held || !fhir.IsExportable(typ)
	})
	if !slices.ContainsFunc(types, fhir.InCompartment) {
		return nil
	}
	slices.Sort(types)
	types = slices.Compact(types)
	var of source.TypeSize
	for _, typ := range types {
		if fhir.InCompartment(typ) {
			of.Bytes += sizes.Types[typ].Bytes
		}
	}
	var wholes, units []export.Unit
	var total int64
	add := func(id export.UnitID, scope export.Scope, chunks int, bytes int64) {
		if chunks > 0 {
			wholes = append(wholes, export.Unit{
				ID: id, Kind: export.KindExport, Types: strings.Join(types, ","), Scope: scope,
				Slice: export.Slice{To: chunks}, Bytes: bytes,
			})
			total += bytes
		}
	}
	bytes := share(of, sizes, chosen.cohort.Patients)
	if request.Incremental() && scope != export.ScopeFollowed {
		bytes /= changedShare
	}
	add("organized", scope, chosen.cohort.Chunks, bytes)
	if clinical {
		add("organized-joined", export.ScopeJoined, chosen.cohort.Joined.Chunks, share(of, sizes, chosen.joinedCount))
		add("organized-gone", export.ScopeGone, chosen.cohort.Gone.Chunks, 0)
	}
	for _, whole := range wholes {
		units = append(units, divide(whole, cfg.unitBytes(total))...)
	}
	return units
}
