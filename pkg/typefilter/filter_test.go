package typefilter_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// kept reports whether the filter of the query keeps a resource with the members.
func kept(t *testing.T, query, members string) bool {
	t.Helper()
	q, err := typefilter.Parse(query)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	line := `{"resourceType":"` + q.Type() + `","id":"x",` + members + `}`
	if !json.Valid([]byte(line)) {
		t.Fatalf("the test is wrong: %s", line)
	}
	got, err := typefilter.Compile(q.Type(), []typefilter.Query{q}, fhir.Bases{ownBase}).Matches([]byte(line))
	if err != nil {
		t.Fatalf("%s of %s: %v", query, line, err)
	}
	return got
}

// TestValues has queries that keep a resource with the members and queries that do not.
func TestValues(t *testing.T) {
	for _, c := range []struct{ members, yes, no string }{
		// Tokens. Values are compared with case.
		{`"status":"final"`,
			"Observation?status=final Observation?status=|final Observation?status=amended,final Observation?_id=x",
			"Observation?status=Final Observation?status=fina Observation?status=http://s|final Observation?_id=X"},
		{`"code":{"coding":[{"system":"http://s","code":"1"},{"code":"a,b|c"}]}`,
			`Observation?code=1 Observation?code=http://s|1 Observation?code=http://s| Observation?code=|a\,b\|c Observation?code=http://s%7C1`,
			`Observation?code=|1 Observation?code=http://t|1 Observation?code=http://s|2 Observation?code=http://t| Observation?code=a\,b`},
		{`"identifier":[{"system":"http://s","value":"1"},{"value":"2"}]`,
			"Patient?identifier=http://s|1 Patient?identifier=|2 Patient?identifier=2 Patient?identifier=http://s|",
			"Patient?identifier=http://s|2 Patient?identifier=|1"},
		{`"telecom":[{"system":"phone","value":"555"},{"system":"email","value":"a@example.com"}]`,
			"Patient?phone=555 Patient?email=a@example.com Patient?telecom=555 Patient?phone:missing=false",
			"Patient?phone=a@example.com Patient?email=555 Patient?telecom=55"},
		{`"active":true`, "Patient?active=true Patient?deceased=false Patient?deceased:missing=false",
			"Patient?active=false Patient?deceased=true Patient?deceased:missing=true"},
		{`"deceasedDateTime":"2020"`, "Patient?deceased=true Patient?death-date=2020", "Patient?deceased=false"},
		{`"deceasedBoolean":false`, "Patient?deceased=false Patient?death-date:missing=true", "Patient?deceased=true"},
		{`"meta":{"tag":[{"system":"http://t","code":"a"}],"security":[{"code":"R"}],"profile":["http://p","http://q|1"],` +
			`"lastUpdated":"2020-05-01T00:00:00.000+00:00","source":"urn:x"}`,
			"Patient?_tag=http://t|a Patient?_security=R Patient?_profile=http://p Patient?_profile=http://q|1 " +
				"Patient?_lastUpdated=ge2020-05 Patient?_lastUpdated=2020-05-01 Patient?_source=urn:x Task?_tag=a",
			"Patient?_tag=b Patient?_profile=http://q Patient?_profile=http: Patient?_lastUpdated=lt2020-05 Patient?_security=a"},
		// Choice elements, by the type that the parameter has.
		{`"medicationReference":{"reference":"Medication/1"}`, "MedicationRequest?medication=1 MedicationRequest?code:missing=true",
			"MedicationRequest?code=1 MedicationRequest?medication:missing=true"},
		{`"valueCodeableConcept":{"text":"Yes, Sir","coding":[{"code":"Y"}]}`,
			`Observation?value-concept=Y Observation?value-string=yes\, Observation?combo-value-concept=Y Observation?value-quantity:missing=true`,
			"Observation?value-string=sir Observation?component-value-concept=Y"},
		// Strings.
		{`"name":[{"family":"Ångström","given":["Zoë","van  Dijk"],"use":"official"}]`,
			"Patient?name=angs Patient?name=ZOE Patient?family=Ångström Patient?given=van%20dijk Patient?name:contains=strom " +
				"Patient?given:exact=Zoë Patient?phonetic=zoe Patient?family:contains=a%CC%8Angs",
			"Patient?name=strom Patient?name=official Patient?given:exact=Zoe Patient?given:exact=Zo Patient?family=zoe Patient?name:contains=x"},
		{`"address":[{"line":["1 Main St"],"city":"Bonn","use":"home","postalCode":"53111"}]`,
			"Patient?address=bonn Patient?address-city=BON Patient?address=531 Patient?address-use=home Patient?address:contains=main",
			"Patient?address=home Patient?address-city=531 Patient?address-country:missing=false"},
		// References.
		{`"subject":{"reference":"Patient/1/_history/2","identifier":{"system":"http://s","value":"m"}}`,
			"Observation?subject=1 Observation?subject=Patient/1 Observation?subject:Patient=1 Observation?patient=1 " +
				"Observation?subject=" + ownBase + "/Patient/1 Observation?subject:identifier=http://s|m Observation?patient:identifier=m",
			"Observation?subject=2 Observation?subject=Group/1 Observation?subject:Group=1 Observation?subject=https://o.example/Patient/1 " +
				"Observation?subject:identifier=http://t|m Observation?subject=Patient"},
		{`"subject":{"reference":"` + ownBase + `/Patient/1"}`, "Observation?patient=1 Observation?subject=Patient/1", "Observation?subject=2"},
		{`"subject":{"reference":"https://o.example/fhir/Patient/1"}`,
			"Observation?subject=https://o.example/fhir/Patient/1 Observation?patient=https://o.example/fhir/Patient/1",
			"Observation?patient=1 Observation?subject=Patient/1 Observation?subject=https://O.example/fhir/Patient/1"},
		{`"subject":{"reference":"urn:uuid:0e3fd8d3-c0a8-4a9b-a0b5-1a1a6f0a8b1e","type":"Patient"}`,
			"Observation?subject=urn:uuid:0e3fd8d3-c0a8-4a9b-a0b5-1a1a6f0a8b1e Observation?patient:missing=false", "Observation?subject=1"},
		{`"subject":{"reference":"Group/1"}`, "Observation?subject=1 Observation?patient:missing=true", "Observation?patient=1"},
		{`"instantiatesCanonical":["http://p|1"]`, "CarePlan?instantiates-canonical=http://p|1", "CarePlan?instantiates-canonical=http://p"},
		// Dates.
		{`"effectiveDateTime":"2020-02-29T10:30:00+02:00"`,
			"Observation?date=2020-02-29T08:30:00Z Observation?date=2020-02-29T08:30 Observation?date=2020-02-29T03:30-05:00 " +
				"Observation?date=2020-02-29T10:30%2B02:00 Observation?date=2020-02-29T10:30+02:00 Observation?date=2020-02 Observation?date=ne2019 " +
				"Observation?date=gt2020-02-28 Observation?date=le2020 Observation?date=sa2020-02-28 Observation?date=eb2020-03 " +
				"Observation?date=ap2020-02-29 Observation?date=2019,2020 Observation?date=ge2020&date=lt2021",
			"Observation?date=2020-02-29T10:30 Observation?date=2020-02-28 Observation?date=gt2020 Observation?date=lt2020-02-29 " +
				"Observation?date=sa2020 Observation?date=eb2020-02-29 Observation?date=ap2021 Observation?date=2020-02-29T08:30:00.5Z"},
		{`"effectivePeriod":{"start":"2020-01-10","end":"2020-03-15"}`,
			"Observation?date=2020 Observation?date=gt2020-03-14 Observation?date=lt2020-01-11 Observation?date=ge2020-03-15 " +
				"Observation?date=sa2020-01-09 Observation?date=eb2020-03-16 Observation?date=ap2020-02 Observation?date=ne2020-02",
			"Observation?date=2020-02 Observation?date=gt2020-03-15 Observation?date=lt2020-01-10 Observation?date=sa2020-01-10 " +
				"Observation?date=eb2020-03-15 Observation?date=ap2021"},
		{`"effectivePeriod":{"start":"2020-01-21"}`, "Observation?date=ge2999 Observation?date=gt9999-12-31 Observation?date=sa2019",
			"Observation?date=2020 Observation?date=eb9999 Observation?date=lt2020-01-21"},
		{`"effectiveTiming":{"event":["2020-03-01","2020-01-01"],"repeat":{"boundsPeriod":{"end":"2020-06-01"}}}`,
			"Observation?date=lt2000 Observation?date=gt2020-05", "Observation?date=gt2020-06-01 Observation?date=2020"},
		{`"dosageInstruction":[{"timing":{"event":["2020-03-01"]}},{"timing":{"event":["2021"]}}]`,
			"MedicationRequest?date=2021 MedicationRequest?date=2020-03", "MedicationRequest?date=2020-04"},
		{`"birthDate":"soon"`, "Patient?birthdate:missing=false", "Patient?birthdate=ne2020 Patient?birthdate=ge2020"},
		{`"birthDate":"2016-12-31T23:59:60Z"`, "Patient?birthdate=2017-01-01T00:00Z", "Patient?birthdate=2016"},
		// Numbers and quantities.
		{`"valueQuantity":{"value":5.4,"unit":"milligram","system":"http://unitsofmeasure.org","code":"mg"}`,
			"Observation?value-quantity=5.4 Observation?value-quantity=5 Observation?value-quantity=5.40 " +
				"Observation?value-quantity=5.4|http://unitsofmeasure.org|mg Observation?value-quantity=5.4||mg " +
				"Observation?value-quantity=5.4||milligram Observation?value-quantity=54e-1 Observation?value-quantity=gt5.39 " +
				"Observation?value-quantity=le5.4 Observation?value-quantity=ap5 Observation?combo-value-quantity=5.4",
			"Observation?value-quantity=5.5 Observation?value-quantity=5.41 Observation?value-quantity=5.4|http://u|mg " +
				"Observation?value-quantity=5.4||g Observation?value-quantity=ne5.4 Observation?value-quantity=gt5.4 " +
				"Observation?value-quantity=lt5.4 Observation?value-quantity=ap4.8 Observation?component-value-quantity=5.4 " +
				"Observation?value-quantity=5.4|http://unitsofmeasure.org|milligram"},
		{`"valueQuantity":{"value":5.35}`, "Observation?value-quantity=5.4", "Observation?value-quantity=5.3 Observation?value-quantity=5.35||mg"},
		{`"valueQuantity":{"value":5.449999999999999999999}`, "Observation?value-quantity=5.4", "Observation?value-quantity=5.5"},
		{`"valueQuantity":{"value":5.45}`, "Observation?value-quantity=5.5", "Observation?value-quantity=5.4"},
		{`"valueQuantity":{"value":1e999999999999}`, "Observation?value-quantity=gt1e150", "Observation?value-quantity=lt1e150"},
		{`"valueQuantity":{"value":5,"comparator":"<"}`, "Observation?value-quantity=lt1 Observation?value-quantity=eb5 Observation?value-quantity=gt4",
			"Observation?value-quantity=5 Observation?value-quantity=ge5 Observation?value-quantity=gt5"},
		{`"valueQuantity":{"value":5,"comparator":">"}`, "Observation?value-quantity=sa5 Observation?value-quantity=gt99 Observation?value-quantity=ge5",
			"Observation?value-quantity=le5 Observation?value-quantity=5 Observation?value-quantity=ap4"},
		{`"valueSampledData":{"origin":{"value":10,"code":"mV"},"factor":0.5,"data":"-2 E 4.2 U"}`,
			"Observation?value-quantity=ge12.1 Observation?value-quantity=le9 Observation?value-quantity=sa8.9||mV",
			"Observation?value-quantity=gt12.1 Observation?value-quantity=lt9 Observation?value-quantity=gt0||V"},
		{`"onsetRange":{"low":{"value":40,"code":"a"},"high":{"value":50,"code":"a"}}`,
			"Condition?onset-age=gt45 Condition?onset-age=lt45 Condition?onset-age=gt45||a Condition?onset-age=ge50",
			"Condition?onset-age=45 Condition?onset-age=gt50 Condition?onset-age=gt45||b Condition?onset-date:missing=false"},
		{`"totalNet":{"value":100,"currency":"EUR"}`, "Invoice?totalnet=100|urn:iso:std:iso:4217|EUR Invoice?totalnet=100||EUR Invoice?totalnet=1e2",
			"Invoice?totalnet=100||USD Invoice?totalnet=99"},
		{`"prediction":[{"probabilityDecimal":0.9},{"probabilityRange":{"low":{"value":0.1},"high":{"value":0.2}}}]`,
			"RiskAssessment?probability=gt0.8 RiskAssessment?probability=0.9 RiskAssessment?probability=lt0.15",
			"RiskAssessment?probability=0.8 RiskAssessment?probability=eb0.1"},
		{`"variant":[{"start":128272,"end":7}]`, "MolecularSequence?variant-start=128272 MolecularSequence?variant-end=le7",
			"MolecularSequence?variant-start=128271 MolecularSequence?variant-end=128272 MolecularSequence?variant-start=128272.5"},
		// Presence. A null and an empty array have no value.
		{`"status":null,"category":[],"code":[null,{}],"method":[["a"]]`,
			"Observation?status:missing=true Observation?category:missing=true Observation?code:missing=false Observation?method:missing=true",
			"Observation?status:missing=false Observation?category=a Observation?code=a"},
	} {
		for _, query := range split(c.yes) {
			if !kept(t, query, c.members) {
				t.Errorf("%s does not keep %s", query, c.members)
			}
		}
		for _, query := range split(c.no) {
			if kept(t, query, c.members) {
				t.Errorf("%s keeps %s", query, c.members)
			}
		}
	}
}

func split(queries string) []string { return strings.Fields(queries) }

// Several queries of a type are alternatives, and those of other types have no effect (P-31, P-32).
func TestCompileCombinesTheQueriesOfAType(t *testing.T) {
	var queries []typefilter.Query
	for _, text := range []string{"Patient?gender=male", "Observation?status=final&code=1", "Observation?code=2"} {
		q, err := typefilter.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		queries = append(queries, q)
	}
	if f := typefilter.Compile("Condition", queries, nil); f != nil {
		t.Error("a filter of a type without a query")
	}
	f := typefilter.Compile("Observation", queries, nil)
	for line, want := range map[string]bool{
		`{"resourceType":"Observation","status":"final","code":{"coding":[{"code":"1"}]}}`:   true,
		`{"resourceType":"Observation","status":"final","code":{"coding":[{"code":"3"}]}}`:   false,
		`{"resourceType":"Observation","status":"amended","code":{"coding":[{"code":"2"}]}}`: true,
		`{"status":"amended","code":{"coding":[{"code":"1"}]},"resourceType":"Observation"}`: false,
	} {
		if got, err := f.Matches([]byte(line)); err != nil || got != want {
			t.Errorf("%s: %v, %v", line, got, err)
		}
	}
}

func TestMatchesRefusesUnreadableLines(t *testing.T) {
	q, err := typefilter.Parse("Observation?code=1")
	if err != nil {
		t.Fatal(err)
	}
	f := typefilter.Compile("Observation", []typefilter.Query{q}, nil)
	for _, line := range []string{
		"", "null", "[]", `{"resourceType":"Patient"}`, `{"id":"x"}`, `{"resourceType":"Observation"`, `{"resourceType":"Observation"} {}`,
		`{"resourceType":"Observation","code":{"coding":[{"code":"secret"}]`, `{"resourceType":"Observation","id":"` + "\xff" + `"}`,
		`{"resourceType":"Observation","code":{},"code":{"coding":[{"code":"secret"}]}}`, `{"resourceType":"Observation","x":secret}`,
		`{"resourceType":"Observation","code":{"coding":[{"code":"secret","code":"1"}]}}`, `{"resourceType":"Observation","Code":"secret"}`,
	} {
		if got, err := f.Matches([]byte(line)); err == nil || got || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, %v", line, got, err)
		}
	}
}

// A key that is read and comes twice is an error wherever it is, because another reader may take the other one.
func TestMatchesRefusesDuplicateKeys(t *testing.T) {
	for query, members := range map[string]string{
		"Observation?date=2020":                    `"effectiveTiming":{"event":["2019"],"event":[]}`,
		"Observation?date=gt2020":                  `"effectiveTiming":{"repeat":{"boundsPeriod":{},"boundsPeriod":{}}}`,
		"Observation?value-quantity=1":             `"valueQuantity":{"value":2,"value":1}`,
		"Observation?value-quantity=2":             `"valueQuantity":{"value":2,"code":"a","code":"b"}`,
		"Observation?subject=1":                    `"subject":{"reference":"Patient/2","reference":"Patient/1"}`,
		"Observation?patient=1":                    `"subject":{"reference":"Patient/1","type":"Group","type":"Patient"}`,
		"Observation?identifier=1":                 `"identifier":{"value":"2","value":"1"}`,
		"Observation?code=1":                       `"code":{"coding":{"code":"2","code":"1"}}`,
		"Observation?component-code=1":             `"component":[{"code":{},"code":{}}]`,
		"Patient?name=a":                           `"name":[{"family":"b","family":"a"}]`,
		"Patient?phone=1":                          `"telecom":[{"system":"phone","system":"email","value":"1"}]`,
		"Condition?onset-age=1":                    `"onsetRange":{"low":{"value":1,"value":2}}`,
		"Observation?subject:identifier=http://s|": `"subject":{"identifier":{"system":"http://t","system":"http://s"}}`,
	} {
		q, err := typefilter.Parse(query)
		if err != nil {
			t.Fatal(err)
		}
		line := `{"resourceType":"` + q.Type() + `",` + members + `}`
		if got, err := typefilter.Compile(q.Type(), []typefilter.Query{q}, nil).Matches([]byte(line)); err == nil {
			t.Errorf("%s of %s: %v", query, line, got)
		}
	}
}

// A filter may read more elements of a resource than there are in most.
func TestAQueryOfEveryParameter(t *testing.T) {
	for _, typ := range []string{"Observation", "Encounter", "Task"} {
		text := typ + "?"
		for _, p := range typefilter.Parameters(typ) {
			text += "&" + p.Name + ":missing=true"
		}
		q, err := typefilter.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		f := typefilter.Compile(typ, []typefilter.Query{q}, nil)
		for line, want := range map[string]bool{
			`{"resourceType":"` + typ + `"}`: true, `{"resourceType":"` + typ + `","meta":{"source":"a"}}`: false,
		} {
			if got, err := f.Matches([]byte(line)); err != nil || got != want {
				t.Errorf("%s: %v, %v", line, got, err)
			}
		}
	}
}
