package httpapi

import (
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// takeSingle reads a parameter that has one value. Different values are a contradiction, also when lenient (K-19).
func (p *parameters) takeSingle(a asking, one given) (err error) {
	value := one.values[0]
	if slices.ContainsFunc(one.values, func(other string) bool { return other != value }) {
		return invalid("The parameter " + one.name + " is given twice with different values.")
	}
	switch one.name {
	case "_since":
		p.since, err = p.takeInstant(a, one.name, value)
	case "_until":
		p.until, err = p.takeInstant(a, one.name, value)
	case "organizeOutputBy":
		if value != "Patient" { // P-38
			return p.ignore(a, unsupported("The parameter organizeOutputBy must be Patient."))
		}
		p.organizedBy = value
	case "allowPartialManifests":
		if value != "true" && value != "false" {
			return p.ignore(a, invalid("The parameter allowPartialManifests must be true or false."))
		}
		p.partial = value == "true"
	}
	return err
}

// takeAssociated reads `includeAssociatedData`. Of both values the less restrictive one counts (P-26 to P-29).
func (p *parameters) takeAssociated(a asking, values []string) error {
	for value := range strings.SplitSeq(strings.Join(values, ","), ",") {
		switch kind := export.Associated(strings.TrimSpace(value)); {
		case kind == export.RelevantProvenance, kind == export.LatestProvenance && p.associated == "":
			p.associated = kind
		case kind != export.LatestProvenance:
			err := p.ignore(a, unsupported("The parameter includeAssociatedData must be LatestProvenanceResources or "+
				"RelevantProvenanceResources."))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// combine checks what only holds of several parameters.
func (p *parameters) combine(a asking) error {
	if !p.until.IsZero() && p.until.Before(p.since) {
		return invalid("The parameter _until is before _since.")
	}
	if p.organizedBy != "" && p.associated != "" {
		p.organizedBy = ""
		return p.ignore(a, unsupported("The parameter organizeOutputBy is not supported with includeAssociatedData."))
	}
	return nil
}

// withProvenance adds the type of associated data. Like a type that `_type` names, it is refused if it is not allowed.
func withProvenance(types, through []string, scopes token.Scopes, grant directory.Grant) (_, _ []string, err error) {
	const typ = "Provenance"
	if !scopes.MayRead(typ) || !grant.Types.Has(typ) {
		return nil, nil, forbidden("The parameter includeAssociatedData adds Provenance, which may not be exported with this " +
			"token.")
	}
	at, found := slices.BinarySearch(types, typ)
	if !found {
		types = slices.Insert(slices.Clone(types), at, typ)
	}
	return types, slices.DeleteFunc(through, func(name string) bool { return name == typ }), nil
}
