package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// given is one parameter of a kick-off with all its values, from the query string or from the body.
type given struct {
	name   string
	values []string
	inBody bool
}

// parameters are the validated parameters of a kick-off.
type parameters struct {
	types    []string // the names in `_type`, sorted, without duplicates; nil if it is absent
	patients []string // the ids in `patient`, the same
	filters  []typefilter.Query
	elements []string // the entries of `_elements`, sorted, without duplicates; nil if it is absent

	since, until time.Time         // zero if absent
	associated   export.Associated // of `includeAssociatedData`
	organizedBy  string            // `organizeOutputBy`
	partial      bool              // `allowPartialManifests`

	names   []string // of the known parameters, sorted
	ignored []string // what handling=lenient ignored, each a sentence for the owner (K-17)
}

// asking is how a kick-off asks: what its parameters may be depends on it.
type asking struct {
	level     export.Level
	lenient   bool                                        // handling=lenient
	patientOf func(reference string) (id string, ok bool) // reads a reference to a Patient of this server
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

const (
	maxParameters = 100    // in a query string or a body, without `patient`
	maxPatients   = 10_000 // in `patient` (P-42)
	maxIgnored    = 100    // sentences about what is ignored; they are stored in the job's record
)

// parseParameters reads the query string and, of a POST, the body into one list, and validates it. Its errors are refusals.
func parseParameters(a asking, r *http.Request) (parameters, error) {
	all, err := parseQuery(r.URL.RawQuery)
	if err != nil {
		return parameters{}, err
	}
	if r.Method == http.MethodPost {
		more, err := parseBody(r.Header, r.Body)
		if err != nil {
			return parameters{}, err
		}
		all = append(all, more...)
	}
	return a.validate(all)
}

// parseQuery reads a query string. Its errors are refusals.
func parseQuery(raw string) ([]given, error) {
	// The query is stored in the job record and returned in the manifest, so only characters of a URI are allowed (RFC 3986).
	for _, char := range []byte(raw) {
		if char <= ' ' || char > '~' {
			return nil, invalid("The query string has a character that must be percent-encoded.")
		}
	}
	if strings.Count(raw, "&") >= maxParameters {
		return nil, tooMany("query string")
	}
	query, err := url.ParseQuery(raw)
	if err != nil {
		return nil, invalid("The query string cannot be read: a percent-encoding is wrong or a ';' is not encoded.")
	}
	all := make([]given, 0, len(query))
	for name, values := range query {
		all = append(all, given{name: name, values: values})
	}
	return all, nil
}

func tooMany(where string) refusal {
	return refused(http.StatusBadRequest, "too-costly",
		fmt.Sprintf("The %s has more than %d parameters.", where, maxParameters))
}

// validate reads the parameters, in the order of their names, so that equal requests get equal responses. A name that is
// given in the query string and in the body is refused, because either may be the mistake (P-41). Its errors are refusals.
func (a asking) validate(all []given) (parameters, error) {
	slices.SortFunc(all, func(x, y given) int { return strings.Compare(x.name, y.name) })
	for i, one := range all {
		if i > 0 && all[i-1].name == one.name {
			return parameters{}, invalid("The " + naming(one.name) + " is given in the query string and in the body.")
		}
	}
	var p parameters
	for _, one := range all {
		if err := p.take(a, one); err != nil {
			return parameters{}, err
		}
	}
	return p, p.combine(a)
}

// naming returns "parameter NAME", without a name that could be a misplaced value.
func naming(name string) string {
	if !parameterForm.MatchString(name) {
		return "parameter with an unknown name"
	}
	return "parameter " + name
}

// take reads one parameter with all its values.
func (p *parameters) take(a asking, one given) (err error) {
	if _, known := bodyValues[one.name]; known {
		p.names = append(p.names, one.name)
	}
	switch one.name {
	case "_type":
		p.types, err = p.takeTypes(a, one.values)
		return err
	case "_outputFormat":
		return checkOutputFormat(one.values)
	case "patient":
		p.patients, err = takePatients(a, one)
		return err
	case "_format", "_pretty": // general FHIR parameters; JSON is the only format (K-18)
		return nil
	case "_since", "_until", "organizeOutputBy", "allowPartialManifests":
		return p.takeSingle(a, one)
	case "_typeFilter":
		return p.takeFilters(a, one.values)
	case "_elements":
		p.elements, err = p.takeElements(a, one.values)
		return err
	case "includeAssociatedData":
		return p.takeAssociated(a, one.values)
	}
	if !parameterForm.MatchString(one.name) {
		return p.ignore(a, invalid("The request has an unknown parameter."))
	}
	return p.ignore(a, invalid("The parameter "+one.name+" is unknown."))
}

// ignore returns the refusal, or with handling=lenient notes it for the manifest's error list (K-17, K-18). It is not for
// contradictions, and not for what leaves nothing of a parameter that limits the export to some types or patients.
func (p *parameters) ignore(a asking, r refusal) error {
	if !a.lenient {
		return r
	}
	if sentence := r.text + ignoredSuffix; !slices.Contains(p.ignored, sentence) {
		p.ignored = append(p.ignored, sentence)
	}
	if len(p.ignored) > maxIgnored {
		return refused(http.StatusBadRequest, "too-costly",
			fmt.Sprintf("The request has more than %d faults that would have to be ignored.", maxIgnored))
	}
	return nil
}

const ignoredSuffix = " This was ignored, as handling=lenient asks."

// checkOutputFormat refuses also when lenient: a client that wants another format cannot read NDJSON.
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
