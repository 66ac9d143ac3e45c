package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/synth"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/e2e/check"
	"github.com/sluice-fhir/sluice/services/e2e/expect"
)

// goldenHealthNewEngland has the known counts of one group of the Synthea sample.
var goldenHealthNewEngland = map[string]int{
	"Patient": 25, "AllergyIntolerance": 13, "CarePlan": 72, "CareTeam": 72, "Claim": 1508, "Condition": 166, "Device": 3,
	"DiagnosticReport": 124, "Encounter": 840, "ExplanationOfBenefit": 840, "ImagingStudy": 6, "Immunization": 355,
	"MedicationRequest": 668, "Observation": 3151, "Procedure": 621, "Organization": 50, "Practitioner": 50,
}

// extraGroups are added to the data's own: one without members, and one whose members are not all active.
const extraGroups = `{"resourceType":"Group","id":"nobody","active":true,"type":"person","actual":true}
{"resourceType":"Group","id":"retired-group","active":false,"type":"person","actual":true}
`

// groupsOf copies the Group files of a data folder and adds the extra groups.
func groupsOf(t *testing.T, data string) string {
	t.Helper()
	dir := t.TempDir()
	files, err := filepath.Glob(filepath.Join(data, "Group*"))
	check.Must(t, err)
	for _, file := range files {
		content, err := os.ReadFile(file)
		check.Must(t, err)
		check.Must(t, os.WriteFile(filepath.Join(dir, filepath.Base(file)), content, 0o600))
	}
	check.Must(t, os.WriteFile(filepath.Join(dir, "Group.extra.ndjson"), []byte(extraGroups), 0o600))
	return dir
}

// loaded returns the URL of a database that holds the folder's population.
func loaded(t *testing.T, data string) string {
	t.Helper()
	database := testenv.Postgres(t)
	said := sluice(t, 0, "load", "--database", database, data)
	t.Logf("sluice load: %s", said[strings.LastIndex(strings.TrimSpace(said), "\n")+1:])
	return database
}

// TestEveryGroupOfTheSyntheaSample exports every group of the sample at once, with data, groups and grants in PostgreSQL,
// and compares each with the resources of its members.
func TestEveryGroupOfTheSyntheaSample(t *testing.T) {
	t.Parallel()
	data, there := testenv.Synthea(t)
	if !there {
		data = generated(t, 40)
	}
	population := expect.Read(t, data)
	store := loaded(t, data)
	s := deploy(t, setup{data: data, database: store, directory: store, groups: groupsOf(t, data), workers: 2})

	statuses := map[string]string{}
	for group := range population.Groups { // concurrent jobs (pitfall 32)
		if active, _ := population.Groups[group]["active"].(bool); active {
			statuses[group] = s.kickoff(group, "")
		}
	}
	for group, status := range statuses {
		m := s.wait(status, 2*time.Minute)
		people := population.Members(group)
		got := s.lines(m.Output)
		want := population.Export(people)
		expect.SameLines(t, group, got, want)
		if len(m.Error) != 0 && len(people) > 0 {
			if lines := s.lines(m.Error); strings.Contains(strings.Join(lines["OperationOutcome"], ""), `"error"`) {
				t.Errorf("%s: error files %v", group, lines)
			}
		}
		population.Identities(t, people, got)
		if group == "HealthNewEngland" {
			counts := map[string]int{}
			for typ, lines := range got {
				counts[typ] = len(lines)
			}
			if !maps.Equal(counts, goldenHealthNewEngland) {
				t.Errorf("HealthNewEngland: %v, want %v", counts, goldenHealthNewEngland)
			}
			t.Logf("HealthNewEngland: %v", counts)
		}
	}
}

func TestAnEmptyGroupExportsNothing(t *testing.T) { // pitfall 1
	t.Parallel()
	data := generated(t, 6)
	s := deploy(t, setup{data: data, groups: groupsOf(t, data), workers: 1})
	m := s.wait(s.kickoff("nobody", ""), time.Minute)
	if m.Output == nil || len(m.Output) != 0 || m.Error == nil || len(m.Error) != 0 || m.Deleted == nil {
		t.Errorf("manifest of an empty group: %+v", m)
	}
	if keys := s.objectKeys(); len(keys) != 1 { // the manifest
		t.Errorf("objects: %v", keys)
	}
}

func TestAGeneratedPopulation(t *testing.T) {
	t.Parallel()
	data := generated(t, 40)
	population := expect.Read(t, data)
	s := deploy(t, setup{data: data, groups: groupsOf(t, data), workers: 2, worker: []string{
		"SLUICE_FILE_BYTES=200000", // so that types have several files (pitfall 13)
	}})
	for _, group := range []string{"all", "ten", "mixed"} {
		m := s.wait(s.kickoff(group, ""), 2*time.Minute)
		got := s.lines(m.Output)
		people := population.Members(group)
		expect.SameLines(t, group, got, population.Export(people))
		population.Identities(t, people, got)
		if files := len(m.Output); group == "all" && files <= len(got) {
			t.Errorf("%d files for %d types: no type was rolled over", files, len(got))
		}
	}
	m := s.wait(s.kickoff("ten", "?_type=Patient,Observation&_type=Condition"), time.Minute)
	got := s.lines(m.Output)
	want := population.Export(population.Members("ten"))
	for typ := range want {
		if typ != "Patient" && typ != "Observation" && typ != "Condition" {
			delete(want, typ)
		}
	}
	expect.SameLines(t, "_type", got, want)
}

var populations sync.Map // of functions that generate a population once, by the number of patients

// generated returns the folder of a generated population, which all tests share and none changes.
func generated(t *testing.T, patients int) string {
	t.Helper()
	once, _ := populations.LoadOrStore(patients, sync.OnceValues(func() (string, error) {
		dir := filepath.Join(shared, fmt.Sprintf("population-%d", patients))
		_, err := synth.Generate(context.Background(), synth.Config{Patients: patients, Seed: 7, Dir: dir})
		return dir, err
	}))
	dir, err := once.(func() (string, error))()
	check.Must(t, err)
	return dir
}
