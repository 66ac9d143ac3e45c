package fhir

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestScan(t *testing.T) {
	tests := map[string]struct {
		line string
		want Facts
	}{
		"smallest": {
			`{"resourceType":"Patient","id":"a"}`,
			Facts{Type: "Patient", ID: "a"},
		},
		"subject and instant": {
			`{"resourceType":"Observation","id":"o","meta":{"lastUpdated":"2024-02-03T04:05:06.789+02:00"},` +
				`"subject":{"reference":"Patient/1"}}`,
			Facts{Type: "Observation", ID: "o", LastUpdated: time.Date(2024, 2, 3, 2, 5, 6, 789e6, time.UTC),
				Subjects: []Ref{{"Patient", "1"}}},
		},
		"type last, white space": {
			"\t{ \"subject\" : { \"reference\" : \"Patient/1\" } , \"id\" : \"o\" , \"resourceType\" : \"Condition\" } ",
			Facts{Type: "Condition", ID: "o", Subjects: []Ref{{"Patient", "1"}}},
		},
		"escaped keys and values": {
			`{"\u0072esourceType":"Obser\u0076ation","i\u0064":"o\u002D1",` +
				`"\u0073ubject":{"referenc\u0065":"Patient\/1"}}`,
			Facts{Type: "Observation", ID: "o-1", Subjects: []Ref{{"Patient", "1"}}},
		},
		"through arrays": {
			`{"resourceType":"Appointment","id":"x","participant":[{"actor":{"reference":"Patient/1"}},` +
				`{"status":"accepted"},{"actor":{"reference":"Practitioner/2"}},{"actor":{"reference":"Patient/3"}}]}`,
			Facts{Type: "Appointment", ID: "x",
				Subjects: []Ref{{"Patient", "1"}, {"Practitioner", "2"}, {"Patient", "3"}}},
		},
		"several targets": {
			`{"resourceType":"Provenance","id":"x","target":[{"reference":"Observation/1/_history/4"},` +
				`{"reference":"/Patient/2#name"},{"reference":"#c"},{"display":"none"},{"reference":"https://h/Device/1"}]}`,
			Facts{Type: "Provenance", ID: "x", Subjects: []Ref{{"Observation", "1"}, {"Patient", "2"}}, Unresolved: 3},
		},
		"role-like and nested subjects are ignored": {
			`{"resourceType":"AllergyIntolerance","id":"x","recorder":{"reference":"Patient/9"},` +
				`"contained":[{"resourceType":"Organization","id":"c","patient":{"reference":"Patient/8"}}],` +
				`"patient":{"identifier":{"value":"y"},"extension":[{"valueReference":{"reference":"Patient/7"}}],` +
				`"reference":"Patient/1"},"subject":{"reference":"Patient/6"}}`,
			Facts{Type: "AllergyIntolerance", ID: "x", Subjects: []Ref{{"Patient", "1"}}},
		},
		"malformed subject": {
			`{"resourceType":"Observation","id":"x","subject":"Patient/1"}`,
			Facts{Type: "Observation", ID: "x", Invalid: 1},
		},
		"who may be a patient": {
			`{"resourceType":"Appointment","id":"x","contained":[{"resourceType":"Location","id":"l"},` +
				`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/6"}},{"resourceType":"Person","id":"p"}],` +
				`"participant":[` + actors(`{"reference":"Patient/1"}`,
				// Not a patient.
				`{"reference":"#l"}`, `{"reference":"Practitioner?identifier=a|b"}`, `{"reference":"Location/a_b"}`, `null`,
				`{"identifier":{"value":"v"},"type":"Practitioner"}`, `{"display":"Dr. X"}`, `{"reference":"http://h/f/Device/1"}`,
				// Perhaps one.
				`{"reference":"urn:uuid:1"}`, `{"reference":"Patient?identifier=a|b"}`, `{"reference":"#unknown"}`,
				`{"identifier":{"value":"v"}}`, `{"identifier":{"value":"v"},"type":"http://hl7.org/fhir/StructureDefinition/Patient"}`,
				`{"type":"Patient","display":"Person Two"}`, `{"reference":null,"identifier":{"value":"v"}}`, `{"reference":"RelatedPerson/1"}`,
				`{"reference":"http://h/f/Patient/1"}`, `{"reference":"https://h/?patient=1"}`,
				`{"reference":"Patient/a_b"}`, `{"reference":["Patient/2"]}`, `{"reference":"urn:x:1"}`, `["Patient/1"]`, `7`) + `]}`,
			Facts{Type: "Appointment", ID: "x", Subjects: []Ref{{"Patient", "6"}, {"Patient", "1"}, {"RelatedPerson", "1"}},
				Unresolved: 9, Foreign: 2, Invalid: 5},
		},
		"contained patient of a type that travels along": {
			`{"resourceType":"Practitioner","id":"x","contained":[{"resourceType":"Patient","id":"p"},{"resourceType":"Condition",` +
				`"id":"c","contained":{"resourceType":"Coverage","beneficiary":{"reference":"Patient/3"}},"subject":{"reference":"Patient/2"}}]}`,
			Facts{Type: "Practitioner", ID: "x", Subjects: []Ref{{"Patient", "2"}}, Unresolved: 3},
		},
		"contained resources about patients in a type that travels along": {
			`{"resourceType":"Practitioner","id":"x","contained":[{"resourceType":"Coverage","subscriber":{"reference":"Patient/2"}},` +
				`{"resourceType":"Observation","subject":{"display":"Person Two"}},{"resourceType":"RelatedPerson"},{"resourceType":"Organization"}]}`,
			Facts{Type: "Practitioner", ID: "x", Unresolved: 3},
		},
		"contained related persons": {
			`{"resourceType":"Appointment","id":"x","contained":[{"resourceType":"RelatedPerson","id":"rp"},` +
				`{"resourceType":"RelatedPerson","id":"of","patient":{"display":"Person Two"}},` +
				`{"resourceType":"RelatedPerson","id":"of1","patient":{"reference":"Patient/1"}}],` +
				`"participant":[` + actors(`{"reference":"Patient/1"}`, `{"reference":"#rp"}`, `{"reference":"#of1"}`) + `]}`,
			Facts{Type: "Appointment", ID: "x", Subjects: []Ref{{"Patient", "1"}, {"Patient", "1"}}, Unresolved: 2},
		},
		"scalars in place of participants": {
			`{"resourceType":"Appointment","id":"x","participant":["Patient/2",7,null,{"actor":{"reference":"Patient/1"}}]}`,
			Facts{Type: "Appointment", ID: "x", Subjects: []Ref{{"Patient", "1"}}, Invalid: 2},
		},
		"a device beside a patient": {
			`{"resourceType":"Account","id":"x","subject":[{"reference":"Patient/1"},{"reference":"Device/2"}]}`,
			Facts{Type: "Account", ID: "x", Subjects: []Ref{{"Patient", "1"}, {"Device", "2"}}, Unresolved: 1},
		},
		"a device": {
			`{"resourceType":"Observation","id":"x","subject":{"reference":"Device/2"}}`,
			Facts{Type: "Observation", ID: "x", Subjects: []Ref{{"Device", "2"}}},
		},
		"contained resources that may be about anybody": {
			`{"resourceType":"Observation","id":"x","contained":[{"resourceType":"Bundle"},{"resourceType":"Parameters"},{"resourceType":"Task"},` +
				`{"resourceType":"GuidanceResponse"},{"resourceType":"Linkage"},{"resourceType":"Nothing"},{},{"resourceType":"Substance"}],` +
				`"subject":{"reference":"Patient/1"}}`,
			Facts{Type: "Observation", ID: "x", Subjects: []Ref{{"Patient", "1"}}, Unresolved: 7},
		},
		"types that are not those of R4": {
			`{"resourceType":"Appointment","id":"x","participant":[` + actors(`{"reference":"Patient/1"}`,
				`{"identifier":{},"type":"patient"}`, `{"identifier":{},"type":" Patient"}`, `{"identifier":{},"type":"Person"}`,
				`{"identifier":{},"type":"http://h/us-core-patient"}`, `{"identifier":{},"type":7}`, `{"identifier":{},"type":"Location"}`,
				`{"reference":"Person/1"}`) + `]}`,
			Facts{Type: "Appointment", ID: "x", Subjects: []Ref{{"Patient", "1"}, {"Person", "1"}}, Unresolved: 6},
		},
		"version": {
			`{"resourceType":"Patient","id":"x","meta":{"versionId":"12"}}`,
			Facts{Type: "Patient", ID: "x", Version: 12},
		},
		"version that is no number": {
			`{"resourceType":"Patient","id":"x","meta":{"versionId":"1a"}}`,
			Facts{Type: "Patient", ID: "x"},
		},
		"malformed lastUpdated": {
			`{"resourceType":"Patient","id":"x","meta":{"lastUpdated":"yesterday"}}`,
			Facts{Type: "Patient", ID: "x"},
		},
		"numbers and words": {
			`{"resourceType":"Patient","id":"x","a":[-0.5e+10,0,1E2,true,false,null,{},[]],"b":{"c":{"d":[[1],[2]]}}}`,
			Facts{Type: "Patient", ID: "x"},
		},
		"type outside the compartment": {
			`{"resourceType":"Group","id":"x","member":[{"entity":{"reference":"Patient/1"}}]}`,
			Facts{Type: "Group", ID: "x"},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var s Scanner
			got, err := s.Scan([]byte(test.line))
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Subjects) == 0 {
				got.Subjects = nil
			}
			got.expected = nil // TestResolveRewritesWhatIsNotLocal
			if !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %+v, want %+v", got, test.want)
			}
		})
	}
}

// actors returns participants with the references.
func actors(references ...string) string {
	return `{"actor":` + strings.Join(references, `},{"actor":`) + `}`
}

// refused has lines that Scan must refuse, each for one reason.
var refused = map[string]string{
	"empty":                "",
	"blank":                "   ",
	"array":                `[{"resourceType":"Patient","id":"a"}]`,
	"string":               `"Patient"`,
	"no type":              `{"id":"a"}`,
	"type of another kind": `{"resourceType":1,"id":"a"}`,
	"empty type":           `{"resourceType":"","id":"a"}`,
	"no id":                `{"resourceType":"Patient"}`,
	"id of another kind":   `{"resourceType":"Patient","id":7}`,
	"id with a slash":      `{"resourceType":"Patient","id":"a/b"}`,
	"id too long":          `{"resourceType":"Patient","id":"` + strings.Repeat("a", 65) + `"}`,
	"type twice":           `{"resourceType":"Patient","id":"a","resourceType":"Group"}`,
	"id twice":             `{"resourceType":"Patient","id":"a","id":"b"}`,
	"id twice, escaped":    `{"resourceType":"Patient","id":"a","\u0069d":"b"}`,
	"meta twice":           `{"resourceType":"Patient","id":"a","meta":{},"meta":{}}`,
	"lastUpdated twice":    `{"resourceType":"Patient","id":"a","meta":{"lastUpdated":"a","lastUpdated":"b"}}`,
	"subject twice": `{"resourceType":"Observation","id":"a",` +
		`"subject":{"reference":"Patient/1"},"subject":{}}`,
	"subject twice, escaped": `{"resourceType":"Observation","id":"a","s\u0075bject":{},` +
		`"subject":{"reference":"Patient/1"}}`,
	"reference twice": `{"resourceType":"Observation","id":"a",` +
		`"subject":{"reference":"Patient/1","reference":"Patient/2"}}`,
	"actor twice": `{"resourceType":"Appointment","id":"a",` +
		`"participant":[{"actor":{"reference":"Patient/1"},"actor":{}}]}`,
	"subject in another case":  `{"resourceType":"Observation","id":"a","Subject":{"reference":"Patient/2"},"subject":{}}`,
	"subject with a long s":    `{"resourceType":"Observation","id":"a","ſubject":{"reference":"Patient/2"}}`,
	"Reference":                `{"resourceType":"Observation","id":"a","subject":{"Reference":"Patient/2"}}`,
	"Actor":                    `{"resourceType":"Appointment","id":"a","participant":[{"ACTOR":{"reference":"Patient/2"}}]}`,
	"Contained":                `{"resourceType":"Observation","id":"a","Contained":[]}`,
	"subject in a contained":   `{"resourceType":"Observation","id":"a","contained":[{"SUBJECT":1}]}`,
	"contained subject twice":  `{"resourceType":"Observation","id":"a","contained":[{"subject":1,"subject":2}]}`,
	"key with NUL":             `{"resourceType":"Observation","id":"a","subject\u0000":{"reference":"Patient/2"}}`,
	"key with a surrogate":     `{"resourceType":"Observation","id":"a","subject\ud800":{"reference":"Patient/2"}}`,
	"key with a low surrogate": `{"resourceType":"Observation","id":"a","subject":{"reference\uDC00":1}}`,
	"key with two high ones":   `{"resourceType":"Observation","id":"a","x\ud83d\ud83d":1}`,
	"array in an array":        `{"resourceType":"Provenance","id":"a","target":[[{"reference":"Patient/1"}]]}`,
	"two values":               `{"resourceType":"Patient","id":"a"}{"resourceType":"Patient","id":"b"}`,
	"trailing comma":           `{"resourceType":"Patient","id":"a"},`,
	"cut off":                  `{"resourceType":"Patient","id":"a","name":[{"family":"x"}`,
	"cut off in a string":      `{"resourceType":"Patient","id":"a","x":"`,
	"cut off in an escape":     `{"resourceType":"Patient","id":"a","x":"\u00`,
	"cut off behind a slash":   `{"resourceType":"Patient","id":"a","x":"\`,
	"wrong bracket":            `{"resourceType":"Patient","id":"a","x":[1}}`,
	"raw newline in a string":  "{\"resourceType\":\"Patient\",\"id\":\"a\",\"x\":\"1\n2\"}",
	"raw newline":              "{\"resourceType\":\"Patient\",\n\"id\":\"a\"}",
	"raw carriage return":      "{\"resourceType\":\"Patient\",\r\"id\":\"a\"}",
	"control character":        "{\"resourceType\":\"Patient\",\"id\":\"a\",\"x\":\"\x01\"}",
	"invalid UTF-8":            "{\"resourceType\":\"Patient\",\"id\":\"a\",\"x\":\"\xff\"}",
	"byte order mark":          "\ufeff{\"resourceType\":\"Patient\",\"id\":\"a\"}",
	"unknown escape":           `{"resourceType":"Patient","id":"a","x":"\x41"}`,
	"bad hex":                  `{"resourceType":"Patient","id":"a","x":"\u00g0"}`,
	"missing colon":            `{"resourceType":"Patient","id":"a","x" 1}`,
	"missing comma":            `{"resourceType":"Patient","id":"a" "x":1}`,
	"comma before the end":     `{"resourceType":"Patient","id":"a",}`,
	"comma before the end, in": `{"resourceType":"Patient","id":"a","x":[1,]}`,
	"bare word":                `{"resourceType":"Patient","id":"a","x":nul}`,
	"leading zero":             `{"resourceType":"Patient","id":"a","x":01}`,
	"lone minus":               `{"resourceType":"Patient","id":"a","x":-}`,
	"lone point":               `{"resourceType":"Patient","id":"a","x":1.}`,
	"lone exponent":            `{"resourceType":"Patient","id":"a","x":1e}`,
	"key without quotes":       `{"resourceType":"Patient","id":"a","x":{y:1}}`,
	"too deep":                 `{"resourceType":"Patient","id":"a","x":` + deep("[") + deep("]") + `}`,
}

func deep(bracket string) string { return strings.Repeat(bracket, 2*maxDepth) }

func TestScanRefuses(t *testing.T) {
	for name, line := range refused {
		t.Run(name, func(t *testing.T) {
			var s Scanner
			if facts, err := s.Scan([]byte(line)); err == nil {
				t.Errorf("accepted as %+v", facts)
			} else if strings.Contains(err.Error(), "Patient") {
				t.Errorf("the error contains content: %v", err)
			}
		})
	}
}

// TestRootNames compares rootName with the compartment table: Scan ignores a subject path whose first element is missing.
func TestRootNames(t *testing.T) {
	for typ, paths := range subjectPaths {
		for _, path := range paths {
			first, _, _ := strings.Cut(path, ".")
			if rootName([]byte(first)) != first {
				t.Errorf("%s: rootName has no %q", typ, first)
			}
		}
	}
}

// TestScanReuse scans different lines with one Scanner: facts of one line must not appear in the next.
func TestScanReuse(t *testing.T) {
	var s Scanner
	long := `{"resourceType":"Provenance","id":"p","target":[{"reference":"Patient/1"},{"reference":"Patient/2"}]}`
	first, err := s.Scan([]byte(long))
	if err != nil || len(first.Subjects) != 2 {
		t.Fatal(first, err)
	}
	kept := first.Subjects[1].ID
	if _, err := s.Scan([]byte(refused["cut off"])); err == nil {
		t.Fatal("accepted a broken line")
	}
	second, err := s.Scan([]byte(`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/2"}}`))
	if err != nil || len(second.Subjects) != 1 || second.Subjects[0] != (Ref{"Patient", "2"}) {
		t.Fatal(second, err)
	}
	third, err := s.Scan([]byte(`{"resourceType":"Observation","id":"o"}`))
	if err != nil || len(third.Subjects) != 0 || kept != "2" {
		t.Fatal(third, err, kept)
	}
}

func TestClassify(t *testing.T) {
	long := strings.Repeat("a", maxID)
	for text, want := range map[string]struct {
		typ, id string
		form    Form
	}{
		"Patient/1":                      {"Patient", "1", Local},
		"Patient/1/_history/2":           {"Patient", "1", Local},
		"Patient/1#p":                    {"Patient", "1", Local},
		"Patient/1/_history/2#p":         {"Patient", "1", Local},
		"/Patient/1":                     {"Patient", "1", Local},
		"Patient/" + long:                {"Patient", long, Local},
		"http://a.example/Patient/1":     {"Patient", "1", Foreign},
		"https://a.example/b/c/Group/x.": {"Group", "x.", Foreign},
		"HTTPS://a.example/fhir/Observation/x-Y/_history/3": {"Observation", "x-Y", Foreign},
		"http://[::1]:8080/fhir/Patient/1#x":                {"Patient", "1", Foreign},
		"http://a.example/f?x=/Patient/1":                   {form: Foreign},
		"http://a.example/#/Patient/1":                      {form: Foreign},
		"http://Patient/1":                                  {form: Foreign},
		"http:///Patient/1":                                 {form: Foreign},
		"http://":                                           {form: Foreign},
		"urn:uuid:0000":                                     {form: Urn},
		"URN:oid:1.2":                                       {form: Urn},
		"Patient?identifier=x|1":                            {typ: "Patient", form: Conditional},
		"/Patient?identifier=http://h/Patient/1":            {typ: "Patient", form: Conditional},
		"#p":                                                {form: Contained},
		"#":                                                 {form: Contained},
		"":                                                  {}, "/": {}, "1": {}, "Patient": {}, "Patient/": {typ: "Patient"}, "//Patient/1": {}, "fhir/Patient/1": {},
		"Patient/1/": {}, "Patient/1/_history": {}, "Patient/1/_history/": {}, "Patient//_history/1": {typ: "Patient"},
		"_history/1": {}, "Patient/_history/1": {}, "urn:x/Patient/1": {}, "Nothing?x=y": {}, "Patient/1?x=y": {},
		"ftp://a.example/Patient/1": {}, "patient/1": {}, "Nothing/1": {}, " Patient/1": {},
		"Patient/a b": {typ: "Patient"}, "Patient/a_b": {typ: "Patient"}, "Patient/ä": {typ: "Patient"}, "Patient/" + long + "a": {typ: "Patient"},
	} {
		typ, id, form := Classify(text)
		if typ != want.typ || id != want.id || form != want.form {
			t.Errorf("Classify(%q) = %q, %q, %d; want %v", text, typ, id, form, want)
		}
	}
}

func TestBasesNameLocalResources(t *testing.T) {
	bases, err := NewBases("https://Bulk.example.org/fhir/", "http://ehr.example:8080")
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Ref{
		"https://bulk.example.org/fhir/Patient/1":              {"Patient", "1"},
		"HTTPS://BULK.example.org/fhir/Patient/1/_history/2#x": {"Patient", "1"},
		"http://ehr.example:8080/Patient/1":                    {"Patient", "1"},
		"http://bulk.example.org/fhir/Patient/1":               {},
		"https://bulk.example.org/FHIR/Patient/1":              {},
		"https://bulk.example.org/fhir2/Patient/1":             {},
		"https://bulk.example.org/fhir/x/Patient/1":            {},
		"https://bulk.example.org/fhir//Patient/1":             {},
		"https://bulk.example.org/Patient/1":                   {},
		"https://bulk.example.org/fhir/Patient?identifier=1":   {},
		"http://ehr.example/Patient/1":                         {},
		"https://bulk.example.org/fhir":                        {},
		"Patient/1":                                            {},
	} {
		if got, ok := bases.Literal(text); got != want || ok != (want != Ref{}) {
			t.Errorf("%q is %v, %t; want %v", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "bulk.example.org", "ftp://h/", "https://", "https://h/?x", "https://h/#x", "/fhir", "https://u:secret@h/"} {
		if bases, err := NewBases(text); err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("%q was accepted as %v, or quoted: %v", text, bases, err)
		}
	}
}

func TestResolveRewritesWhatIsNotLocal(t *testing.T) {
	replace := func(text []byte, form Form, of Expected) string {
		return map[string]string{
			`4 {false } Practitioner?identifier=a|"b"`: "Practitioner/1", "3 {true } urn:uuid:x": "Patient/1", "3 {false } urn:uuid:x": "Group/1",
			"2 {false } http://h/Device/9": "Device/9", "3 {true Patient} urn:uuid:x": "Patient/2", "3 {true Practitioner} urn:uuid:x": "Practitioner/2",
			"3 {false Device} urn:uuid:x": "Device/2", "3 {true no type} urn:uuid:x": "Person/2",
		}[fmt.Sprint(int(form), " ", of, " ", string(text))]
	}
	for line, want := range map[string]string{
		`{"resourceType":"Observation","id":"o","subject":{"reference":"urn:uuid:x"},"b":[{"reference" : "Practitioner?identifier=a|\"b\""},` +
			`{"reference":"http://h/Device/9"}],"focus":{"reference":"urn:uuid:x"}}`: `{"resourceType":"Observation","id":"o","subject":` +
			`{"reference":"Patient/1"},"b":[{"reference" : "Practitioner/1"},{"reference":"Device/9"}],"focus":{"reference":"Group/1"}}`,
		`{"resourceType":"Coverage","id":"o","beneficiary":{"reference":"urn:uuid:x"}}`: `{"resourceType":"Coverage","id":"o","beneficiary":{"reference":"Patient/2"}}`,
		`{"resourceType":"Account","id":"o","subject":[{"type":"http://hl7.org/fhir/StructureDefinition/Practitioner","reference":"urn:uuid:x"}]}`: `{"resourceType":"Account",` +
			`"id":"o","subject":[{"type":"http://hl7.org/fhir/StructureDefinition/Practitioner","reference":"Practitioner/2"}]}`,
		`{"resourceType":"Account","id":"o","subject":[{"type":7,"reference":"urn:uuid:x"}]}`:                                                                `{"resourceType":"Account","id":"o","subject":[{"type":7,"reference":"Person/2"}]}`,
		`{"resourceType":"Provenance","id":"o","target":{"reference":"urn:uuid:x","type":"Device"}}`:                                                         `{"resourceType":"Provenance","id":"o","target":{"reference":"Device/2","type":"Device"}}`,
		`{"resourceType":"Provenance","id":"o","target":{"reference":"urn:uuid:x"}}`:                                                                         `{"resourceType":"Provenance","id":"o","target":{"reference":"Group/1"}}`,
		`{"resourceType":"Observation","id":"o","subject":{"reference":"urn:uuid:y","x":"urn:uuid:x"},"y":{"reference":"Patient/1"},"z":{"reference":"#x"}}`: "",
	} {
		var s Scanner
		facts, err := s.Scan([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		got, changed := Resolve([]byte("buffer"), []byte(line), facts, replace)
		if changed != (want != "") {
			t.Errorf("%s: changed is %t", line, changed)
		}
		if want == "" {
			want = line
		} else {
			want = "buffer" + want
		}
		if string(got) != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestPeekTypeReadsWhatScanRefuses(t *testing.T) {
	for line, want := range map[string]string{
		"{\"resourceType\" : \"Patient\",\"name\":\"M\xfcller\"}": "Patient", `{"id":"x","resourceType":"Observation","sub`: "Observation",
		`{"resourceType":"Observ`: "", `{"resourceType":"Nothing"}`: "", `{"resourceType":7}`: "", `{}`: "", "": "",
		`{"x":"\"resourceType\"","resourceType":"Flag"}`: "Flag", `{"resourceType":"Task","id":"x","sub`: "Task",
		`{"resourceType":"Parameters","id":"x","sub`:                                   "",
		`{"resourceType":"Bundle","entry":[{"resource":{"resourceType":"Observation"`:  "",
		`{"contained":[{"resourceType":"Practitioner"`:                                 "",
		`{"resourceType":"Observation","id":"x"}{"resourceType":"Condition","id":"x"}`: "",
	} {
		if got := PeekType([]byte(line)); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestIdentifiers(t *testing.T) {
	for line, want := range map[string]string{
		`{"identifier":[{"system":"s","value":"1"},{"value":"2"},{"system":"x"},null,7],"contained":[{"identifier":[{"value":"3"}]}]}`: "s|1 |2 ",
		`{"identifier":{"system":"s\u0031","value":"1"},"x":1}`:                                                                        "s1|1 ",
		`{"identifier":[[{"value":"1"}],{"value":"2","value":"3"},{"value":"4"}]}`:                                                     "|1 |4 ",
		`{"identifier":"1"}`: "", `{}`: "",
	} {
		got := ""
		Identifiers([]byte(line), func(system, value string) { got += system + "|" + value + " " })
		if got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestCountReferencesStopsAtItsLimit(t *testing.T) {
	line := []byte(`[` + strings.Repeat(`{"reference":"Patient/1"},`, 100) + `{"reference":"#x"}]`)
	for limit, want := range map[int]int{99: 100, 100: 101, 101: 101, 1000: 0} {
		if got := CountReferences(line, limit); got != want {
			t.Errorf("up to %d: %d, want %d", limit, got, want)
		}
	}
}

func TestReferences(t *testing.T) {
	line := `{"resourceType":"Encounter","id":"e","subject":{"reference" : "Patient\/1"},"x":"reference",` +
		`"note":"say \"reference\":\"Patient/9\"","y":["reference","Patient/8"],"z":{"a\"reference":"Patient/7"},` +
		`"participant":[{"individual":{"ref\u0065rence":"Practitioner/2"}}],` +
		`"w":{"reference":{"reference":"Location/5"}},` +
		`"contained":[{"owner":{"reference":"/Organization/3"}}],"u":{"reference":"urn:uuid:1"},` +
		`"reference":"reference","v":{"reference":7},"serviceProvider":{"reference":"Organization/4/_history/1"}}`
	want := []Ref{{"Patient", "1"}, {"Practitioner", "2"}, {"Location", "5"}, {"Organization", "3"},
		{"Organization", "4"}}
	var got []Ref
	References([]byte(line), func(ref Ref) bool { got = append(got, ref); return true })
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	got = nil
	References([]byte(line), func(ref Ref) bool { got = append(got, ref); return len(got) < 2 })
	if !slices.Equal(got, want[:2]) {
		t.Errorf("stopped: got %v, want %v", got, want[:2])
	}
	for _, line := range refused {
		References([]byte(line), func(Ref) bool { return true }) // must not panic
	}
}

// FuzzScan compares Scan and References with the tree that encoding/json builds.
func FuzzScan(f *testing.F) {
	for _, line := range refused {
		if len(line) < 1000 {
			f.Add([]byte(line))
		}
	}
	for _, line := range []string{
		`{"resourceType":"Observation","id":"o","meta":{"lastUpdated":"2024-02-03T04:05:06Z"},` +
			`"subject":{"reference":"Patient/1"}}`,
		`{"id":"a","participant":[[{"actor":[{"reference":"Patient\/1"}]}],` +
			`{"actor":{"reference":"Patient/2"}}],"resourceType":"Appointment"}`,
		`{"resourceType":"Provenance","id":"p",` +
			`"target":[{"reference":"http://h/Patient/1/_history/1"},{"reference":"Group/2"}]}`,
		`{"\u0072esourceType":"Obser\u0076ation","i\u0064":"o",` +
			`"\u0073ubject":{"referenc\u0065":"Patient\/1"},"\ud83d\ude00":"\ud83d"}`,
		`{"resourceType":"Basic","id":"b","subject":null,"x":{"reference":"Location/1"},` +
			`"y":"\"reference\":\"Location/2\""}`,
		`{"resourceType":"Patient","id":"p","x":[-0.5e+10,0,1E2,true,false,null,{},[]]}`,
		`{"resourceType":"Observation","id":"o","subject":[{"reference":"Patient/1"},[{"reference":"Patient/2"}]]}`,
		`{"resourceType":"Observation","id":"o","Subject":{"reference":"Patient/2"},"subject":{"Reference":"Patient/1"}}`,
		`{"resourceType":"Observation","id":"o","x":{"a":1,"a":{"subject":{"reference":"Patient/2"}}},"subject":{"x":1,"x":2}}`,
		`{"resourceType":"Appointment","id":"o","participant":{"actor":[],"x":{"actor":{"reference":"Patient/2"}}}}`,
		`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient\u002f1\ud800"},"\ud83d\ude00":"\ud83d"}`,
		`{"resourceType":"Appointment","id":"a","participant":["Patient/2",null,{"actor":{"reference":"Patient/1"}},{"actor":{"reference":"Device/1"}}]}`,
		`{"resourceType":"Practitioner","id":"p","contained":[{"resourceType":"RelatedPerson","patient":{}},{"resourceType":"Coverage"}]}`,
		`{"resourceType":"Account","id":"a","subject":[{"reference":"urn:oid:7","type":"Practitioner"}]}`,
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		var s Scanner
		facts, err := s.Scan(line)
		var found []Ref
		References(line, func(ref Ref) bool { found = append(found, ref); return true })
		if err != nil {
			return
		}
		var tree map[string]any
		if err := json.Unmarshal(line, &tree); err != nil {
			t.Fatalf("encoding/json refuses the line: %v", err)
		}
		// Parsers keep either the first or the last of two members with one name: the facts must be the same.
		first, _ := firstOfTwo(t, json.NewDecoder(bytes.NewReader(line))).(map[string]any)
		for reader, tree := range map[string]map[string]any{"first": first, "last": tree} {
			if facts.Type != tree["resourceType"] || facts.ID != tree["id"] {
				t.Fatalf("got %s/%s, the tree of the %s has %v/%v", facts.Type, facts.ID, reader, tree["resourceType"], tree["id"])
			}
			var subjects []Ref
			if IsExportable(facts.Type) {
				subjects = treeContained(tree["contained"])
			}
			for _, path := range SubjectPaths(facts.Type) {
				subjects = append(subjects, treeSubjects(tree, strings.Split(path, "."))...)
			}
			if !slices.Equal(facts.Subjects, subjects) {
				t.Fatalf("got subjects %v, the tree of the %s has %v", facts.Subjects, reader, subjects)
			}
			meta, _ := tree["meta"].(map[string]any)
			text, _ := meta["lastUpdated"].(string)
			at, err := time.Parse(time.RFC3339Nano, text)
			if err != nil && !facts.LastUpdated.IsZero() || err == nil && !facts.LastUpdated.Equal(at) {
				t.Fatalf("got %s, the tree of the %s has %q", facts.LastUpdated, reader, text)
			}
		}
		// The tree does not have the first value of a duplicate key.
		for ref := range treeReferences(tree, map[Ref]bool{}) {
			if !slices.Contains(found, ref) {
				t.Fatalf("References missed %v", ref)
			}
		}
		if want := tokenReferences(t, line); !slices.Equal(found, want) {
			t.Fatalf("got references %v, the tokens have %v", found, want)
		}
	})
}

// firstOfTwo decodes a value and keeps the first of two members with one name.
func firstOfTwo(t *testing.T, decoder *json.Decoder) any {
	next := func() json.Token {
		token, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	switch token := next(); token {
	case json.Delim('{'):
		object := map[string]any{}
		for decoder.More() {
			name, _ := next().(string)
			value := firstOfTwo(t, decoder)
			if _, twice := object[name]; !twice {
				object[name] = value
			}
		}
		next()
		return object
	case json.Delim('['):
		var array []any
		for decoder.More() {
			array = append(array, firstOfTwo(t, decoder))
		}
		next()
		return array
	default:
		return token
	}
}

// FuzzParseReference checks that a parsed reference occurs in the text, has the forms of R4, is the same below a base,
// and that every literal reference by the regular expression of R4 is parsed.
func FuzzParseReference(f *testing.F) {
	for _, seed := range []string{
		"Patient/1", "http://h/Patient/1/_history/2", "HTTPS://h/f/Group/x.", "#Patient/1", "Patient/1#x", "urn:x/Patient/1",
		"Patient?identifier=Patient/1", "http://Patient/1", "//h/Patient/1", "Patient/Patient/1", "Patient/1/_history",
		"http://h/Patient/_history/1", "Patient/1/", "http://h//Patient/1", "Patient/\x001", "http://h/Patient/1\n",
	} {
		f.Add(seed)
	}
	form := regexp.MustCompile(`^/?([A-Za-z]+)/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?(?:#.*)?$`)
	f.Fuzz(func(t *testing.T, text string) {
		ref, ok := ParseReference(text)
		typ, id, kind := Classify([]byte(text))
		if ok != (kind == Local) || ok && (string(typ) != ref.Type || string(id) != ref.ID) {
			t.Fatalf("%q is %v, %t as string and %s/%s, %d as bytes", text, ref, ok, typ, id, kind)
		}
		if parts := form.FindStringSubmatch(text); parts != nil && IsType(parts[1]) && (!ok || ref != Ref{parts[1], parts[2]}) {
			t.Errorf("%q is %v, %t", text, ref, ok)
		}
		if !ok {
			if ref != (Ref{}) {
				t.Errorf("%q is refused and %v", text, ref)
			}
			return
		}
		plain := ref.Type + "/" + ref.ID
		if !IsType(ref.Type) || !IsID(ref.ID) || !strings.Contains(text, plain) || strings.ContainsAny(beforeFragment(text), "? \n") {
			t.Errorf("%q parsed as %v", text, ref)
		}
		bases := Bases{"http://h", "https://h/a/b"}
		for _, again := range []string{"http://h/" + plain, "https://h/a/b/" + plain + "/_history/7"} {
			if got, ok := bases.Literal(again); !ok || got != ref {
				t.Errorf("%q is %v, %t, want %v", again, got, ok, ref)
			}
		}
	})
}

func treeContained(node any) (refs []Ref) {
	switch node := node.(type) {
	case []any:
		for _, element := range node {
			refs = append(refs, treeContained(element)...)
		}
	case map[string]any:
		if typ, _ := node["resourceType"].(string); typ != "Provenance" {
			for _, path := range SubjectPaths(typ) {
				refs = append(refs, treeSubjects(node, strings.Split(path, "."))...)
			}
		}
	}
	return refs
}

func treeSubjects(node any, path []string) []Ref {
	switch node := node.(type) {
	case []any:
		var refs []Ref
		for _, element := range node {
			refs = append(refs, treeSubjects(element, path)...)
		}
		return refs
	case map[string]any:
		if len(path) > 0 {
			return treeSubjects(node[path[0]], path[1:])
		}
		if text, ok := node["reference"].(string); ok {
			if ref, ok := ParseReference(text); ok {
				return []Ref{ref}
			}
		}
	}
	return nil
}

func treeReferences(node any, into map[Ref]bool) map[Ref]bool {
	switch node := node.(type) {
	case []any:
		for _, element := range node {
			treeReferences(element, into)
		}
	case map[string]any:
		for key, value := range node {
			if text, ok := value.(string); ok && key == "reference" {
				if ref, ok := ParseReference(text); ok {
					into[ref] = true
				}
			}
			treeReferences(value, into)
		}
	}
	return into
}

// tokenReferences reads the references in order from the tokens of encoding/json.
func tokenReferences(t *testing.T, line []byte) []Ref {
	var refs []Ref
	decoder := json.NewDecoder(bytes.NewReader(line))
	type frame struct{ object, value bool } // value: the next token is a member's value
	var frames []frame
	last := ""
	for decoder.More() || len(frames) > 0 {
		token, err := decoder.Token()
		if err != nil {
			t.Fatal(err)
		}
		if token == json.Delim('}') || token == json.Delim(']') {
			frames = frames[:len(frames)-1]
			continue
		}
		if n := len(frames); n > 0 && frames[n-1].object {
			frames[n-1].value = !frames[n-1].value
			if frames[n-1].value {
				last = token.(string)
				continue
			}
			if text, ok := token.(string); ok && last == "reference" {
				if ref, ok := ParseReference(text); ok {
					refs = append(refs, ref)
				}
			}
		}
		if token == json.Delim('{') || token == json.Delim('[') {
			frames = append(frames, frame{object: token == json.Delim('{')})
		}
	}
	return refs
}

// TestScanSynthea scans every line of the sample and compares some with the tree.
func TestScanSynthea(t *testing.T) {
	for name, lines := range syntheaLines(t) {
		var s Scanner
		for i, line := range lines {
			facts, err := s.Scan(line)
			if err != nil {
				t.Fatalf("%s line %d: %v", name, i+1, err)
			}
			if i%20 != 0 {
				continue
			}
			var tree map[string]any
			if err := json.Unmarshal(line, &tree); err != nil {
				t.Fatal(err)
			}
			var subjects []Ref
			if IsExportable(facts.Type) {
				subjects = treeContained(tree["contained"])
			}
			for _, path := range SubjectPaths(facts.Type) {
				subjects = append(subjects, treeSubjects(tree, strings.Split(path, "."))...)
			}
			if facts.Type != tree["resourceType"] || facts.ID != tree["id"] || facts.LastUpdated.IsZero() ||
				!slices.Equal(facts.Subjects, subjects) {
				t.Fatalf("%s line %d: got %+v, the tree has %v", name, i+1, facts, subjects)
			}
		}
	}
}

// syntheaLines reads the sample by file, or returns a made-up line when the sample is missing.
func syntheaLines(tb testing.TB) map[string][][]byte {
	dir, ok := testenv.Synthea(tb)
	if !ok {
		return map[string][][]byte{"made up": {madeUpLine(20)}}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
	if err != nil || len(files) == 0 {
		tb.Fatalf("no files in %s (%v)", dir, err)
	}
	all := map[string][][]byte{}
	for _, path := range files {
		file, err := os.Open(path)
		if err != nil {
			tb.Fatal(err)
		}
		defer file.Close()
		text, err := gzip.NewReader(file)
		if err != nil {
			tb.Fatal(err)
		}
		content, err := io.ReadAll(text)
		if err != nil {
			tb.Fatal(err)
		}
		for line := range bytes.Lines(content) {
			all[filepath.Base(path)] = append(all[filepath.Base(path)], bytes.TrimSpace(line))
		}
	}
	return all
}

// madeUpLine returns an Observation with the given number of components.
func madeUpLine(components int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"resourceType":"Observation","id":"o-1","meta":{"lastUpdated":"2024-01-01T00:00:00Z"},` +
		`"status":"final","subject":{"reference":"Patient/p-1"},"component":[`)
	for i := range components {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"code":{"coding":[{"system":"http://loinc.org","code":"%d-4","display":"Systolic"}]},`+
			`"valueQuantity":{"value":%d.5,"unit":"mmHg","system":"http://unitsofmeasure.org"}}`, i, i)
	}
	b.WriteString(`]}`)
	return b.Bytes()
}

func BenchmarkScan(b *testing.B) {
	samples := syntheaLines(b)
	samples["one of 5 MB"] = [][]byte{madeUpLine(30000)}
	for _, name := range []string{"Observation.ndjson.gz", "Patient.ndjson.gz", "ExplanationOfBenefit.ndjson.gz",
		"Appointment", "one of 5 MB", "made up"} {
		lines := samples[name]
		if len(lines) == 0 {
			continue
		}
		b.Run(name, func(b *testing.B) {
			var s Scanner
			var total int64
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				line := lines[i%len(lines)]
				if _, err := s.Scan(line); err != nil {
					b.Fatal(err)
				}
				total += int64(len(line))
			}
			b.SetBytes(total / int64(b.N))
		})
	}
}
