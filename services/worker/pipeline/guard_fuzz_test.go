package pipeline

import (
	"bytes"
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

// fuzzCohort is the cohort of FuzzGuard, of which the first two patients are asked for.
var fuzzCohort = []string{"pat-1", "pat-2", "pat-3"}

// storedCohort is fuzzCohort as a stored list, on a store that has nothing else, so that there need be no server.
func storedCohort(t testing.TB) *spillset.List {
	t.Helper()
	held := map[string]string{"/shelf/c/index": "pat-1\n", "/shelf/c/chunk-000000": strings.Join(fuzzCohort, "\n") + "\n"}
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
	list, err := spillset.Open(t.Context(), store, "c/")
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// What was admitted for one part of the cohort is no reason to admit it for the next.
func TestTheGuardForgetsWhoWasAskedForBefore(t *testing.T) {
	g := guard{typ: "Observation", cohort: storedCohort(t)}
	r := source.Resource{
		Type: "Observation", ID: "o", Body: []byte(`{"resourceType":"Observation","id":"o","subject":{"reference":"Patient/pat-1"}}`),
	}
	g.ask(fuzzCohort[:1])
	for range 2 {
		if verdict, err := g.check(t.Context(), r); err != nil || verdict != admitted {
			t.Fatalf("verdict %d, %v", verdict, err)
		}
	}
	g.ask(fuzzCohort[1:2])
	if verdict, err := g.check(t.Context(), r); err == nil {
		t.Errorf("verdict %d of a resource about somebody who was asked for before", verdict)
	}
}

// FuzzGuard: whatever line a source gives, and whatever it says of the line, it is written only if a full decode finds
// that it is of the type and id asked for, and about the cohort and nobody else, somebody who was asked for among them.
// That holds for a reader who keeps the first of two members of one name as well as for one who keeps the last.
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
	} {
		for _, attest := range []bool{false, true} {
			f.Add("Observation", "o", line, attest, "pat-1")
			f.Add("Appointment", "o", line, attest, "pat-1")
		}
		f.Add("Patient", "pat-1", line, false, "pat-1")
	}
	cohort := storedCohort(f)
	f.Fuzz(func(t *testing.T, typ, id, line string, attest bool, named string) {
		if typ == "Provenance" || !fhir.InCompartment(typ) { // its targets' patients are the source's to tell
			return
		}
		g := guard{typ: typ, cohort: cohort}
		g.ask(fuzzCohort[:2])
		r := source.Resource{Type: typ, ID: id, Subjects: []string{named}, Named: []string{named}, Body: []byte(line)}
		if attest { // by a store that was loaded with what does not belong together
			r.Attestation = r.Attest()
		}
		// The second time it is the line after another of the same patient.
		for range 2 {
			verdict, err := g.check(t.Context(), r)
			if err != nil {
				if permanent := new(export.PermanentError); !errors.As(err, permanent) || strings.Contains(err.Error(), "pat-") {
					t.Fatalf("%v is no refusal, or names a patient", err)
				}
				return
			}
			checkVerdict(t, verdict, r)
			g.count = 0 // what is attested is read once in a while: here each time
		}
	})
}

// checkVerdict holds what the guard says of a resource against full decodes of its line.
func checkVerdict(t *testing.T, verdict verdict, r source.Resource) {
	t.Helper()
	var last map[string]any
	if err := json.Unmarshal(r.Body, &last); err != nil {
		t.Fatalf("passed what cannot be decoded: %v", err)
	}
	first, _ := firstOfTwo(t, json.NewDecoder(bytes.NewReader(r.Body))).(map[string]any)
	for reader, tree := range map[string]map[string]any{"first": first, "last": last} {
		if tree["resourceType"] != r.Type || tree["id"] != r.ID {
			t.Fatalf("passed %v/%v for %s/%s by the %s of two", tree["resourceType"], tree["id"], r.Type, r.ID, reader)
		}
		var people []string
		if r.Type == "Patient" {
			people = append(people, r.ID)
		}
		for _, path := range fhir.SubjectPaths(r.Type) {
			people = append(people, patientsAt(tree, strings.Split(path, "."))...)
		}
		asked := slices.ContainsFunc(people, func(p string) bool { return slices.Contains(fuzzCohort[:2], p) })
		outside := slices.ContainsFunc(people, func(p string) bool { return !slices.Contains(fuzzCohort, p) })
		if !asked || outside != (verdict == withheld) || verdict == elsewhere {
			t.Fatalf("verdict %d of a resource about %q by the %s of two", verdict, people, reader)
		}
	}
}

// firstOfTwo decodes a value; of two members of one name it keeps the first.
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

// patientsAt are the patients that references at the path name.
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
