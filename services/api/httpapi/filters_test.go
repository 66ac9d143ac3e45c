package httpapi_test

import (
	"net/http"
	"slices"
	"strings"
	"testing"
)

// P-19, P-31, P-32: elements and queries of GET and POST are stored in one form, sorted, so that the same ones are identical.
func TestFiltersAndElements(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	const types = "_type=Patient,Observation"
	for name, test := range map[string]struct {
		query             string
		entries           []string // of the body, in a POST
		filters, elements []string
	}{
		"one":              {"&_typeFilter=Patient%3Fgender%3Dmale", []string{"_typeFilter|Patient?gender=male"}, []string{"Patient?gender=male"}, nil},
		"a list":           {"&_typeFilter=Patient%3Fgender%3Dmale,Observation%3Fstatus%3Dfinal,amended", []string{"_typeFilter|Patient?gender=male,Observation?status=final,amended"}, []string{"Observation?status=final,amended", "Patient?gender=male"}, nil},
		"repeats":          {"&_typeFilter=Patient%3Fgender%3Dmale&_typeFilter=Patient%3Fgender%3Dmale&_typeFilter=Observation%3Fstatus%3Dfinal", []string{"_typeFilter|Patient?gender=male", "_typeFilter|Observation?status=final"}, []string{"Observation?status=final", "Patient?gender=male"}, nil},
		"two parameters":   {"&_typeFilter=Observation%3Fstatus%3Dfinal%26_id%3D1", []string{"_typeFilter|Observation?status=final&_id=1"}, []string{"Observation?status=final&_id=1"}, nil},
		"elements":         {"&_elements=status,%20id,Patient.name&_elements=id", []string{"_elements|status, id,Patient.name", "_elements|id"}, nil, []string{"Patient.name", "id", "status"}},
		"P-21 other types": {"&_elements=Condition.code", []string{"_elements|Condition.code"}, nil, []string{"Condition.code"}},
	} {
		var entries []string
		for _, entry := range test.entries {
			name, value, _ := strings.Cut(entry, "|")
			entries = append(entries, `{"name":"`+name+`","valueString":"`+value+`"}`)
		}
		for method, got := range map[string]reply{
			"GET":  w.ask("GET", groupExport+"?"+types+test.query, alice...),
			"POST": w.post(groupExport+"?"+types, withParameters(entries...), alice...),
		} {
			request := w.job(w.started(got)).Request
			if !slices.Equal(request.Filters, test.filters) || !slices.Equal(request.Elements, test.elements) || request.Ignored != nil {
				t.Errorf("%s, %s: %q, %q, ignored %q", name, method, request.Filters, request.Elements, request.Ignored)
			}
		}
	}
}

// P-20, P-33 to P-35: elements and queries that cannot be applied are refused, and ignored one by one when lenient.
func TestFiltersAndElementsThatCannotBeApplied(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const secret = "s3cr3t"
	for query, test := range map[string]struct {
		words             []string // of the refusal, and of the sentences about what is ignored
		filters, elements []string // what is left
	}{
		"_elements=Patient.name.given":                  {[]string{"_elements has a nested"}, nil, nil},
		"_elements=id,Foo.id,Patient.name":              {[]string{"_elements"}, nil, []string{"Patient.name", "id"}},
		"_elements=" + secret + ",x/" + secret:          {[]string{"_elements"}, nil, nil},
		"_elements=":                                    {[]string{"_elements has an empty entry"}, nil, nil},
		"_typeFilter=Patient%3F_sort%3D" + secret:       {[]string{"Patient: ", "_sort"}, nil, nil},
		"_typeFilter=Patient%3F_include%3D" + secret:    {[]string{"Patient: ", "_include"}, nil, nil},
		"_typeFilter=Patient%3F_count%3D5":              {[]string{"Patient: ", "_count"}, nil, nil},
		"_typeFilter=Patient%3F_elements%3Did":          {[]string{"Patient: ", "_elements"}, nil, nil},
		"_typeFilter=Patient%3Fstatus%3Dactive":         {[]string{"Patient: ", "status"}, nil, nil},
		"_typeFilter=Nonsense%3Fstatus%3D" + secret:     {[]string{"_typeFilter"}, nil, nil},
		"_typeFilter=" + secret:                         {[]string{"_typeFilter"}, nil, nil},
		"_typeFilter=Condition%3Fcode%3D" + secret:      {[]string{"does not contain: Condition"}, nil, nil},
		"_typeFilter=Patient%3Fgender%3Dmale,Patient?x": {[]string{"Patient: "}, []string{"Patient?gender=male"}, nil},
	} {
		target := groupExport + "?_type=Patient,Observation&" + query
		got := w.ask("GET", target, w.as("alice")...)
		wantOutcome(t, got, http.StatusBadRequest, "invalid", test.words...)
		request := w.job(w.started(w.ask("GET", target, append(w.as("alice"), "Prefer", "handling=lenient")...))).Request
		all := strings.Join(request.Ignored, "\n")
		for _, word := range test.words {
			if !strings.Contains(all, word) || strings.Contains(all+got.body, secret) {
				t.Errorf("%s: ignored %q, want %q", query, request.Ignored, word)
			}
		}
		if !slices.Equal(request.Filters, test.filters) || !slices.Equal(request.Elements, test.elements) || len(request.Types) != 2 {
			t.Errorf("%s: left are %q, %q", query, request.Filters, request.Elements)
		}
	}
	// A type that may not be exported is not disclosed by its filter.
	got := w.ask("GET", "/fhir/Group/g2/$export?_typeFilter=Observation%3Fstatus%3Dfinal", w.as("carol")...)
	wantOutcome(t, got, http.StatusBadRequest, "invalid", "does not contain: Observation")
	many := "?_type=Patient&_typeFilter=" + strings.Repeat("Patient%3F_sort%3Dx,", 2)
	for n := range 101 {
		many += "&" + strings.Repeat("x", 1+n%40) + strings.Repeat("y", n/40)
	}
	wantOutcome(t, w.ask("GET", groupExport+many, append(w.as("alice"), "Prefer", "handling=lenient")...), http.StatusBadRequest, "too-costly")
}
