package source_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

func read(t *testing.T, line string) source.Resource {
	t.Helper()
	var scanner fhir.Scanner
	facts, err := scanner.Scan([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	var r source.Resource
	source.Read(&r, facts, []byte(line))
	return r
}

const appointment = `{"resourceType":"Appointment","id":"x","participant":[{"actor":{"reference":"Patient/b"}},` +
	`{"actor":{"reference":"Patient/a"}},{"actor":{"reference":"Practitioner/p"}},{"actor":{"reference":"Patient/b"}},` +
	`{"actor":{"reference":"Location/l"}},{"actor":{"reference":"Practitioner/p"}}]}`

func TestReadTellsWhomAndWhatALineNames(t *testing.T) {
	r := read(t, appointment)
	if r.Type != "Appointment" || r.ID != "x" || !slices.Equal(r.Named, []string{"a", "b"}) ||
		!slices.Equal(r.Subjects, r.Named) || string(r.References) != "Practitioner/p Location/l" {
		t.Errorf("got %+v", r)
	}
	if !r.Attested() || r.Attest() != r.Attestation {
		t.Error("the resource is not attested")
	}
	if p := read(t, `{"resourceType":"Patient","id":"x","link":[{"other":{"reference":"Patient/y"}}]}`); !slices.Equal(p.Named, []string{"x"}) {
		t.Errorf("a patient is about %v", p.Named)
	}
}

// TestALineOfManyReferencesNamesEachOnce: the time is linear (a line of 40,000 took minutes once).
func TestALineOfManyReferencesNamesEachOnce(t *testing.T) {
	const many = 50_000
	var text, want strings.Builder
	for i := range many {
		fmt.Fprintf(&text, `{"actor":{"reference":"Practitioner/p%d"}},{"actor":{"reference":"Practitioner/p%d"}},`, i, i/2)
		fmt.Fprintf(&want, "Practitioner/p%d ", i)
	}
	r := read(t, `{"resourceType":"CareTeam","id":"x","note":[`+strings.TrimSuffix(text.String(), ",")+`],"subject":{"reference":"Patient/a"}}`)
	if string(r.References)+" " != want.String() {
		t.Errorf("%d bytes of references, want %d", len(r.References), want.Len()-1)
	}
}

// TestAttestationNoticesEveryChange: a change of any field changes the attestation.
func TestAttestationNoticesEveryChange(t *testing.T) {
	r := read(t, appointment)
	for name, change := range map[string]func(*source.Resource){
		"type":       func(r *source.Resource) { r.Type = "Account" },
		"id":         func(r *source.Resource) { r.ID = "y" },
		"one less":   func(r *source.Resource) { r.Named = r.Named[:1] },
		"one more":   func(r *source.Resource) { r.Named = append(slices.Clone(r.Named), "c") },
		"another":    func(r *source.Resource) { r.Named = []string{"a", "c"} },
		"joined":     func(r *source.Resource) { r.Named = []string{"ab"} },
		"no patient": func(r *source.Resource) { r.Named = nil },
		"references": func(r *source.Resource) { r.References = []byte("Practitioner/p") },
		"body": func(r *source.Resource) {
			r.Body = []byte(strings.Replace(string(r.Body), "Patient/a", "Patient/c", 1))
		},
	} {
		changed := r
		change(&changed)
		if changed.Attest() == r.Attestation {
			t.Errorf("%s: the attestation is the same", name)
		}
	}
	old := r
	old.Attestation = r.Attestation&^0xff | 0xfe
	if old.Attested() {
		t.Error("an attestation under other rules is accepted")
	}
	old.Attestation = 0
	if old.Attested() {
		t.Error("a missing attestation is accepted")
	}
}

// TestRulesHaveTheirNumber fails when the rules change and their version does not.
// Then increment the version (attest.go), so that stored lines are scanned again, and update the fingerprint here.
func TestRulesHaveTheirNumber(t *testing.T) {
	var text strings.Builder
	for _, typ := range fhir.ExportableTypes() {
		fmt.Fprintln(&text, typ, fhir.InCompartment(typ), fhir.IsReferenced(typ), fhir.SubjectPaths(typ))
	}
	for _, line := range []string{
		appointment,
		`{"resourceType":"Observation","id":"1","subject":{"reference":"https://h/fhir/Patient/a/_history/2"},"performer":[{"reference":"Practitioner\/p"}]}`,
		`{"resourceType":"Observation","id":"2","subject":{"reference":"urn:uuid:a"},"contained":[{"resourceType":"Patient","id":"x","managingOrganization":{"reference":"Organization/o"}}]}`,
		`{"resourceType":"Provenance","id":"3","target":[{"reference":"Patient/a"},{"reference":"Observation/1"}],"agent":[{"who":{"reference":"PractitionerRole/r"}}]}`,
		`{"resourceType":"Device","id":"4","patient":{"reference":"Patient?identifier=a"},"owner":{"reference":"#o"}}`,
		`{"resourceType":"Account","id":"5","subject":[{"reference":"/Patient/a#x"},{"reference":"https://h/Patient/b"},{"identifier":{}}]}`,
	} {
		r := read(t, line)
		fmt.Fprintf(&text, "%s %s %v %s\n", r.Type, r.ID, r.Named, r.References)
	}
	const mine = `"participant":[{"actor":{"reference":"Patient/a"}}],`
	for _, typ := range append(fhir.ExportableTypes(), "Person", "Group", "Basic", "Library", "Endpoint", "Nothing") {
		held := `{"resourceType":"` + typ + `","id":"x","subject":{"reference":"Patient/b"}}`
		for _, more := range []string{
			mine + `"contained":[` + held + `]`,
			mine + `"contained":{"resourceType":"List","contained":[` + held + `]}`,
			`"participant":[{"actor":{"reference":"Patient/a"}},{"actor":{"reference":"` + typ + `/x"}}]`,
			`"participant":[{"actor":{"reference":"Patient/a"}},{"actor":{"reference":"https://h/` + typ + `/x"}}]`,
			`"participant":[{"actor":{"reference":"Patient/a"}},{"actor":{"type":"` + typ + `"}}]`,
		} {
			r := read(t, `{"resourceType":"Appointment","id":"6",`+more+`}`)
			fmt.Fprintln(&text, typ, r.Named, string(r.References))
		}
	}
	for _, more := range []string{
		`"subject":{},"subject":{}`, `"Subject":{}`, `"a\ud800":1`, `"subject":[[{}]]`, `"contained":[{"id":"1","ID":"1"}]`,
		`"meta":{"versionId":"1","VersionId":"2"}`, `"contained":[{"subject":{"reference":"Patient/a","Reference":"Patient/b"}}]`,
	} {
		_, err := new(fhir.Scanner).Scan([]byte(`{"resourceType":"Observation","id":"7",` + more + `}`))
		fmt.Fprintln(&text, more, err != nil)
	}
	const number, fingerprint = 3, 0x9eaf4979019156f8
	r := read(t, appointment)
	if got := xxh3.HashString(text.String()); r.Attestation&0xff != number || got != fingerprint {
		t.Errorf("rules %d with the fingerprint %#x, want %d with %#x", r.Attestation&0xff, got, number, uint64(fingerprint))
	}
}
