package pipeline_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// travelling returns referenced resources by reference, each referencing the named ones.
func travelling(typ, id string, refs ...string) string {
	var links []string
	for i, ref := range refs {
		links = append(links, fmt.Sprintf(`{"url":"e%d","valueReference":{"reference":"%s"}}`, i, ref))
	}
	return fmt.Sprintf(`{"resourceType":"%s","id":"%s","extension":[%s]}`, typ, id, strings.Join(links, ","))
}

func org(id string, partOf ...string) string {
	if len(partOf) == 0 {
		return fmt.Sprintf(`{"resourceType":"Organization","id":"%s"}`, id)
	}
	return fmt.Sprintf(`{"resourceType":"Organization","id":"%s","partOf":{"reference":"Organization/%s"}}`, id, partOf[0])
}

// network is a patient with an observation and a prescription, the resources that they reference directly and
// indirectly, and resources of the same types that no exported one references.
func network(t *testing.T) (all *memory, lines map[string]string) {
	t.Helper()
	lines = map[string]string{
		"patient": `{"resourceType":"Patient","id":"pat-1","generalPractitioner":[{"reference":"PractitionerRole/gp"}]}`,
		"obs":     observation(1, 1, `,"performer":[{"reference":"/Practitioner/nurse/_history/2"}]`),
		"drug": `{"resourceType":"MedicationRequest","id":"mr-1","subject":{"reference":"Patient/pat-1"},` +
			`"medicationReference":{"reference":"Medication/pill"}}`,
		"role": `{"resourceType":"PractitionerRole","id":"gp","practitioner":{"reference":"Practitioner/gp"},` +
			`"organization":{"reference":"Organization/ward"},"location":[{"reference":"Location/room"}]}`,
		"gp":      travelling("Practitioner", "gp"),
		"nurse":   travelling("Practitioner", "nurse", "Organization/gone"), // not in the store
		"ward":    org("ward", "hospital"),
		"clinic":  org("hospital", "holding"),
		"holding": org("holding", "ward"), // a ring
		"room": `{"resourceType":"Location","id":"room","managingOrganization":{"reference":"Organization/estate"},` +
			`"partOf":{"reference":"Location/house"}}`,
		"house":  travelling("Location", "house"),
		"estate": org("estate"),
		"pill":   `{"resourceType":"Medication","id":"pill","manufacturer":{"reference":"Organization/pharma"}}`,
		"pharma": org("pharma"),
		"prov":   provenance("orgs", "Organization/ward", "Practitioner/gp", "Organization/pharma"),
		"prov2":  provenance("patient", "Patient/pat-1"),
	}
	strangers := []string{
		observation(9, 9, `,"performer":[{"reference":"Practitioner/stranger"}]`), travelling("Practitioner", "stranger"),
		org("stranger"), travelling("Location", "stranger"), travelling("Medication", "stranger"),
		`{"resourceType":"PractitionerRole","id":"stranger","practitioner":{"reference":"Practitioner/gp"}}`,
		provenance("stranger", "Organization/stranger"), provenance("foreign", "Observation/obs-9"),
	}
	var list []string
	for _, key := range keysOf(lines) {
		list = append(list, lines[key])
	}
	return holding(t, concat(list, strangers)...), lines
}

var everyTravelling = []string{
	"Location", "Medication", "MedicationRequest", "Observation", "Organization", "Patient", "Practitioner",
	"PractitionerRole", "Provenance",
}

func TestReferencedResourcesTravelAlong(t *testing.T) {
	t.Parallel()
	all, lines := network(t)
	var want []string
	for _, key := range keysOf(lines) {
		want = append(want, lines[key])
	}
	got := newFixture(t, all, members...).export(everyTravelling...)
	got.wantLines(t, want...)
	got.wantIssues(t, "error")
}

func TestReferencesAreFollowedOnlyThroughTypesOfTheJob(t *testing.T) { // spec 10
	t.Parallel()
	for name, row := range map[string]struct {
		types []string
		want  []string
	}{
		"practitioners without roles": {[]string{"Observation", "Patient", "Practitioner"}, []string{"obs", "patient", "nurse"}},
		"organizations without roles": {[]string{"Patient", "Organization"}, []string{"patient"}},
		"roles and organizations": {
			[]string{"Patient", "PractitionerRole", "Organization"}, []string{"patient", "role", "ward", "clinic", "holding"},
		},
		"drugs and makers":       {[]string{"MedicationRequest", "Medication", "Organization"}, []string{"drug", "pill", "pharma"}},
		"only what travels":      {[]string{"Organization", "Practitioner"}, nil},
		"a Provenance, once":     {[]string{"MedicationRequest", "Medication", "Organization", "Provenance"}, []string{"drug", "pill", "pharma", "prov", "prov2", "ward", "clinic", "holding"}},
		"a Provenance of people": {[]string{"Observation", "Provenance"}, []string{"obs", "prov2"}},
	} {
		t.Run(name, func(t *testing.T) {
			all, lines := network(t)
			var want []string
			for _, key := range row.want {
				want = append(want, lines[key])
			}
			got := newFixture(t, all, members...).export(row.types...)
			got.wantLines(t, want...)
			got.wantIssues(t, "error")
		})
	}
}

func TestManyReferencesOfOneType(t *testing.T) {
	t.Parallel()
	// More ids than one query takes, and a Provenance whose targets are in different queries.
	var lines []string
	const many = 1100
	targets := []string{"Organization/org-0000", "Organization/org-0600", "Organization/org-1099"}
	for i := range many {
		lines = append(lines, org(fmt.Sprintf("org-%04d", i)), observation(i, 1,
			fmt.Sprintf(`,"performer":[{"reference":"Organization/org-%04d"},{"reference":"Organization/org-0000"}]`, i)))
	}
	lines = append(lines, provenance(1, targets...), provenance(2, targets[2]), provenance(3, "Organization/none", targets[1]))
	for name, row := range map[string]struct {
		unitBytes int64
		units     float64 // of kind referenced
	}{
		"one unit a type":    {1 << 30, 2},
		"a unit for a chunk": {1, 3 + 3},
	} {
		t.Run(name, func(t *testing.T) {
			fx := newFixture(t, holding(t, lines...), members...)
			fx.cfg.UnitBytes = row.unitBytes
			got := fx.export("Observation", "Organization", "Provenance")
			got.wantLines(t, lines...)
			got.wantIssues(t, "error")
			fx.wantMetric(row.units, "sluice_worker_units_total", "referenced", "done")
		})
	}
}

// cutBy returns the units that one unit of the job has cut, after all tasks up to it.
func (fx *fixture) cutBy(kind export.Kind, types ...string) map[export.UnitID]export.Unit {
	fx.t.Helper()
	w, id := fx.worker(), fx.kickOff(types...)
	for range 20 {
		for _, task := range fx.open(id) {
			must(fx.t, w.Handle(fx.t.Context(), task))
			if task.Kind != kind {
				continue
			}
			_, err := fx.jobs.Issue(fx.t.Context(), id, 1000)
			must(fx.t, err)
			units := map[export.UnitID]export.Unit{}
			for _, unit := range fx.stale(id, -time.Hour) {
				units[unit.Unit.ID] = unit.Unit
			}
			return units
		}
	}
	fx.t.Fatalf("the job has no unit of kind %s", kind)
	panic("unreachable")
}

func TestReferencedUnitsWeighWhatIsReferencedOfAType(t *testing.T) { // spec 8; pitfall 14
	t.Parallel()
	var lines []string
	for i := range 1000 { // 600 of them are referenced, which is two chunks with the one practitioner
		lines = append(lines, org(fmt.Sprintf("org-%04d", i)))
		if i < 600 {
			lines = append(lines, observation(i, 1, fmt.Sprintf(`,"performer":[{"reference":"Organization/org-%04d"}]`, i)))
		}
	}
	lines = append(lines,
		observation("x", 1, `,"performer":[{"reference":"Practitioner/a"},{"reference":"Practitioner/gone"}]`),
		travelling("Practitioner", "a"), provenance(1, "Organization/org-0001"), provenance(2, "Patient/pat-1"))
	size := int64(len(org("org-0000"))) + 1
	fx := newFixture(t, holding(t, lines...), members...)
	fx.cfg.UnitBytes = 300 * size
	units := fx.cutBy(export.KindResolveReferences, "Observation", "Organization", "Practitioner", "Provenance")
	practitioner := int64(len(travelling("Practitioner", "a"))) + 1
	both := int64(len(provenance(1, "Organization/org-0001"))+len(provenance(2, "Patient/pat-1"))) + 2
	for id, want := range map[export.UnitID]export.Unit{
		"Organization-referenced-00000": {Type: "Organization", Slice: export.Slice{To: 1}, Bytes: 300 * size},
		"Organization-referenced-00001": {Type: "Organization", Slice: export.Slice{From: 1, To: 2}, Bytes: 300 * size},
		"Practitioner-referenced-00000": {Type: "Practitioner", Slice: export.Slice{From: 1, To: 2}, Bytes: practitioner},
		"Provenance-referenced-00000":   {Type: "Provenance", Slice: export.Slice{To: 2}, Bytes: both},
	} {
		got := units[id]
		if got.Kind != export.KindExportReferenced || got.Type != want.Type || got.Slice != want.Slice || got.Bytes != want.Bytes {
			t.Errorf("%s is %+v, want %+v", id, got, want)
		}
		delete(units, id)
	}
	if len(units) > 0 {
		t.Errorf("further units: %+v", units)
	}
}

func agent(id, who string, targets ...string) string {
	return strings.TrimSuffix(provenance(id, targets...), "}") + fmt.Sprintf(`,"agent":[{"who":{"reference":"%s"}}]}`, who)
}

func TestWhatProvenanceOfReferencedResourcesReferencesTravelsAlong(t *testing.T) { // spec 10
	t.Parallel()
	obs := observation(1, 1, `,"performer":[{"reference":"Practitioner/1"}]`)
	practitioner, nine, ten, seven := travelling("Practitioner", "1"), org("9", "10"), org("10"), travelling("Practitioner", "7")
	first := agent("1", "Organization/9", "Practitioner/1")
	second := agent("2", "Practitioner/7", "Organization/10") // found two rounds later
	all := holding(t, obs, practitioner, nine, ten, seven, first, second,
		agent("3", "Organization/8", "Practitioner/6"), org("8"), travelling("Practitioner", "6"),
		agent("4", "Organization/5", "Observation/obs-9"), observation(9, 9), org("5"))
	for name, row := range map[string]struct{ types, want []string }{
		"with Provenance": {
			[]string{"Observation", "Organization", "Practitioner", "Provenance"},
			[]string{obs, practitioner, nine, ten, seven, first, second},
		},
		"without Provenance":    {[]string{"Observation", "Organization", "Practitioner"}, []string{obs, practitioner}},
		"without Organizations": {[]string{"Observation", "Practitioner", "Provenance"}, []string{obs, practitioner, first}},
	} {
		t.Run(name, func(t *testing.T) {
			got := newFixture(t, all, members...).export(row.types...)
			got.wantLines(t, row.want...)
			got.wantIssues(t, "error")
		})
	}
}

func TestALeakedProvenanceLeadsNowhere(t *testing.T) { // pitfall 2
	t.Parallel()
	obs := observation(1, 1, `,"performer":[{"reference":"Practitioner/1"}]`)
	for name, line := range map[string]string{
		"about a foreign patient": agent("9", "Organization/stranger", "Practitioner/1", "Patient/pat-9"),
		"about a stranger":        agent("9", "Organization/stranger", "Practitioner/stranger"),
		"about somebody unknown":  agent("9", "Organization/stranger", "Practitioner/1", "urn:uuid:8d1d9b0a-2c9a-4f5e-9b7e-0d2f5d6a7b11"),
	} {
		t.Run(name, func(t *testing.T) {
			all := holding(t, obs, travelling("Practitioner", "1"), org("stranger"), provenance(1, "Practitioner/1"))
			fx := newFixture(t, &aboutLeak{Source: all, extra: resource("Provenance", "pro-9", line)}, members...)
			got := fx.export("Observation", "Organization", "Practitioner", "Provenance")
			got.wantLines(t, obs, travelling("Practitioner", "1"))
			got.wantIssues(t, "error", "A part of Provenance (Provenance-referenced-00000) is missing: the source returned")
		})
	}
}

func TestATypeThatIsWithdrawnBetweenPlanAndReferencesIsReportedOnce(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]struct {
		before, after []string // withdrawn before the plan, and after it
		want          []string
		report        []string
	}{
		"nothing":              {nil, nil, []string{"patient", "prov", "prov2", "role", "ward", "clinic", "holding", "pharma"}, nil},
		"a type that travels":  {nil, []string{"Organization"}, []string{"patient", "prov2", "role"}, []string{"Organization"}},
		"Provenance":           {nil, []string{"Provenance"}, []string{"patient", "prov2", "role", "ward", "clinic", "holding"}, []string{"Provenance"}},
		"Provenance, earlier":  {[]string{"Provenance"}, []string{"Provenance"}, []string{"patient", "role", "ward", "clinic", "holding"}, []string{"Provenance"}},
		"one before the other": {[]string{"Organization"}, []string{"Organization", "PractitionerRole"}, []string{"patient", "prov2"}, []string{"Organization", "PractitionerRole"}},
		"a type of patients":   {nil, []string{"Patient"}, []string{"patient", "prov", "prov2", "role", "ward", "clinic", "holding", "pharma"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			all, lines := network(t)
			fx := newFixture(t, all, members...)
			w := fx.worker()
			id := fx.kickOff("Organization", "Patient", "PractitionerRole", "Provenance")
			fx.people.grant.Types = directory.AllBut(row.before...)
			got := fx.outcome(fx.drive(id, func(task queue.Task) {
				must(t, w.Handle(t.Context(), task))
				fx.people.grant.Types = directory.AllBut(row.after...)
			}))
			var want, reports []string
			for _, key := range row.want {
				want = append(want, lines[key])
			}
			for _, typ := range row.report {
				reports = append(reports, typ+": the permission was withdrawn.")
			}
			got.wantLines(t, want...)
			got.wantIssues(t, "error", reports...)
		})
	}
}

func TestATypeThatIsWithdrawnIsReportedWhenNothingIsExported(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, patient(1)), members...)
	id := fx.kickOff("Flag", "Goal", "Practitioner")
	fx.people.grant.Types = directory.AllBut("Goal", "Practitioner")
	got := fx.outcome(fx.finish(fx.worker(), id))
	got.wantLines(t)
	got.wantIssues(t, "error", "Goal: the permission was withdrawn.", "Practitioner: the permission was withdrawn.")
}

func TestALeakedReferencedResourceIsRefused(t *testing.T) { // pitfalls 2, 10, 21
	t.Parallel()
	all, lines := network(t)
	leak := resource("Organization", "x", travelling("Organization", "x", "Practitioner/stranger"))
	fx := newFixture(t, &hooked{Source: all, typ: "Organization", extra: []source.Resource{leak}}, members...)
	fx.cfg.FileBytes = 1
	got := fx.export(everyTravelling...)
	var want []string
	for _, key := range keysOf(lines) {
		if !strings.Contains(lines[key], `{"resourceType":"Organization"`) {
			want = append(want, lines[key])
		}
	}
	got.wantLines(t, want...)
	got.wantIssues(t, "error", "A part of Organization (Organization-referenced-00000) is missing: the source returned")
	fx.wantMetric(1, "sluice_worker_guard_refusals_total")
}

func TestReferencesOfWithheldResourcesDoNotTravel(t *testing.T) { // pitfall 2
	t.Parallel()
	shared := `{"resourceType":"Appointment","id":"app-1","participant":[{"actor":{"reference":"Patient/pat-1"}},` +
		`{"actor":{"reference":"Patient/pat-9"}},{"actor":{"reference":"Practitioner/a"}}]}`
	all := holding(t, shared, travelling("Practitioner", "a"), patient(1))
	got := newFixture(t, all, members...).export("Appointment", "Patient", "Practitioner")
	got.wantLines(t, patient(1))
	got.wantIssues(t, "information", "Appointment: 1 left out")
}

func TestWhenReferencesCannotBeFollowedTheRestIsExported(t *testing.T) { // pitfall 21
	t.Parallel()
	all, lines := network(t)
	fx := newFixture(t, failing(all, "PractitionerRole", 1000), members...)
	got := fx.export("Patient", "PractitionerRole", "Organization")
	got.wantLines(t, lines["patient"])
	got.wantIssues(t, "error", "Referenced resources are missing: its data could not be read or stored in 3 attempts.")
}

func TestReferencesSurviveAFailedUnit(t *testing.T) { // pitfall 21
	t.Parallel()
	all, lines := network(t)
	fx := newFixture(t, failing(all, "Observation", 1000), members...)
	got := fx.export("Observation", "Patient", "PractitionerRole", "Practitioner")
	got.wantLines(t, lines["patient"], lines["role"], lines["gp"]) // not the nurse, whom only the failed unit references
	got.wantIssues(t, "error", "A part of Observation (Observation-00000) is missing")
	if got.job.State != export.Completed {
		t.Errorf("the job is %s", got.job.State)
	}
}
