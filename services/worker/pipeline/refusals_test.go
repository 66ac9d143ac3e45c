package pipeline

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// line returns a resource as JSON; members is the rest of it, with a leading comma.
func line(typ, id, members string) string {
	return fmt.Sprintf(`{"resourceType":"%s","id":"%s"%s}`, typ, id, members)
}

func subject(ref string) string { return fmt.Sprintf(`,"subject":{"reference":"%s"}`, ref) }

func actors(patients ...string) string {
	var refs []string
	for _, patient := range patients {
		refs = append(refs, fmt.Sprintf(`{"actor":{"reference":"Patient/%s"}}`, patient))
	}
	return fmt.Sprintf(`,"participant":[%s]`, strings.Join(refs, ","))
}

// from returns the resource as a source does. The guard must not trust the reported subjects.
func from(typ, id, body string, subjects ...string) source.Resource {
	return source.Resource{Type: typ, ID: id, Subjects: subjects, Body: []byte(body)}
}

// attested returns the attested resource. change, if any, corrupts it.
func attested(t *testing.T, r source.Resource, change func(*source.Resource)) source.Resource {
	t.Helper()
	var scanner fhir.Scanner
	facts, err := scanner.Scan(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	var read source.Resource
	source.Read(&read, facts, r.Body)
	r.Named, r.References, r.Attestation = read.Named, read.References, read.Attestation
	if change != nil {
		change(&r)
	}
	return r
}

func wantRefusal(t *testing.T, err error) {
	t.Helper()
	if !errors.As(err, new(export.PermanentError)) {
		t.Errorf("got %v, want a refusal", err)
	} else if strings.Contains(err.Error(), "pat-") {
		t.Errorf("the refusal names a patient: %v", err)
	}
}

func TestTheGuardRefuses(t *testing.T) { // pitfalls 2, 10, 21
	t.Parallel()
	const typ = "Observation"
	mine, foreign := line(typ, "o", subject("Patient/pat-1")), line(typ, "o", subject("Patient/pat-9"))
	for name, r := range map[string]source.Resource{
		"a foreign patient":                from(typ, "o", foreign, "pat-9"),
		"reported as a member's":           from(typ, "o", foreign, "pat-1"),
		"no subject":                       from(typ, "o", line(typ, "o", ""), "pat-1"),
		"a group":                          from(typ, "o", line(typ, "o", subject("Group/g")), "pat-1"),
		"a contained subject":              from(typ, "o", line(typ, "o", subject("#pat-1")), "pat-1"),
		"a member in another role":         from(typ, "o", line(typ, "o", subject("Patient/pat-9")+`,"performer":[{"reference":"Patient/pat-1"}]`), "pat-1"),
		"a member not requested":           from(typ, "o", line(typ, "o", subject("Patient/pat-3")), "pat-3"),
		"not requested, reported so":       from(typ, "o", line(typ, "o", subject("Patient/pat-3")), "pat-1"),
		"another type":                     from("Condition", "o", line("Condition", "o", subject("Patient/pat-1")), "pat-1"),
		"another type inside":              from(typ, "o", line("Condition", "o", subject("Patient/pat-1")), "pat-1"),
		"another type outside":             from("Condition", "o", mine, "pat-1"),
		"another id inside":                from(typ, "p", mine, "pat-1"),
		"unreadable":                       from(typ, "o", strings.TrimSuffix(mine, "}"), "pat-1"),
		"empty":                            from(typ, "o", "", "pat-1"),
		"two lines":                        from(typ, "o", mine+"\n"+mine, "pat-1"),
		"a line break":                     from(typ, "o", strings.Replace(mine, ",", ",\n", 1), "pat-1"),
		"two subjects for two readers":     from(typ, "o", strings.Replace(mine, `"subject"`, `"subject":{"reference":"Patient/pat-9"},"subject"`, 1), "pat-1"),
		"attested, a foreign patient":      attested(t, from(typ, "o", foreign, "pat-1"), nil),
		"attested, no subject":             attested(t, from(typ, "o", line(typ, "o", ""), "pat-1"), nil),
		"attested, another's patient":      attested(t, from(typ, "o", foreign), func(r *source.Resource) { r.Named = []string{"pat-1"} }),
		"attested, another's body":         attested(t, from(typ, "o", mine), func(r *source.Resource) { r.Body = []byte(foreign) }),
		"attested, the head of another":    attested(t, from(typ, "p", line(typ, "p", subject("Patient/pat-1"))), func(r *source.Resource) { r.Body = []byte(foreign) }),
		"attested, by other rules":         attested(t, from(typ, "o", foreign), func(r *source.Resource) { r.Named = []string{"pat-1"}; r.Attestation = r.Attest()&^0xff | 0x7f }),
		"attested, another type":           attested(t, from(typ, "o", mine), func(r *source.Resource) { r.Type = "Condition"; r.Attestation = r.Attest() }),
		"attested, a member not requested": attested(t, from(typ, "o", line(typ, "o", subject("Patient/pat-3"))), nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, count := range []int{0, 1} { // with and without the audit of attested lines
				g := guard{typ: typ, cohort: storedList(t, fuzzCohort...), count: count}
				g.request(fuzzCohort[:2])
				_, err := g.check(t.Context(), r)
				wantRefusal(t, err)
			}
		})
	}
}

func TestAForeignPatientIsRefused(t *testing.T) { // pitfall 2
	t.Parallel()
	g := guard{typ: "Patient", cohort: storedList(t, fuzzCohort...)}
	g.request(fuzzCohort)
	_, err := g.check(t.Context(), from("Patient", "pat-9", line("Patient", "pat-9", ""), "pat-1"))
	wantRefusal(t, err)
}

// TestRowsOfOlderRulesAreWrittenOrCountedOnce: the source returns them for the patients that they had when they were loaded.
func TestRowsOfOlderRulesAreWrittenOrCountedOnce(t *testing.T) { // pitfall 2
	t.Parallel()
	chunks := [][]string{{"pat-0"}, {"pat-1", "pat-2"}}
	for name, row := range map[string]struct {
		subjects, named []string
		want            []verdict // by chunk; 0: not returned
	}{
		"one more than then":            {[]string{"pat-1"}, []string{"pat-0", "pat-1"}, []verdict{0, admitted}},
		"one less":                      {[]string{"pat-0", "pat-1"}, []string{"pat-1"}, []verdict{admitted, elsewhere}},
		"another":                       {[]string{"pat-1"}, []string{"pat-0"}, []verdict{0, admitted}},
		"the same":                      {[]string{"pat-0", "pat-1"}, []string{"pat-0", "pat-1"}, []verdict{admitted, elsewhere}},
		"an outsider more":              {[]string{"pat-1"}, []string{"pat-0", "pat-1", "pat-9"}, []verdict{0, withheld}},
		"an outsider instead":           {[]string{"pat-0", "pat-1"}, []string{"pat-9"}, []verdict{withheld, elsewhere}},
		"an outsider then and a member": {[]string{"pat-", "pat-1"}, []string{"pat-0", "pat-1"}, []verdict{0, admitted}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := from("Appointment", "a", line("Appointment", "a", actors(row.named...)), row.subjects...)
			r.Attestation = 1 // of the first rules
			for chunk, requested := range chunks {
				if row.want[chunk] == 0 {
					continue
				}
				g := guard{typ: "Appointment", cohort: storedList(t, "pat-0", "pat-1", "pat-2")}
				g.request(requested)
				current := from("Appointment", "b", line("Appointment", "b", actors(requested[0])), requested[0])
				for _, before := range []bool{false, true} { // the row of one patient follows another one of the patient
					if before {
						if got, err := g.check(t.Context(), current); err != nil || got != admitted {
							t.Fatalf("verdict %d, %v", got, err)
						}
					}
					if got, err := g.check(t.Context(), r); err != nil || got != row.want[chunk] {
						t.Errorf("chunk %d: verdict %d, %v, want %d", chunk, got, err, row.want[chunk])
					}
				}
			}
			g := guard{typ: "Appointment", cohort: storedList(t, "pat-0", "pat-1", "pat-2", "pat-3")}
			g.request([]string{"pat-3"}) // for whom it was not loaded
			_, err := g.check(t.Context(), r)
			wantRefusal(t, err)
		})
	}
}

func TestTheGuardOnResourcesOfSeveralPatients(t *testing.T) { // pitfall 2
	t.Parallel()
	for name, row := range map[string]struct {
		patients []string
		want     verdict // 0: refused
	}{
		"two members":                      {[]string{"pat-2", "pat-1"}, admitted},
		"one of them not requested":        {[]string{"pat-3", "pat-2"}, admitted},
		"the smallest not requested":       {[]string{"pat-0", "pat-2"}, elsewhere},
		"an outsider too":                  {[]string{"pat-1", "pat-9"}, withheld},
		"the smallest is an outsider":      {[]string{"pat-", "pat-1"}, withheld},
		"elsewhere, with an outsider":      {[]string{"pat-0", "pat-2", "pat-9"}, elsewhere},
		"outsiders only":                   {[]string{"pat-8", "pat-9"}, 0},
		"members not requested":            {[]string{"pat-0", "pat-3"}, 0},
		"a member not requested, outsider": {[]string{"pat-0", "pat-9"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := guard{typ: "Appointment", cohort: storedList(t, "pat-0", "pat-1", "pat-2", "pat-3")}
			g.request(fuzzCohort[:2])
			got, err := g.check(t.Context(), from("Appointment", "a", line("Appointment", "a", actors(row.patients...)), "pat-1"))
			if row.want == 0 {
				wantRefusal(t, err)
			} else if err != nil || got != row.want {
				t.Errorf("verdict %d, %v, want %d", got, err, row.want)
			}
		})
	}
}

// A store that was loaded with broken rules has wrong attestations. Only reading the line again detects it.
func TestTheAuditDetectsWrongAttestations(t *testing.T) { // pitfall 2
	t.Parallel()
	attest := func(r *source.Resource) { r.Attestation = r.Attest() }
	for name, r := range map[string]source.Resource{
		"of patients": attested(t, from("Observation", "o", line("Observation", "o", subject("Patient/pat-9"))),
			func(r *source.Resource) { r.Named = []string{"pat-1"}; attest(r) }),
		"of references": attested(t, from("Observation", "o", line("Observation", "o", subject("Patient/pat-1"))),
			func(r *source.Resource) { r.References = []byte("Organization/stranger"); attest(r) }),
	} {
		t.Run(name, func(t *testing.T) {
			g := guard{typ: "Observation", cohort: storedList(t, fuzzCohort...)}
			g.request(fuzzCohort)
			refused := 0
			for range 2 * recheckEvery {
				if _, err := g.check(t.Context(), r); err != nil {
					wantRefusal(t, err)
					refused++
				}
			}
			if refused != 2 {
				t.Errorf("refused %d of %d, want one in %d", refused, 2*recheckEvery, recheckEvery)
			}
		})
	}
}

func TestTheListGuardRefuses(t *testing.T) { // pitfalls 2, 10, 21
	t.Parallel()
	const typ = "Organization"
	ward := line(typ, "ward", "")
	for name, r := range map[string]source.Resource{
		"not listed":         from(typ, "stranger", line(typ, "stranger", "")),
		"another type":       from("Practitioner", "gp", line("Practitioner", "gp", "")),
		"a patient":          from("Patient", "pat-9", line("Patient", "pat-9", "")),
		"a patient inside":   from(typ, "ward", line("Patient", "pat-9", "")),
		"a type outside":     from("Location", "ward", ward),
		"another id":         from(typ, "ward", line(typ, "stranger", "")),
		"unreadable":         from(typ, "ward", strings.TrimSuffix(ward, "}")),
		"mixed with another": attested(t, from(typ, "ward", ward), func(r *source.Resource) { r.References = []byte("Practitioner/stranger") }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := listGuard{list: storedList(t, "Organization/ward", "Practitioner/gp")}
			_, err := g.checkListed(t.Context(), typ, r)
			wantRefusal(t, err)
		})
	}
}

func TestTheListGuardRefusesProvenance(t *testing.T) { // pitfall 2
	t.Parallel()
	targets := func(refs ...string) source.Resource {
		var list []string
		for _, ref := range refs {
			list = append(list, fmt.Sprintf(`{"reference":"%s"}`, ref))
		}
		return from("Provenance", "p", line("Provenance", "p", fmt.Sprintf(`,"target":[%s]`, strings.Join(list, ","))))
	}
	g := listGuard{list: storedList(t, "Organization/ward", "Practitioner/gp")}
	for name, r := range map[string]source.Resource{
		"about a foreign patient": targets("Patient/pat-9"),
		"about a member":          targets("Organization/ward", "Patient/pat-1"),
		"about an observation":    targets("Organization/ward", "Observation/obs-9"),
		"about a stranger":        targets("Organization/stranger"),
		"about nothing":           targets(),
		"another type":            from("Organization", "ward", line("Organization", "ward", "")),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := g.home(t.Context(), r)
			wantRefusal(t, err)
		})
	}
	if home, err := g.home(t.Context(), targets("Practitioner/gp", "Organization/none", "Organization/ward")); err != nil || home != "Organization/ward" {
		t.Errorf("home %q, %v", home, err)
	}
}
