package sourcetest

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/source"
)

// healthNewEngland has the known counts of the sample's group of that name: the resources about its members, and the
// Practitioner and Organization resources that those reference, transitively.
var healthNewEngland = map[string]int{
	"Patient": 25, "AllergyIntolerance": 13, "CarePlan": 72, "CareTeam": 72, "Claim": 1508, "Condition": 166,
	"Device": 3, "DiagnosticReport": 124, "Encounter": 840, "ExplanationOfBenefit": 840, "ImagingStudy": 6,
	"Immunization": 355, "MedicationRequest": 668, "Observation": 3151, "Procedure": 621, "Organization": 50,
	"Practitioner": 50,
}

// RunSynthea checks a source that holds the Synthea sample in dir (testenv.Synthea) against the known answers for a
// group, and that nothing is lost over all patients.
func RunSynthea(t *testing.T, dir string, src source.Source) {
	t.Run("HealthNewEngland", func(t *testing.T) {
		members := syntheaMembers(t, dir, "HealthNewEngland")
		got := map[string]int{}
		wanted := map[fhir.Ref]bool{}
		take := func(r source.Resource) error { //nolint:unparam // the signature of a yield
			got[r.Type]++
			fhir.References(r.Body, func(ref fhir.Ref) bool {
				if fhir.IsReferenced(ref.Type) {
					if _, met := wanted[ref]; !met {
						wanted[ref] = false
					}
				}
				return true
			})
			return nil
		}
		for _, typ := range fhir.ExportableTypes() {
			if !fhir.InCompartment(typ) {
				continue
			}
			err := src.ForPatients(t.Context(), source.Query{Type: typ, Patients: members}, func(r source.Resource) error {
				if len(r.Subjects) != 1 || !slices.Contains(members, r.Subjects[0]) {
					t.Errorf("%s/%s is about other patients", r.Type, r.ID)
				}
				return take(r)
			})
			must(t, err)
		}
		for again := true; again; {
			again = false
			byType := map[string][]string{}
			for ref, done := range wanted {
				if !done {
					byType[ref.Type] = append(byType[ref.Type], ref.ID)
					wanted[ref] = true
				}
			}
			for typ, ids := range byType {
				again = true
				slices.Sort(ids)
				must(t, src.ByID(t.Context(), source.ByIDQuery{Type: typ, IDs: ids}, take))
			}
		}
		for _, typ := range fhir.ExportableTypes() {
			if got[typ] != healthNewEngland[typ] {
				t.Errorf("%s: got %d, want %d", typ, got[typ], healthNewEngland[typ])
			}
		}
	})
	t.Run("everybody", func(t *testing.T) {
		stored := map[string]map[string]bool{} // by type, every line's body
		paths, err := filepath.Glob(filepath.Join(dir, "*.ndjson.gz"))
		if err != nil || len(paths) == 0 {
			t.Fatalf("no files in %s (%v)", dir, err)
		}
		var patients []string
		for _, path := range paths {
			typ := strings.TrimSuffix(filepath.Base(path), ".ndjson.gz")
			stored[typ] = map[string]bool{}
			for line := range bytes.Lines(unzip(t, path)) {
				stored[typ][unresolved(bytes.TrimSpace(line))] = true
				if typ == "Patient" {
					var patient struct{ ID string }
					must(t, json.Unmarshal(line, &patient))
					patients = append(patients, patient.ID)
				}
			}
		}
		slices.Sort(patients)
		for typ, lines := range stored {
			if !fhir.InCompartment(typ) {
				continue
			}
			for slice := range slices.Chunk(patients, 9) {
				err := src.ForPatients(t.Context(), source.Query{Type: typ, Patients: slice}, func(r source.Resource) error {
					if !lines[unresolved(r.Body)] {
						t.Errorf("%s/%s was yielded twice or differs from the stored line", r.Type, r.ID)
					}
					delete(lines, unresolved(r.Body))
					return nil
				})
				must(t, err)
			}
			if len(lines) > 0 {
				t.Errorf("%s: %d resources are missing", typ, len(lines))
			}
		}
	})
}

// unresolved returns the line with the type of each reference removed: a urn may have been resolved.
func unresolved(line []byte) string {
	return string(anyReference.ReplaceAll(line, []byte(`"reference":"$1"`)))
}

var anyReference = regexp.MustCompile(`"reference":"(?:urn:uuid:|[A-Za-z]+/)([0-9a-f-]+)"`)

// syntheaMembers reads the members of one of the sample's groups.
func syntheaMembers(t *testing.T, dir, id string) []string {
	t.Helper()
	for line := range bytes.Lines(unzip(t, filepath.Join(dir, "Group.ndjson.gz"))) {
		var group struct {
			ID     string
			Member []struct{ Entity struct{ Reference string } }
		}
		must(t, json.Unmarshal(line, &group))
		if group.ID != id {
			continue
		}
		var members []string
		for _, member := range group.Member {
			members = append(members, strings.TrimPrefix(member.Entity.Reference, "Patient/"))
		}
		slices.Sort(members)
		return members
	}
	t.Fatalf("no group %s", id)
	return nil
}

func unzip(t *testing.T, path string) []byte {
	t.Helper()
	file, err := os.Open(path)
	must(t, err)
	unzipped, err := gzip.NewReader(file)
	must(t, err)
	text, err := io.ReadAll(unzipped)
	must(t, errors.Join(err, file.Close()))
	return text
}
