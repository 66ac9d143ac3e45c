package typefilter

import (
	_ "embed"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// table has the search parameters of R4 (4.0.1): base, code, type, paths, targets. Types without rows have those of
// Resource alone.
//
//go:embed search-parameters-r4.tsv
var table string

// Parameter is a search parameter that Parse supports.
type Parameter struct {
	Name string
	Type string // token, date, string, reference, number, quantity or uri
}

// definition is a row of the table.
type definition struct {
	Parameter
	paths   string
	targets []string // types of a reference; empty when it may name any
}

// definitions returns the rows of all types, by type and name.
var definitions = sync.OnceValue(func() map[string]map[string]definition {
	all := map[string]map[string]definition{}
	_, rows, _ := strings.Cut(table, "\n")
	for row := range strings.Lines(rows) {
		field := strings.Split(strings.TrimSuffix(row, "\n"), "\t")
		if all[field[0]] == nil {
			all[field[0]] = map[string]definition{}
		}
		d := definition{Parameter: Parameter{Name: field[1], Type: field[2]}, paths: field[3]}
		if field[4] != "" && field[4] != "*" {
			d.targets = strings.Split(field[4], ",")
		}
		all[field[0]][d.Name] = d
	}
	return all
})

// define returns the definition of a parameter of a type.
func define(typ, name string) (definition, bool) {
	for _, base := range []string{typ, "Resource", "DomainResource"} {
		if d, ok := definitions()[base][name]; ok {
			return d, true
		}
	}
	return definition{}, false
}

// supported reports whether Parse evaluates parameters of this definition: all but composite and special ones, and those
// that search in the text of a resource.
func (d definition) supported() bool {
	return d.paths != "" && d.Type != "composite" && d.Type != "special"
}

// Parameters returns the supported parameters of an R4 type, sorted by name; none of any other text.
func Parameters(typ string) []Parameter {
	if !fhir.IsType(typ) {
		return nil
	}
	known := map[string]Parameter{}
	for _, base := range []string{"Resource", "DomainResource", typ} {
		for name, d := range definitions()[base] {
			if d.supported() {
				known[name] = d.Parameter
			}
		}
	}
	return slices.SortedFunc(maps.Values(known), func(a, b Parameter) int { return strings.Compare(a.Name, b.Name) })
}
