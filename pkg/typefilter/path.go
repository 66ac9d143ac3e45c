package typefilter

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// path leads to the values of a parameter in a resource.
type path struct {
	root  []string   // top-level keys, alternatives
	steps [][]string // keys below, alternatives of each step

	resolved string // values are references to this type alone
	system   string // values are contact points of this system alone
	exists   bool   // the value is whether there is one other than false
}

// suffixes are the endings of a choice element (value[x] is valueQuantity) that a parameter of the type compares. The table
// does not tell which elements are choices; no element that is none has a sibling of such a name.
var suffixes = map[string][]string{
	"token":     {"", "CodeableConcept", "Coding", "Code", "Identifier", "ContactPoint", "Boolean", "String", "Uri"},
	"date":      {"", "DateTime", "Period", "Date", "Instant", "Timing"},
	"string":    {"", "String"},
	"reference": {"", "Reference", "Canonical", "Uri"},
	"number":    {"", "Decimal", "Integer", "Range"},
	"quantity":  {"", "Quantity", "Age", "Duration", "Money", "Range", "SampledData"},
	"uri":       {"", "Uri"},
}

// mostKeys is the greatest number of keys of a step, that of a token.
const mostKeys = 9

const deceased = "Patient.deceased.exists() and Patient.deceased != false"

var (
	asForm       = regexp.MustCompile(`^\((\S+) as (\w+)\)|\.as\((\w+)\)$`)
	resolvedForm = regexp.MustCompile(`^(.*)\.where\(resolve\(\) is (\w+)\)$`)
	systemForm   = regexp.MustCompile(`^(.*)\.where\(system='(\w+)'\)$`)
	namesForm    = regexp.MustCompile(`^[A-Z]\w*(\.\w+)+$`)
)

// compile reads the FHIRPath expressions of the definition.
func (d definition) compile() ([]path, error) {
	if d.paths == deceased {
		return []path{{root: []string{"deceasedBoolean", "deceasedDateTime"}, exists: true}}, nil
	}
	var paths []path
	for text := range strings.SplitSeq(d.paths, " | ") {
		var p path
		if m := resolvedForm.FindStringSubmatch(text); m != nil {
			text, p.resolved = m[1], m[2]
		}
		if m := systemForm.FindStringSubmatch(text); m != nil {
			text, p.system = m[1], m[2]
		}
		chosen := asForm.MatchString(text)
		text = asForm.ReplaceAllStringFunc(text, func(as string) string {
			m := asForm.FindStringSubmatch(as)
			typ := m[2] + m[3]
			return m[1] + strings.ToUpper(typ[:1]) + typ[1:]
		})
		if !namesForm.MatchString(text) {
			return nil, fmt.Errorf("%s: the path of the parameter is not understood", d.Name)
		}
		names := strings.Split(text, ".")[1:]
		for i, name := range names {
			keys := []string{name}
			if i == len(names)-1 && !chosen {
				keys = nil
				for _, suffix := range suffixes[d.Type] {
					keys = append(keys, name+suffix)
				}
			}
			if i == 0 {
				p.root = keys
			} else {
				p.steps = append(p.steps, keys)
			}
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// walk calls leaf for each value at the end of the steps below value, through arrays, until leaf returns true. FHIR has no
// array in an array: there are no values in one.
func walk(value []byte, steps [][]string, leaf func(value []byte) (bool, error)) (found bool, err error) {
	switch {
	case value[0] == '[':
		err = fhir.Elements(value, func(value []byte) (bool, error) {
			if value[0] == '[' {
				return true, nil
			}
			found, err = walk(value, steps, leaf)
			return !found, err
		})
		return found, err
	case value[0] == 'n': // null, beside an extension in an array
		return false, nil
	case len(steps) == 0:
		return leaf(value)
	case value[0] != '{':
		return false, nil
	}
	var room [mostKeys][]byte
	values := room[:len(steps[0])]
	if _, err := fhir.Fields(value, steps[0], values); err != nil {
		return false, err
	}
	for _, value := range values {
		if value == nil {
			continue
		}
		if found, err := walk(value, steps[1:], leaf); found || err != nil {
			return found, err
		}
	}
	return false, nil
}
