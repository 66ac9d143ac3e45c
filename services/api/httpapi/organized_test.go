package httpapi_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
)

// P-37, M-16: items of blocks have no type, and one whose last block goes on names the next file. Whoever may not read every
// type of the export gets no block.
func TestStatusManifestOrganized(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	job := w.job(w.kickoff(w.as("alice"), "?_type=Patient,Observation"))
	job.ID, job.Request.OrganizedBy = export.NewJobID(), "Patient"
	_, err := w.jobs.Create(t.Context(), job, export.FirstUnit(), jobstore.Admission{Limit: 10})
	must(t, err)
	const header = `{"resourceType":"Parameters","parameter":[{"name":"header","valueReference":{"reference":"Patient/a"}}]}`
	first := content{typ: export.HeaderType, lines: []string{header, `{"resourceType":"Patient","id":"a"}`}}
	second := content{typ: export.HeaderType, lines: []string{header, `{"resourceType":"Observation","id":"o"}`}}
	w.plan(job.ID, "x", "y")
	files := []export.File{w.write(job.ID, "x-00000", first), w.write(job.ID, "y-00000", second)}
	files[0].Continues = files[1].Name
	var list bytes.Buffer
	for i, unit := range []export.UnitID{"x-00000", "y-00000"} {
		w.commit(w.claim(job.ID, unit, export.KindExport), files[i])
		must(t, json.NewEncoder(&list).Encode(files[i]))
	}
	w.seal(job.ID, list.Bytes())

	item := func(i int, more string) string {
		return fmt.Sprintf(`{"url":"%s/exports/%s/files/%s"%s,"count":2,"extension":{"sha256":"%s","size":%d,"bytes":%d}}`,
			base, job.ID, files[i].Name, more, files[i].SHA256, files[i].Stored, files[i].Bytes)
	}
	got := w.ask("GET", statusPath(job.ID), w.as("alice")...)
	next := fmt.Sprintf(`,"continuesInFile":"%s/exports/%s/files/%s"`, base, job.ID, files[1].Name)
	if want := `"requiresAccessToken":true,"outputOrganizedBy":"Patient","output":[` + item(0, next) + `,` + item(1, "") +
		`],"deleted":[]`; got.code != http.StatusOK || !strings.Contains(got.body, want) {
		t.Errorf("%d %s\nwant %s", got.code, got.body, want)
	}
	for scope, code := range map[string]int{
		"system/*.read": 200, "system/Patient.read system/Observation.read": 200, "system/Patient.read": 403,
		"system/Parameters.read system/Patient.read": 403,
	} {
		if got := w.ask("GET", filePath(job.ID, files[0]), w.as("alice", strings.Fields(scope)...)...); got.code != code {
			t.Errorf("%s: %d %s", scope, got.code, got.body)
		}
	}
}
