package pipeline_test

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/pipeline"
)

func line(typ, id string, more ...string) string {
	return fmt.Sprintf(`{"resourceType":%q,"id":%q%s}`, typ, id, strings.Join(more, ""))
}

func ref(key, to string) string { return fmt.Sprintf(`,%q:{"reference":%q}`, key, to) }

// everything is a store with data of every kind.
var wholeStore = []string{
	patient(1), patient(2), patient(9),
	observation(1, 1), observation(2, 2), observation(9, 9), observation("unheld", 77),
	appointment("both", "pat-1", "pat-9"), appointment("shown", "pat-1", "pat-2"),
	line("Observation", "obs-room", ref("subject", "Location/room")),
	line("Observation", "obs-unknown", ref("subject", "urn:uuid:1")),
	line("Observation", "obs-foreign", ref("subject", "https://other/Patient/1")),
	line("Observation", "obs-by", ref("subject", "Location/room"), `,"performer":[{"reference":"Patient/pat-9"}]`),
	line("Location", "room"), line("Practitioner", "unnamed"),
	line("ValueSet", "v"), line("Questionnaire", "q", `,"contained":[{"resourceType":"Patient","id":"x"}]`),
	line("Substance", "s", `,"extension":[{"url":"u","valueReference":{"reference":"Patient/pat-9"}}]`),
	line("Substance", "t", `,"extension":[{"url":"u","valueReference":{"reference":"Patient/pat-1"}}]`),
	line("Substance", "u", `,"extension":[{"url":"u","valueReference":{"reference":"urn:uuid:2"}}]`),
	line("Substance", "w", `,"contained":[{"resourc\u0065Type":"Condition","subject":{"display":"N. N."}}]`),
	line("Observation", "obs-of", ref("subject", "Location/room"), ref("encounter", "Encounter/e9")),
	line("Observation", "obs-mrn", `,"performer":[{"type":"Patient","identifier":{"value":"9"}}]`),
	line("Observation", "obs-id", `,"performer":[{"identifier":{"value":"9"}}]`),
	line("MeasureReport", "m", ref("subject", "Group/h"), `,"group":[{"population":[{"count":17}]}]`),
	line("Group", "g"), line("Group", "h"), line("Task", "t"), line("Binary", "b"),
	provenance(1, "Observation/obs-1"), provenance("room", "Location/room"), provenance("odd", "Observation/obs-room"),
}

var storedTypes = []string{
	"Appointment", "Binary", "Group", "Location", "MeasureReport", "Observation", "Patient", "Practitioner", "Provenance", "Questionnaire", "Substance",
	"Task", "ValueSet",
}

// at is a request of a level for the types.
func at(level export.Level, types ...string) export.Request {
	return export.Request{Level: level, Types: types}
}

// run exports the request with a grant of every level.
func (fx *fixture) run(request export.Request) outcome {
	fx.t.Helper()
	if len(fx.people.grant.Levels) == 0 {
		fx.people.grant.Levels = export.Levels()
	}
	return fx.outcome(fx.finish(fx.worker(), fx.ask(request)))
}

func TestSystemLevelForEverybody(t *testing.T) { // L-03
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...))
	fx.people.grant.Groups = directory.Everything()
	got := fx.run(at(export.SystemLevel, storedTypes...))
	got.wantLines(t, wholeStore...)
	if len(got.issues) > 0 {
		t.Errorf("issues: %v", got.issues)
	}
}

func TestSystemLevelOfSomePatients(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...))
	fx.people.patients = directory.NameList{Names: []string{"pat-1", "pat-2"}}
	got := fx.run(at(export.SystemLevel, storedTypes...))
	hidden := []string{
		"pat-9", "obs-9", "obs-unheld", "both", "obs-unknown", "obs-foreign", "obs-by", "q", "s", "u", "w", "g", "h", "t", "b", "pro-odd",
		"obs-of", "obs-mrn", "obs-id", "m",
	}
	want := slices.DeleteFunc(slices.Clone(wholeStore), func(text string) bool {
		return slices.ContainsFunc(hidden, func(id string) bool {
			return strings.Contains(text, fmt.Sprintf(`"id":%q`, id)) && !strings.Contains(text, `"Substance","id":"t"`) ||
				strings.Contains(text, fmt.Sprintf(`"id":"app-%s"`, id))
		})
	})
	got.wantLines(t, want...)
	for _, issue := range got.issues {
		if strings.Contains(issue.Diagnostics, " left out") && !strings.Contains(issue.Diagnostics, "some left out") &&
			!strings.Contains(issue.Diagnostics, "also about a patient outside") {
			t.Errorf("an issue has a number of other patients' data: %s", issue.Diagnostics)
		}
	}
}

func TestSystemLevelOfSomeGroups(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...))
	fx.people.grant.Groups = directory.Only("h")
	fx.run(at(export.SystemLevel, "Group")).wantLines(t, line("Group", "h"))
}

func TestPatientLevel(t *testing.T) { // L-02
	t.Parallel()
	types := slices.DeleteFunc(slices.Clone(storedTypes), func(typ string) bool { return !fhir.IsExportable(typ) })
	fx := newFixture(t, holding(t, wholeStore...))
	fx.run(at(export.PatientLevel, types...)).wantLines(t, patient(1), patient(2), patient(9), observation(1, 1),
		observation(2, 2), observation(9, 9), appointment("both", "pat-1", "pat-9"), appointment("shown", "pat-1", "pat-2"),
		provenance(1, "Observation/obs-1"))
	fx.people.patients = directory.NameList{Names: []string{"pat-1", "pat-77"}}
	fx.run(at(export.PatientLevel, types...)).wantLines(t, patient(1), observation(1, 1), provenance(1, "Observation/obs-1"))
}

func TestLevelsOfTheGrant(t *testing.T) {
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...), members...)
	for _, allowed := range []directory.Levels{nil, {export.PatientLevel}, {export.SystemLevel}} {
		fx.people.grant.Levels = allowed
		for _, level := range export.Levels() {
			request := at(level, "Patient")
			request.GroupID = groupID
			job := fx.finish(fx.worker(), fx.ask(request))
			if want := allowed.Has(level); (job.State == export.Completed) != want {
				t.Errorf("%s level with %v: %s", level, allowed, job.State)
			}
		}
	}
}

// asked stores the list of patients that a request names, as the API does.
func (fx *fixture) asked(ids ...string) *export.Asked {
	fx.t.Helper()
	list := []byte(strings.Join(ids, "\n") + "\n")
	key := export.AskedKey(export.NewJobID())
	object := fx.objects.Create(fx.t.Context(), key, "text/plain")
	_, err := object.Write(list)
	must(fx.t, err)
	_, err = object.Commit()
	must(fx.t, err)
	sum := sha256.Sum256(list)
	return &export.Asked{Key: key, Patients: int64(len(ids)), SHA256: hex.EncodeToString(sum[:])}
}

func TestOnlyTheAskedPatients(t *testing.T) { // P-22
	t.Parallel()
	fx := newFixture(t, holding(t, wholeStore...), "pat-1", "pat-2")
	for _, level := range []export.Level{export.GroupLevel, export.PatientLevel} {
		request := at(level, "Observation", "Patient")
		request.GroupID = groupID
		request.Asked = fx.asked("pat-1", "pat-9")
		got := fx.run(request)
		if level == export.GroupLevel {
			got.wantLines(t, patient(1), observation(1, 1))
		} else {
			got.wantLines(t, patient(1), observation(1, 1), patient(9), observation(9, 9))
		}
		request.Asked = fx.asked()
		request.Asked.SHA256 = strings.Repeat("0", 64)
		if job := fx.finish(fx.worker(), fx.ask(request)); job.State != export.Failed {
			t.Errorf("a changed list of patients: %s", job.State)
		}
	}
}

func TestOnlyReferencedTypes(t *testing.T) { // P-17
	t.Parallel()
	fx := newFixture(t, holding(t, patient(1), patient(9),
		observation(1, 1, `,"performer":[{"reference":"Practitioner/seen"}]`),
		observation(9, 9, `,"performer":[{"reference":"Practitioner/other"}]`),
		`{"resourceType":"Condition","id":"con-1","subject":{"reference":"Patient/pat-1"},"asserter":{"reference":"Practitioner/hidden"}}`,
		line("Practitioner", "seen"), line("Practitioner", "other"), line("Practitioner", "hidden"),
		observation(2, 1, `,"performer":[{"reference":"PractitionerRole/r"}]`),
		line("PractitionerRole", "r", ref("practitioner", "Practitioner/acting")), line("Practitioner", "acting")), "pat-1")
	request := export.Request{
		GroupID: groupID, Types: []string{"Practitioner"}, Through: []string{"Observation", "Patient", "PractitionerRole"},
	}
	got := fx.run(request)
	got.wantLines(t, line("Practitioner", "seen"), line("Practitioner", "acting"))
	if len(got.issues) > 0 {
		t.Errorf("issues: %v", got.issues)
	}
}

func TestFilterAndElements(t *testing.T) { // P-19, P-31
	t.Parallel()
	fx := newFixture(t, holding(t, patient(1),
		observation(1, 1, `,"status":"final","performer":[{"reference":"Practitioner/a"}]`),
		observation(2, 1, `,"status":"draft","performer":[{"reference":"Practitioner/b"}]`),
		line("Practitioner", "a", `,"active":true`), line("Practitioner", "b", `,"active":true`)), "pat-1")
	request := export.Request{
		GroupID: groupID, Types: []string{"Observation", "Patient", "Practitioner"}, Filters: []string{"Observation?status=final"},
	}
	got := fx.run(request)
	got.wantLines(t, patient(1), observation(1, 1, `,"status":"final","performer":[{"reference":"Practitioner/a"}]`),
		line("Practitioner", "a", `,"active":true`))
	if len(got.issues) > 0 {
		t.Errorf("issues: %v", got.issues)
	}
	request.Filters, request.Elements = nil, []string{"Practitioner.id"}
	tag := `"meta":{"tag":[{"system":"http://terminology.hl7.org/CodeSystem/v3-ObservationValue","code":"SUBSETTED"}]}`
	for _, text := range fx.run(request).lines["Practitioner"] {
		if !strings.Contains(text, tag) || strings.Contains(text, "active") {
			t.Errorf("a reduced line: %s", text)
		}
	}
	request.Elements, request.Filters = nil, []string{"Observation?nonsense=final"}
	if job := fx.finish(fx.worker(), fx.ask(request)); job.State == export.Completed && len(fx.outcome(job).issues) == 0 {
		t.Error("a filter that this version does not know was ignored")
	}
}

func TestWhatWasIgnoredIsTold(t *testing.T) { // K-17
	t.Parallel()
	request := export.Request{GroupID: groupID, Types: []string{"Patient"}, Ignored: []string{"The parameter _a.", "The parameter _b."}}
	got := newFixture(t, holding(t, patient(1)), "pat-1").run(request)
	want := []fhir.Issue{
		{Severity: "warning", Code: "not-supported", Diagnostics: "The parameter _a."},
		{Severity: "warning", Code: "not-supported", Diagnostics: "The parameter _b."},
	}
	if !slices.Equal(got.issues, want) {
		t.Errorf("issues: %+v", got.issues)
	}
}

// TestWorkersOfEarlierVersions: they read the field `request` of a job alone, and must not misread a request that they do
// not know.
func TestWorkersOfEarlierVersions(t *testing.T) {
	t.Parallel()
	for name, request := range map[string]export.Request{
		"level":    {Level: export.SystemLevel},
		"asked":    {Asked: &export.Asked{}},
		"filters":  {Filters: []string{"Patient?active=true"}},
		"elements": {Elements: []string{"id"}},
		"ignored":  {Ignored: []string{"x"}},
		"through":  {Through: []string{"Patient"}},
	} {
		if request.Plain() {
			t.Errorf("%s: a worker of an earlier version would misread it", name)
		}
	}
	if !(export.Request{Level: export.GroupLevel, GroupID: "g", Types: []string{"Patient"}}).Plain() {
		t.Error("a plain request is not plain")
	}
}

func TestCutOfTheSystemLevel(t *testing.T) {
	t.Parallel()
	sizes := source.Sizes{Patients: 2000, Types: map[string]source.TypeSize{
		"Observation": {Bytes: 4096}, "ValueSet": {Bytes: 10}, "Task": {Bytes: 10},
	}}
	cfg := pipeline.Config{UnitBytes: 1024, UnitMost: 1024}
	request := at(export.SystemLevel, "Observation", "Task", "ValueSet")
	var got []string
	for _, unit := range pipeline.Cut(request, true, sizes, export.Cohort{Chunks: 4, Patients: 2000}, cfg) {
		got = append(got, fmt.Sprint(unit.ID, " ", unit.Scope, " ", unit.Slice))
	}
	want := []string{
		"Observation-00000 all {0 1}", "Observation-00001 all {1 2}", "Observation-00002 all {2 3}", "Observation-00003 all {3 4}",
		"Task-nobody-00000 all {0 0}", "ValueSet-nobody-00000 all {0 0}",
	}
	if !slices.Equal(got, want) {
		t.Errorf("units of everybody: %q", got)
	}
	got = nil
	for _, unit := range pipeline.Cut(request, false, sizes, export.Cohort{}, cfg) {
		got = append(got, fmt.Sprint(unit.ID, " ", unit.Scope, " ", unit.Slice))
	}
	if want := []string{"Observation-nobody-00000 nobody {0 0}", "ValueSet-nobody-00000 nobody {0 0}"}; !slices.Equal(got, want) {
		t.Errorf("units of nobody: %q", got)
	}
	empty := pipeline.Cut(request, true, sizes, export.Cohort{}, cfg)
	if len(empty) != 3 || empty[0].Scope != export.ScopeAll {
		t.Errorf("units of a store without patients: %+v", empty)
	}
}
