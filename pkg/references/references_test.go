package references_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/references"
)

func TestReferencesThatNameOneResourceAreResolved(t *testing.T) {
	bases, err := fhir.NewBases("https://h/fhir")
	if err != nil {
		t.Fatal(err)
	}
	table := references.New(bases)
	tests := map[string]struct{ at, want, missed string }{
		"urn:uuid:p":                     {at: "subject", want: "Patient/p"},
		"urn:uuid:o":                     {at: "focus", want: "Observation/o"},
		"urn:uuid:o2":                    {at: "subject", missed: "none"}, // not a patient
		"urn:uuid:both":                  {at: "subject", missed: "none"}, // two resources
		"urn:uuid:both#type=Patient":     {at: "subject", want: "Patient/both"},
		"urn:uuid:both#type=Observation": {at: "subject", want: "Observation/both"},
		"urn:uuid:both#type=Group":       {at: "subject", missed: "none"},
		"urn:uuid:p#type=Practitioner":   {at: "subject", missed: "none"}, // only a patient is held
		"urn:uuid:both#patient":          {at: "patient", want: "Patient/both"},
		"urn:oid:both":                   {at: "focus", missed: ""}, // two resources
		"urn:uuid:none":                  {at: "subject", missed: "none"},
		"Practitioner?identifier=npi|1":  {at: "performer", want: "Practitioner/d"},
		"/Practitioner?identifier=http%3A%2F%2Fa%20b%7C1+1": {at: "performer", want: "Practitioner/e"},
		"Practitioner?identifier=http://a b|1+1":            {at: "performer", want: "Practitioner/e"},
		"Practitioner?identifier=1+1":                       {at: "performer", want: "Practitioner/e"},
		"Practitioner?identifier=|7":                        {at: "performer", want: "Practitioner/f"},
		"Practitioner?identifier=7":                         {at: "performer", missed: "Practitioner"}, // two resources
		"Practitioner?identifier=npi|9":                     {at: "performer", missed: "Practitioner"},
		"Practitioner?name=x":                               {at: "performer", missed: "Practitioner"},
		"Practitioner?identifier=npi|1&active=true":         {at: "performer", missed: "Practitioner"},
		"Organization?identifier=npi|1":                     {at: "performer", missed: "Organization"},
		"Patient?identifier=mrn|1":                          {at: "subject", want: "Patient/p"},
		"https://h/fhir/Patient/7/_history/1":               {at: "subject", want: "Patient/7"},
		"https://elsewhere/fhir/Patient/7":                  {at: "subject", missed: "none"},
		"https://elsewhere/x":                               {at: "focus", missed: ""},
	}
	lines := map[string]string{}
	for text, test := range tests {
		_, typ, _ := strings.Cut(text, "#type=")
		if typ != "" {
			typ = `,"type":"` + typ + `"`
		}
		resource := map[bool]string{true: "Immunization", false: "Observation"}[test.at == "patient"]
		lines[text] = `{"resourceType":"` + resource + `","id":"x","` + test.at + `":{"reference":"` + text + `"` + typ + `}}`
		if !table.Note([]byte(lines[text])) {
			t.Errorf("%s was not noted", text)
		}
	}
	if table.Note([]byte(`{"resourceType":"Observation","id":"x","subject":{"reference":"Patient/1"},"focus":{"reference":"#x"}}`)) {
		t.Error("a line with literal references is noted")
	}
	if types, ids := table.Wants(); !slices.Equal(types, []string{"Organization", "Patient", "Practitioner"}) || !ids {
		t.Errorf("wants %v, %t", types, ids)
	}
	for _, ref := range []fhir.Ref{
		{Type: "Patient", ID: "p"}, {Type: "Observation", ID: "o"}, {Type: "Observation", ID: "o"}, {Type: "Observation", ID: "o2"},
		{Type: "Patient", ID: "both"}, {Type: "Observation", ID: "both"},
	} {
		table.OfferID(ref)
	}
	for line, id := range map[string]string{
		`{"identifier":[{"system":"npi","value":"1"}]}`: "d", `{"identifier":[{"system":"http://a b","value":"1+1"}]}`: "e",
		`{"identifier":[{"value":"7"}]}`: "f", `{"identifier":[{"system":"npi","value":"7"}]}`: "g",
	} {
		table.Offer(fhir.Ref{Type: "Practitioner", ID: id}, []byte(line))
	}
	table.Offer(fhir.Ref{Type: "Patient", ID: "p"}, []byte(`{"identifier":[{"system":"mrn","value":"1"}]}`))
	if types := table.Unmatched(); !slices.Equal(types, []string{"Organization", "Practitioner"}) {
		t.Errorf("unmatched %v", types)
	}
	var urns []string
	table.URNs(func(id string) bool { urns = append(urns, id); return true })
	if !slices.Equal(urns, []string{"none"}) {
		t.Errorf("urns without a resource: %v", urns)
	}
	for text, test := range tests {
		var scanner fhir.Scanner
		facts, err := scanner.Scan([]byte(lines[text]))
		if err != nil {
			t.Fatal(err)
		}
		var missed []string
		got, changed := table.Resolve(nil, []byte(lines[text]), facts, func(typ string, _ fhir.Form) { missed = append(missed, typ) })
		want, wantMissed := strings.Replace(lines[text], text, test.want, 1), []string(nil)
		if test.want == "" {
			if want = lines[text]; test.missed != "none" {
				wantMissed = []string{test.missed}
			}
		}
		if string(got) != want || changed != (test.want != "") || !slices.Equal(missed, wantMissed) {
			t.Errorf("%s: got %s, changed %t, want %s; missed %q, want %q", text, got, changed, want, missed, wantMissed)
		}
	}
}

func TestUsedSearchesCanBeConfirmed(t *testing.T) {
	table := references.New(nil)
	const line = `{"resourceType":"Observation","id":"x","subject":{"reference":"Patient?identifier=s|1"},` +
		`"performer":[{"reference":"Practitioner?identifier=2"}]}`
	table.Note([]byte(line))
	table.Offer(fhir.Ref{Type: "Patient", ID: "p"}, []byte(`{"identifier":[{"system":"s","value":"1"}]}`))
	table.Resolve(nil, []byte(line), fhir.Facts{}, func(string, fhir.Form) {})
	for ref, has := range table.Used {
		if ref != (fhir.Ref{Type: "Patient", ID: "p"}) || !has([]byte(`{"identifier":[{"system":"s","value":"1"}]}`)) ||
			has([]byte(`{"identifier":[{"system":"s","value":"2"},{"system":"t","value":"1"}]}`)) {
			t.Errorf("used: %v", ref)
		}
		return
	}
	t.Error("nothing was used")
}

func TestSettledReferencesIgnoreFurtherOffers(t *testing.T) {
	table := references.New(nil)
	const line = `{"resourceType":"Observation","id":"x","subject":{"reference":"urn:uuid:p"},` +
		`"performer":[{"reference":"Practitioner?identifier=1"},{"reference":"Practitioner?identifier=2"}]}`
	table.Note([]byte(line))
	first := []byte(`{"identifier":[{"value":"1"}]}`)
	table.OfferID(fhir.Ref{Type: "Patient", ID: "p"})
	table.Offer(fhir.Ref{Type: "Practitioner", ID: "loaded"}, first)
	table.Settle()
	table.OfferID(fhir.Ref{Type: "Device", ID: "p"})
	table.Offer(fhir.Ref{Type: "Practitioner", ID: "stored"}, first)
	table.Offer(fhir.Ref{Type: "Practitioner", ID: "other"}, []byte(`{"identifier":[{"value":"2"}]}`))
	resolved, _ := table.Resolve(nil, []byte(line), fhir.Facts{}, func(string, fhir.Form) { t.Error("a reference was not resolved") })
	got := string(resolved)
	if !strings.Contains(got, `"Patient/p"`) || !strings.Contains(got, `"Practitioner/loaded"`) ||
		!strings.Contains(got, `"Practitioner/other"`) {
		t.Errorf("got %s", got)
	}
}
