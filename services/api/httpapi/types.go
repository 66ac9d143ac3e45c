package httpapi

import (
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// exportable returns the types that an export of the level can contain, sorted.
func exportable(level export.Level) []string {
	if level == export.SystemLevel {
		return fhir.StoredTypes()
	}
	return fhir.ExportableTypes()
}

func isExportable(level export.Level, typ string) bool {
	if level == export.SystemLevel {
		return fhir.IsStored(typ)
	}
	return fhir.IsExportable(typ)
}

// lowerTypes has the types that can be exported by their names in lower case.
var lowerTypes = func() map[string]string {
	types := map[string]string{}
	for _, typ := range fhir.StoredTypes() {
		types[strings.ToLower(typ)] = typ
	}
	return types
}()

// takeTypes returns the union of all repeats and comma lists of `_type` (K-14). Names are case-sensitive, and blanks
// around them do not count. An empty name is refused: the client may have lost its list, and reading it as "all types"
// would disclose more than intended (P-18). For the same reason a list of which nothing is left is refused when lenient.
func (p *parameters) takeTypes(a asking, values []string) ([]string, error) {
	var types, unknown, never []string
	formless := false
	for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "":
			return nil, invalid("The parameter _type has an empty name: no value, or a comma too many.")
		case !typeForm.MatchString(name):
			formless = true
		case !fhir.IsType(name):
			if typ := lowerTypes[strings.ToLower(name)]; typ != "" {
				name += " (did you mean " + typ + "?)"
			}
			unknown = append(unknown, name)
		case !isExportable(a.level, name):
			never = append(never, name)
		default:
			types = append(types, name)
		}
	}
	var faults []refusal
	if formless {
		faults = append(faults, invalid("The parameter _type has a name that is not a FHIR R4 resource type."))
	}
	if len(unknown) > 0 {
		faults = append(faults, invalid("The parameter _type has names that are not FHIR R4 resource types: "+list(unknown)+
			". Names are case-sensitive."))
	}
	if len(never) > 0 {
		text := "The parameter _type names types that an export of patients never contains, because they are not about " +
			"single patients: "
		if a.level == export.SystemLevel {
			text = "The parameter _type names types that are never stored: "
		}
		faults = append(faults, unsupported(text+list(never)+"."))
	}
	for _, fault := range faults {
		if len(types) == 0 {
			return nil, fault
		}
		if err := p.ignore(a, fault); err != nil {
			return nil, err
		}
	}
	slices.Sort(types)
	return slices.Compact(types), nil
}

// allowedTypes applies the token's scopes and the owner's grant. If a requested type is not allowed, the request is refused
// (spec 1, lenient or not). Without requested types it returns every allowed type; at the system level AuditEvent and
// Binary only come when they are named (L-03).
//
// through has the types that are read only for their references (export.Request.Through): the allowed ones, if only types
// that travel along are requested (P-17).
func allowedTypes(
	level export.Level, asked []string, scopes token.Scopes, grant directory.Grant,
) (types, through []string, err error) {
	may := func(typ string) bool { return scopes.MayRead(typ) && grant.Types.Has(typ) }
	if denied := slices.DeleteFunc(slices.Clone(asked), may); len(denied) > 0 {
		return nil, nil, forbidden("The parameter _type names types that may not be exported with this token: " +
			list(denied) + ".")
	}
	allowed := slices.DeleteFunc(exportable(level), func(typ string) bool { return !may(typ) })
	ofPatients := slices.DeleteFunc(slices.Clone(allowed), func(typ string) bool { return !fhir.InCompartment(typ) })
	switch {
	case asked != nil && (level == export.SystemLevel || slices.ContainsFunc(asked, fhir.InCompartment)):
		return asked, nil, nil
	case asked != nil:
		return asked, slices.DeleteFunc(allowed, func(typ string) bool { return slices.Contains(asked, typ) }), nil
	case level == export.SystemLevel:
		allowed = slices.DeleteFunc(allowed, func(typ string) bool { return typ == "AuditEvent" || typ == "Binary" })
	case len(ofPatients) == 0:
		allowed = nil // nothing would reference the others
	}
	if len(allowed) == 0 {
		return nil, nil, forbidden("No resource type may be exported with this token.")
	}
	return allowed, nil, nil
}
