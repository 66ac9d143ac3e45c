package typefilter_test

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// Each row of the table is either supported, and then Parse reads it, or refused by its name.
func TestEveryParameterIsSupportedOrRefused(t *testing.T) {
	text, err := os.ReadFile("search-parameters-r4.tsv")
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"token": "a", "date": "2020", "string": "a", "reference": "1", "number": "1", "quantity": "1||mg", "uri": "http://a"}
	supported := 0
	for _, line := range strings.Split(strings.TrimSpace(string(text)), "\n")[1:] {
		f := strings.Split(line, "\t")
		base, name, kind := f[0], f[1], f[2]
		if !fhir.IsType(base) { // Resource and DomainResource: of every type, also those without a row
			base = "Task"
		}
		listed := slices.Contains(typefilter.Parameters(base), typefilter.Parameter{Name: name, Type: kind})
		_, missing := typefilter.Parse(base + "?" + name + ":missing=true")
		q, err := typefilter.Parse(base + "?" + name + "=" + values[kind])
		switch {
		case f[3] == "" || kind == "composite" || kind == "special":
			if err == nil || !strings.Contains(err.Error(), base+": "+name+" ") || listed {
				t.Errorf("%s %s: %v, listed: %v", base, name, err, listed)
			}
		case err != nil || missing != nil || !listed:
			t.Errorf("%s %s: %v, %v, listed: %v", base, name, err, missing, listed)
		default:
			supported++
			f := typefilter.Compile(base, []typefilter.Query{q}, nil)
			line := `{"resourceType":"` + base + `"}`
			if got, err := f.Matches([]byte(line)); err != nil || got && name != "deceased" {
				t.Errorf("%s of %s: %v, %v", q, line, got, err)
			}
		}
	}
	if supported < 850 {
		t.Errorf("only %d rows are supported", supported)
	}
	if typefilter.Parameters("Resource") != nil || typefilter.Parameters("patient") != nil {
		t.Error("parameters of no type of R4")
	}
}

// TestRefusals has queries with what the error names. No error has a value (P-33, P-34).
func TestRefusals(t *testing.T) {
	for query, named := range map[string]string{
		"":                                                 "resource type of R4",
		"Patient":                                          "resource type of R4",
		"secret?gender=male":                               "resource type of R4",
		"patient?gender=male":                              "resource type of R4",
		"Patient?":                                         "Patient: the query has no search parameter",
		"Patient?&":                                        "Patient: the query has no search parameter",
		"Patient?gender":                                   "Patient: gender: the value is not valid",
		"Patient?gender=":                                  "Patient: gender: the value is not valid",
		"Patient?gender=secret,":                           "Patient: gender: the value is not valid",
		"Patient?gender=%secret":                           "Patient: gender: the value is not URL-encoded",
		"Patient?gender=secret%FF":                         "Patient: gender: the value is not UTF-8",
		`Patient?gender=secret\a`:                          "Patient: gender: the value is not valid: a backslash",
		`Patient?gender=secret\`:                           "Patient: gender: the value is not valid: a backslash",
		"Patient?=secret":                                  "Patient: the name of a search parameter",
		"Patient?secret secret=1":                          "Patient: the name of a search parameter",
		"Patient?%secret=1":                                "Patient: the name of a search parameter",
		"Patient?status=secret":                            "Patient: status is not a supported search parameter; those are _id, _lastUpdated",
		"Patient?gender:not=secret":                        "Patient: gender:not: the modifier is not supported; those of gender are missing",
		"Observation?code:text=secret":                     "Observation: code:text: the modifier",
		"Observation?code:in=secret":                       "Observation: code:in: the modifier",
		"Observation?code:below=secret":                    "Observation: code:below: the modifier",
		"Observation?date:exact=2020":                      "Observation: date:exact: the modifier",
		"Observation?subject:Medication=secret":            "subject:Medication: the modifier is not supported; those of subject are identifier, a resource type, missing",
		"Patient?name:text=secret":                         "Patient: name:text: the modifier is not supported; those of name are exact, contains, missing",
		"Patient?_profile:below=secret":                    "_profile:below: the modifier",
		"Observation?_sort=secret":                         "Observation: _sort is not supported: it changes the answer",
		"Observation?_include=secret":                      "_include is not",
		"Observation?_include:iterate=secret":              "_include:iterate is not",
		"Observation?_revinclude=secret":                   "_revinclude is not",
		"Observation?_count=1":                             "_count is not",
		"Observation?_elements=secret":                     "_elements is not",
		"Observation?_summary=secret":                      "_summary is not",
		"Observation?_total=secret":                        "_total is not",
		"Observation?_contained=secret":                    "_contained is not",
		"Observation?_has:Provenance:target:agent=secret":  "_has:Provenance:target:agent is not",
		"Observation?_text=secret":                         "_text is not",
		"Observation?_content=secret":                      "_content is not",
		"Observation?_query=secret":                        "_query is not",
		"Observation?_filter=secret":                       "_filter is not",
		"Observation?_list=secret":                         "_list is not",
		"Observation?subject.name=secret":                  "Observation: subject.name is not supported: parameters cannot be chained",
		"Observation?subject:Patient.name=secret":          "Observation: subject:Patient.name is not supported: parameters cannot be chained",
		"Observation?code-value-quantity=secret":           "code-value-quantity is not supported: it is of the type composite",
		"Location?near=secret":                             "near is not supported: it is of the type special",
		"Observation?code=secret|secret|secret":            "code: the value is not valid: a token is",
		"Observation?code=|":                               "code: the value is not valid: a token is",
		"Observation?code:missing=secret":                  "code:missing: the value is not valid: it is true or false",
		"Observation?code:missing=true,false":              "code:missing: the value is not valid",
		"Observation?date=secret":                          "date: the value is not valid: the prefixes",
		"Observation?date=ge":                              "date: the value is not valid: a date is",
		"Observation?date=2020-02-30":                      "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10":                   "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10:00 02:00":          "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10:00+15:00":          "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10:00/02:00":          "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10:00:61":             "date: the value is not valid: a date is",
		"Observation?date=2020-02-28T10:00:00.":            "date: the value is not valid: a date is",
		"Observation?date=0000":                            "date: the value is not valid: a date is",
		"Observation?subject:identifier=|":                 "subject:identifier: the value is not valid: a token is",
		"Observation?date=xx2020":                          "date: the value is not valid: the prefixes",
		"Observation?date=2020-13":                         "date: the value is not valid: a date is",
		"Observation?value-quantity=secret":                "value-quantity: the value is not valid: the prefixes",
		"Observation?value-quantity=5.":                    "value-quantity: the value is not valid: a number",
		"Observation?value-quantity=1e999":                 "value-quantity: the value is not valid: a number",
		"Observation?value-quantity=5|mg":                  "value-quantity: the value is not valid: a quantity",
		"Observation?value-quantity=5|http://u|":           "value-quantity: the value is not valid: a quantity",
		"RiskAssessment?probability=1||mg":                 "probability: the value is not valid: a number",
		"RiskAssessment?probability=0x1":                   "probability: the value is not valid: a number",
		"Observation?subject=secret/secret":                "subject: the value is not valid: a reference",
		"Observation?subject=#secret":                      "subject: the value is not valid: a reference",
		"Observation?subject=Patient/secret/_history/1":    "subject: the value is not valid: a reference with a version",
		"Observation?subject:Patient=Group/secret":         "subject:Patient: the value is not valid: with a type",
		"Observation?subject:Patient=https://a/Patient/se": "subject:Patient: the value is not valid: with a type",
		"Patient?name=%20%CC%81":                           "name: the value is not valid: nothing remains",
		"Patient?gender=male&_sort=secret":                 "Patient: _sort is not",
	} {
		q, err := typefilter.Parse(query)
		if err == nil {
			t.Errorf("%s is accepted as %s", query, q)
		} else if !strings.Contains(err.Error(), named) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", query, err)
		}
	}
}

func TestSplit(t *testing.T) {
	got := typefilter.Split([]string{
		"Patient?gender=male,Observation?code=a,b,http://c|d,Condition?code=x?y", "Observation?status=final,Foo?bar", "Patient?name=a,", ""})
	want := []string{"Patient?gender=male", "Observation?code=a,b,http://c|d", "Condition?code=x?y",
		"Observation?status=final,Foo?bar", "Patient?name=a,", ""}
	if !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}

// The text of a query has one form, also in a list.
func TestString(t *testing.T) {
	for text, want := range map[string]string{
		"Observation?status=final&&code=a%2Cb&":     "Observation?status=final&code=a,b",
		"Observation?code=a%26b%25,Patient%3Fx":     "Observation?code=a%26b%25,Patient%3Fx",
		"Observation?date=ge2020-01-01T00:00+01:00": "Observation?date=ge2020-01-01T00:00+01:00",
		"Patient?name:exact=a b":                    "Patient?name:exact=a%20b",
	} {
		q, err := typefilter.Parse(text)
		if err != nil || q.String() != want {
			t.Errorf("%s: %s, %v", text, q, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"Patient?gender=male", `Observation?code=a\,b|c,|d&date=ge2020-01-01T00:00:00.5+01:00`, "Patient?name:contains=%C3%A9",
		"Observation?value-quantity=ap-5.40e-3||mg&subject:Patient=1", "Patient?deceased:missing=true", "Observation?subject:identifier=a|b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		q, err := typefilter.Parse(text)
		if err != nil {
			return
		}
		canonical := q.String()
		again, err := typefilter.Parse(canonical)
		if err != nil || again.String() != canonical || again.Type() != q.Type() {
			t.Fatalf("%q is %q, read again as %q: %v", text, canonical, again, err)
		}
		if parts := typefilter.Split([]string{canonical + "," + canonical}); !slices.Equal(parts, []string{canonical, canonical}) {
			t.Fatalf("%q is split into %q", canonical, parts)
		}
		line := []byte(`{"resourceType":"` + q.Type() + `"}`)
		one, err1 := typefilter.Compile(q.Type(), []typefilter.Query{q}, nil).Matches(line)
		two, err2 := typefilter.Compile(q.Type(), []typefilter.Query{again}, nil).Matches(line)
		if one != two || err1 != nil || err2 != nil {
			t.Fatalf("%q and %q differ: %v, %v", text, canonical, err1, err2)
		}
	})
}

// FuzzMatches compares tokens with the oracle. The other types are only run: numbers and dates of any size are beyond it.
func FuzzMatches(f *testing.F) {
	o := newOracle(f)
	var filters []*typefilter.Filter
	queries := []string{"Observation?status=final", "Observation?code=http://s|1,|2", "Observation?_profile=http://p",
		"Observation?date=ap2020", "Observation?combo-value-quantity=ap5.4||mg", "Observation?subject=Patient/1", "Observation?value-string=a"}
	const exact = 3 // queries that the oracle evaluates
	for _, text := range queries {
		q, err := typefilter.Parse(text)
		if err != nil {
			f.Fatal(err)
		}
		filters = append(filters, typefilter.Compile("Observation", []typefilter.Query{q}, fhir.Bases{ownBase}))
	}
	for _, seed := range []string{
		`{"resourceType":"Observation","status":"final","code":{"coding":[{"system":"http://s","code":"1"}]},"meta":{"profile":["http://p"]}}`,
		`{"resourceType":"Observation","effectiveTiming":{"event":["2020-01-01T00:00:00Z"],"repeat":{"boundsPeriod":{"start":"2020"}}}}`,
		`{"resourceType":"Observation","component":[{"valueSampledData":{"origin":{"value":1e3,"code":"mg"},"factor":-2,"data":"1 E 2"}}]}`,
		`{"resourceType":"Observation","subject":{"reference":"https://own.example/fhir/Patient/1"},"valueString":"\u00c1"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		for i, filter := range filters {
			got, err := filter.Matches(line)
			switch {
			case err != nil:
				if got {
					t.Fatal("a match with an error")
				}
			case !json.Valid(line):
				t.Fatalf("%q is accepted", line)
			case i < exact:
				if want := o.matches(t, queries[i], decode(t, line).decoded); got != want {
					t.Fatalf("%s of %q is %v", queries[i], line, got)
				}
			}
		}
	})
}
