package httpapi

import (
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// parameters are the validated parameters of a kick-off.
type parameters struct {
	types []string // the names in `_type`, sorted, without duplicates; nil if it is absent
}

// outputFormats are the names of NDJSON (P-01 to P-03). A raw "+" in a query string is decoded as a space, a
// common mistake of clients (P-05).
var outputFormats = []string{
	"application/fhir+ndjson", "application/fhir ndjson", "application/ndjson", "ndjson",
}

// Only names of these forms are repeated to the client: anything else could be a misplaced token or patient id.
var (
	typeForm      = regexp.MustCompile(`^[A-Za-z]{1,64}$`)
	parameterForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_:-]{0,39}$`)
)

// lowerTypes has the types that can be exported by their names in lower case.
var lowerTypes = func() map[string]string {
	types := map[string]string{}
	for _, typ := range fhir.ExportableTypes() {
		types[strings.ToLower(typ)] = typ
	}
	return types
}()

// parseParameters reads a kick-off's query string. Its errors are refusals.
func parseParameters(rawQuery string) (parameters, error) {
	var p parameters
	// The query is stored in the job record and returned in the manifest, so only characters of a URI are allowed (RFC 3986).
	for _, char := range []byte(rawQuery) {
		if char <= ' ' || char > '~' {
			return p, invalid("The query string has a character that must be percent-encoded.")
		}
	}
	if strings.Count(rawQuery, "&") >= maxParameters {
		return p, refused(http.StatusBadRequest, "too-costly",
			fmt.Sprintf("The query string has more than %d parameters.", maxParameters))
	}
	query, err := url.ParseQuery(rawQuery)
	if err != nil {
		return p, invalid("The query string cannot be read: a percent-encoding is wrong or a ';' is not encoded.")
	}
	for _, name := range slices.Sorted(maps.Keys(query)) { // so that equal requests get equal responses
		if err := p.take(name, query[name]); err != nil {
			return parameters{}, err
		}
	}
	return p, nil
}

// take reads one parameter with all its values.
func (p *parameters) take(name string, values []string) (err error) {
	switch name {
	case "_type":
		p.types, err = parseTypes(values)
		return err
	case "_outputFormat":
		return checkOutputFormat(values)
	case "_format", "_pretty": // general FHIR parameters; JSON is the only format (K-18)
		return nil
	case "_since", "_until", "_elements", "_typeFilter", "patient", "includeAssociatedData", "organizeOutputBy",
		"allowPartialManifests":
		// handling=lenient is not supported yet: an ignored parameter must be reported in the manifest's error list (K-17),
		// and `patient` must never be ignored silently.
		return unsupported("The parameter " + name + " is not supported.")
	}
	if !parameterForm.MatchString(name) {
		return invalid("The query string has an unknown parameter.")
	}
	return invalid("The parameter " + name + " is unknown.")
}

// parseTypes returns the union of all repeats and comma lists of `_type` (K-14). Names are case-sensitive, and blanks
// around them do not count. An empty name is refused: the client may have lost its list, and reading it as "all types"
// would disclose more than intended (P-18).
func parseTypes(values []string) ([]string, error) {
	var types, unknown, never []string
	compartment := false
	for name := range strings.SplitSeq(strings.Join(values, ","), ",") {
		name = strings.TrimSpace(name)
		switch {
		case name == "":
			return nil, invalid("The parameter _type has an empty name: no value, or a comma too many.")
		case !typeForm.MatchString(name):
			return nil, invalid("The parameter _type has a name that is not a FHIR R4 resource type.")
		case !fhir.IsType(name):
			if typ := lowerTypes[strings.ToLower(name)]; typ != "" {
				name += " (did you mean " + typ + "?)"
			}
			unknown = append(unknown, name)
		case !fhir.IsExportable(name):
			never = append(never, name)
		}
		compartment = compartment || fhir.InCompartment(name)
		types = append(types, name)
	}
	switch {
	case len(unknown) > 0:
		return nil, invalid("The parameter _type has names that are not FHIR R4 resource types: " + list(unknown) +
			". Names are case-sensitive.")
	case len(never) > 0:
		return nil, unsupported("The parameter _type names types that an export of a group never contains, because they " +
			"are not about single patients: " + list(never) + ".")
	case !compartment:
		return nil, unsupported("The parameter _type names only types that are exported where exported resources reference " +
			"them: " + list(types) + ". Add at least one type that is about patients.")
	}
	slices.Sort(types)
	return slices.Compact(types), nil
}

func checkOutputFormat(values []string) error {
	for _, value := range values {
		if !slices.Contains(outputFormats, value) {
			return unsupported("The parameter _outputFormat must be application/fhir+ndjson, application/ndjson or " +
				"ndjson.")
		}
		if canonicalFormat(value) != canonicalFormat(values[0]) {
			return invalid("The parameter _outputFormat is given twice with different values.")
		}
	}
	return nil
}

func canonicalFormat(value string) string { return strings.ReplaceAll(value, " ", "+") }

// list joins the names, without duplicates, for a message.
func list(names []string) string {
	names = slices.Clone(names)
	slices.Sort(names)
	return strings.Join(slices.Compact(names), ", ")
}
