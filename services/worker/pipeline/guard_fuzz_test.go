package pipeline

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/source"
	"github.com/sluice-fhir/sluice/services/worker/internal/spillset"
)

// fuzzCohort is the cohort of the guard's tests. The source is queried for the first two.
var fuzzCohort = []string{"pat-1", "pat-2", "pat-3"}

// storedList returns the ids, at most a chunk, as a stored list. The store is a few canned responses: no test here writes.
func storedList(t testing.TB, ids ...string) *spillset.List {
	t.Helper()
	chunk := strings.Join(ids, "\n") + "\n"
	contents := fmt.Sprintf("%s %x\n", ids[0], sha256.Sum256([]byte(chunk)))
	held := map[string]string{"/shelf/c/contents": contents, "/shelf/c/chunk-000000": chunk}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, there := held[r.URL.Path]
		if !there {
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `<Error><Code>NoSuchKey</Code></Error>`)
			return
		}
		w.Header().Set("ETag", fmt.Sprintf(`"%08x"`, crc32.ChecksumIEEE([]byte(text))))
		http.ServeContent(w, r, "", time.Unix(1, 0), strings.NewReader(text))
	}))
	t.Cleanup(server.Close)
	store, err := objects.Open(objects.Config{Endpoint: server.URL, AccessKey: "access", SecretKey: "secret", Bucket: "shelf"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	digest := fmt.Sprintf("%x", sha256.Sum256([]byte(contents)))
	list, err := spillset.NewCache().Open(t.Context(), store, "c/", digest)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestTheGuardAdmitsOnlyTheCurrentRequest(t *testing.T) {
	t.Parallel()
	g := guard{typ: "Observation", cohort: storedList(t, fuzzCohort...)}
	r := source.Resource{
		Type: "Observation", ID: "o", Body: []byte(`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/pat-1"}}`),
	}
	g.request(fuzzCohort[:1])
	for range 2 {
		if verdict, err := g.check(t.Context(), r); err != nil || verdict != admitted {
			t.Fatalf("verdict %d, %v", verdict, err)
		}
	}
	g.request(fuzzCohort[1:2])
	if verdict, err := g.check(t.Context(), r); err == nil {
		t.Errorf("verdict %d for a resource of an earlier request", verdict)
	}
}

// FuzzGuard checks the guard against a full decode of the line. Whatever the source returns and reports about a line, the
// guard admits it only if it has the requested type and id and is about a requested patient and only about the cohort. This
// holds for readers that keep the first of two members of one name and for readers that keep the last.
func FuzzGuard(f *testing.F) {
	const observation = `{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/pat-1"}}`
	for _, line := range []string{
		observation,
		strings.Replace(observation, "pat-1", "pat-3", 1),
		strings.Replace(observation, "pat-1", "pat-9", 1),
		strings.Replace(observation, `"subject"`, `"subject":{"reference":"Patient/pat-9"},"subject"`, 1),
		strings.Replace(observation, `"reference"`, `"reference":"Patient/pat-9","referenc\u0065"`, 1),
		strings.Replace(observation, `"subject"`, `"contained":[{"subject":{"reference":"Patient/pat-9"}}],"subj\u0065ct"`, 1),
		strings.Replace(observation, "Patient/", `Patient\/pat-9\u002f..\/`, 1),
		strings.Replace(observation, `"o"`, `"o","id":"p"`, 1),
		`{"resourceType":"Observation","id":"o","subject":[[{"reference":"Patient/pat-1"}],{"reference":"Patient/pat-9"}]}`,
		`{"resourceType":"Observation","id":"o","subject":{"reference":"http://h/Patient/pat-2/_history/1"}}`,
		"{\"resourceType\":\"Observation\",\"id\":\"o\",\"subject\":{\"reference\":\"Patient/pat-1\xff\"}}",
		observation + "\n" + strings.Replace(observation, "pat-1", "pat-9", 1),
		`{"resourceType":"Appointment","id":"o","participant":[{"actor":{"reference":"Patient/pat-1"}},{"actor":{"reference":"Patient/pat-2"}}]}`,
		`{"resourceType":"Appointment","id":"o","participant":[{"actor":{"reference":"Patient/pat-1"}},{"actor":{"reference":"Patient/pat-9"}}]}`,
		`{"resourceType":"Patient","id":"pat-1"}`,
		`{"resourceType":"Patient","id":"pat-9"}`,
		strings.Replace(observation, `"subject"`, `"contained":[{"resourceType":"Flag","subject":{"reference":"Patient/pat-9"}}],"subject"`, 1),
		strings.Replace(observation, `"subject"`, `"contained":[{"contained":[{"resourceType":"Flag","subject":{"reference":"Patient/pat-9"}}]}],"subject"`, 1),
		strings.Replace(observation, `"subject"`, `"Subject":{"reference":"Patient/pat-9"},"subject"`, 1),
	} {
		for _, attest := range []bool{false, true} {
			f.Add("Observation", "o", line, attest, "pat-1")
			f.Add("Appointment", "o", line, attest, "pat-1")
		}
		f.Add("Patient", "pat-1", line, false, "pat-1")
	}
	cohort := storedList(f, fuzzCohort...)
	f.Fuzz(func(t *testing.T, typ, id, line string, attest bool, named string) {
		if typ == "Provenance" || !fhir.InCompartment(typ) { // the patients of a Provenance's targets come from the source
			return
		}
		g := guard{typ: typ, cohort: cohort}
		g.request(fuzzCohort[:2])
		r := source.Resource{Type: typ, ID: id, Subjects: []string{named}, Named: []string{named}, Body: []byte(line)}
		if attest { // by a store whose lines and attestations do not match
			r.Attestation = r.Attest()
		}
		// The second line follows one of the same patient.
		for range 2 {
			verdict, err := g.check(t.Context(), r)
			if err != nil {
				if permanent := new(export.PermanentError); !errors.As(err, permanent) || strings.Contains(err.Error(), "pat-") {
					t.Fatalf("%v is not a refusal, or names a patient", err)
				}
				return
			}
			checkVerdict(t, verdict, g.why, r)
			g.count = 0 // read each attested line, not one in recheckEvery
		}
	})
}

// checkVerdict compares the verdict with full decodes of the line.
func checkVerdict(t *testing.T, verdict verdict, why export.Reason, r source.Resource) {
	t.Helper()
	var last map[string]any
	if err := json.Unmarshal(r.Body, &last); err != nil {
		t.Fatalf("admitted an undecodable line: %v", err)
	}
	first, _ := firstOfTwo(t, json.NewDecoder(bytes.NewReader(r.Body))).(map[string]any)
	for reader, tree := range map[string]map[string]any{"first": first, "last": last} {
		if tree["resourceType"] != r.Type || tree["id"] != r.ID {
			t.Fatalf("admitted %v/%v as %s/%s, reading the %s of two members", tree["resourceType"], tree["id"], r.Type, r.ID, reader)
		}
		var patients []string
		if r.Type == "Patient" {
			patients = append(patients, r.ID)
		}
		for _, path := range fhir.SubjectPaths(r.Type) {
			patients = append(patients, patientsAt(tree, strings.Split(path, "."))...)
		}
		patients = append(patients, patientsWithin(tree["contained"])...)
		requested := slices.ContainsFunc(patients, func(p string) bool { return slices.Contains(fuzzCohort[:2], p) })
		outside := slices.ContainsFunc(patients, func(p string) bool { return !slices.Contains(fuzzCohort, p) })
		if verdict == withheld && why == export.UnknownPatient && requested && !outside {
			continue // also about somebody without a literal reference
		}
		if !requested || outside != (verdict == withheld) || verdict == elsewhere {
			t.Fatalf("verdict %d of a resource about %q, reading the %s of two members", verdict, patients, reader)
		}
	}
}

// firstOfTwo decodes a value and keeps the first of two members of one name.
func firstOfTwo(t *testing.T, decoder *json.Decoder) any {
	t.Helper()
	token, err := decoder.Token()
	if err != nil {
		t.Fatal(err)
	}
	switch token {
	case json.Delim('{'):
		object := map[string]any{}
		for decoder.More() {
			name, err := decoder.Token()
			if err != nil {
				t.Fatal(err)
			}
			value := firstOfTwo(t, decoder)
			if _, twice := object[name.(string)]; !twice {
				object[name.(string)] = value
			}
		}
		token, err = decoder.Token()
		if err != nil {
			t.Fatal(token, err)
		}
		return object
	case json.Delim('['):
		array := []any{}
		for decoder.More() {
			array = append(array, firstOfTwo(t, decoder))
		}
		if token, err := decoder.Token(); err != nil {
			t.Fatal(token, err)
		}
		return array
	}
	return token
}

// patientsWithin returns the patients that contained resources are about.
func patientsWithin(node any) []string {
	var ids []string
	switch node := node.(type) {
	case []any:
		for _, element := range node {
			ids = append(ids, patientsWithin(element)...)
		}
	case map[string]any:
		typ, _ := node["resourceType"].(string)
		for _, path := range fhir.SubjectPaths(typ) {
			ids = append(ids, patientsAt(node, strings.Split(path, "."))...)
		}
		ids = append(ids, patientsWithin(node["contained"])...)
	}
	return ids
}

// patientsAt returns the patients that the references at the path name.
func patientsAt(node any, path []string) []string {
	var ids []string
	switch node := node.(type) {
	case []any:
		for _, element := range node {
			ids = append(ids, patientsAt(element, path)...)
		}
	case map[string]any:
		if len(path) > 0 {
			return patientsAt(node[path[0]], path[1:])
		}
		text, _ := node["reference"].(string)
		if ref, ok := fhir.ParseReference(text); ok && ref.Type == "Patient" {
			ids = append(ids, ref.ID)
		}
	}
	return ids
}
