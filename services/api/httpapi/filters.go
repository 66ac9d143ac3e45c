package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/elements"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// Filters and elements are stored in the job's record, so their size is bounded.
const (
	maxFilters    = 100      // queries in `_typeFilter`
	maxFilterText = 64 << 10 // bytes of all of them
	maxElements   = 1000     // entries in `_elements`
)

// takeFilters reads the queries of `_typeFilter` (P-31 to P-34). A query is applied as a whole or not at all: without one
// of its parameters it would select other resources. When lenient, a query that cannot be applied is ignored.
func (p *parameters) takeFilters(a asking, values []string) error {
	texts := typefilter.Split(values)
	if len(texts) > maxFilters || len(strings.Join(values, "")) > maxFilterText {
		return refused(http.StatusBadRequest, "too-costly",
			fmt.Sprintf("The parameter _typeFilter has more than %d queries or %d bytes.", maxFilters, maxFilterText))
	}
	for _, text := range texts {
		query, err := typefilter.Parse(text)
		if err != nil {
			fault := invalid("The parameter _typeFilter has a query that cannot be applied: " + err.Error() + ".")
			if err := p.ignore(a, fault); err != nil {
				return err
			}
			continue
		}
		p.filters = append(p.filters, query)
	}
	return nil
}

// filtersOf returns the queries of the exported types, in one form, sorted. A query of another type is refused: it may have
// been meant to limit what is exported (P-35).
func (p *parameters) filtersOf(a asking, types []string) ([]string, error) {
	var filters, others []string
	for _, query := range p.filters {
		if slices.Contains(types, query.Type()) {
			filters = append(filters, query.String())
		} else {
			others = append(others, query.Type())
		}
	}
	if len(others) > 0 {
		fault := invalid("The parameter _typeFilter has queries of types that this export does not contain: " +
			list(others) + ".")
		if err := p.ignore(a, fault); err != nil {
			return nil, err
		}
	}
	slices.Sort(filters)
	return slices.Compact(filters), nil
}

// takeElements returns the entries of `_elements`, sorted (P-19 to P-21). When lenient, an entry that cannot be applied is
// ignored.
func (p *parameters) takeElements(a asking, values []string) ([]string, error) {
	entries := strings.Split(strings.Join(values, ","), ",")
	if len(entries) > maxElements {
		return nil, refused(http.StatusBadRequest, "too-costly",
			fmt.Sprintf("The parameter _elements has more than %d entries.", maxElements))
	}
	var good []string
	for _, entry := range entries {
		selection, err := elements.Parse([]string{entry})
		if err != nil {
			if err := p.ignore(a, invalid(err.Error())); err != nil {
				return nil, err
			}
			continue
		}
		good = append(good, selection.Entries()...)
	}
	slices.Sort(good)
	return slices.Compact(good), nil
}
