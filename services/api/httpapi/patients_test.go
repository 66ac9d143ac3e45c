package httpapi_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/envelope"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

const patientExport = "/fhir/Patient/$export"

// asking returns a body with the references as `patient`.
func asking(references ...string) string {
	var entries []string
	for _, reference := range references {
		entries = append(entries, `{"name":"patient","valueReference":{"reference":"`+reference+`"}}`)
	}
	return withParameters(entries...)
}

// asked returns the stored list of the patients of a job, after it has compared it with the record.
func (w *fixture) asked(id export.JobID) string {
	w.t.Helper()
	asked := w.job(id).Request.Asked
	if asked == nil {
		w.t.Fatal("the job is not limited to patients")
	}
	object, err := w.objects.Open(w.t.Context(), asked.Key, 0, -1)
	w.must(err)
	text, err := io.ReadAll(object)
	w.must(errors.Join(err, object.Close()))
	sum := sha256.Sum256(text)
	if asked.Key != export.AskedKey(id) || asked.SHA256 != hex.EncodeToString(sum[:]) ||
		asked.Patients != int64(strings.Count(string(text), "\n")) {
		w.t.Errorf("%+v describes %q", asked, text)
	}
	return string(text)
}

// stored lists the objects of all jobs.
func (w *fixture) stored() (keys []string) {
	w.t.Helper()
	w.must(w.objects.List(w.t.Context(), export.JobsPrefix, func(object objects.Info) error {
		keys = append(keys, object.Key)
		return nil
	}))
	return keys
}

// P-22: the references of `patient`, relative, below a base of this server or of its data, with a version or without, are
// one sorted list, which is stored with the job and is in no URL, record and log.
func TestPatientsOfAKickOff(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.DataBases = []string{"https://ehr.example.org/r4/"} })
	alice := w.as("alice")
	for _, target := range []string{groupExport, patientExport} {
		id := w.started(w.post(target, asking("Patient/p3", base+"/Patient/p1", "Patient/p3/_history/7", "https://EHR.example.org/r4/Patient/p2",
			"/Patient/p1"), alice...))
		if got := w.asked(id); got != "p1\np2\np3\n" {
			t.Errorf("%s: %q", target, got)
		}
	}
	for _, references := range [][]string{{"Patient/p4"}, {"Patient/p1", "Patient/p4"}} { // erin may export these alone
		id := w.started(w.post(patientExport, asking(references...), w.as("erin")...))
		if got, want := w.asked(id), strings.ReplaceAll(strings.Join(references, "\n"), "Patient/", "")+"\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, key := range w.keys() {
		if kind := w.redis().Type(t.Context(), key).Val(); kind == "hash" {
			if all := fmt.Sprint(w.redis().HGetAll(t.Context(), key).Val()); strings.Contains(all, "p1") {
				t.Errorf("the job store has a patient: %s", all)
			}
		}
	}
	if strings.Contains(w.log.String(), "p1") {
		t.Errorf("the log has a patient: %s", &w.log)
	}
}

// P-24, P-25: `patient` is for POST and for patients. Other values than references to Patients of this server are
// refused, lenient or not, and never repeated.
func TestPatientRefusals(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	type test struct {
		method, target, body, word string
	}
	tests := []test{
		{"GET", groupExport + "?patient=Patient/p1", "", "POST"},
		{"GET", patientExport + "?patient=Patient/p1", "", "POST"},
		{"POST", patientExport + "?patient=Patient/p1", emptyBody, "POST"},
		{"POST", patientExport + "?patient=Patient/p1", asking("Patient/p1"), "body"},
		{"GET", "/fhir/$export?patient=Patient/p1", "", "patient"},
		{"POST", "/fhir/$export", asking("Patient/p1"), "system level"},
	}
	for _, reference := range []string{
		"", "p1", "Patient/", "Group/g1", "Observation/p1", "patient/p1", "Patient/p1/x", "Patient?identifier=p1", "#p1", "Patient/p1#x",
		"urn:uuid:0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f", "https://other.example.org/fhir/Patient/p1", base + "/Group/p1",
		"https://fhir.example.org/Patient/p1", base + "x/Patient/p1", "Patient/p_1", "Patient/" + strings.Repeat("a", 65), "Patient/p1,Patient/p2",
	} {
		tests = append(tests, test{"POST", groupExport, asking("Patient/p1", reference), "Patient/[id]"})
	}
	for _, value := range []string{
		`{}`, `{"display":"p1"}`, `{"identifier":{"value":"p1"}}`, `{"reference":5}`, `"Patient/p1"`, `null`,
		`{"reference":"Patient/p1","reference":"Patient/p2"}`,
	} {
		tests = append(tests, test{"POST", groupExport, withParameters(`{"name":"patient","valueReference":` + value + `}`), "valueReference"})
	}
	for _, test := range tests {
		for _, prefer := range []string{"handling=strict", "handling=lenient"} {
			headers := append(w.as("alice"), "Prefer", prefer)
			if test.method == "POST" {
				headers = append(headers, "Content-Type", "application/json", bodyKey, test.body)
			}
			got := w.ask(test.method, test.target, headers...)
			wantOutcome(t, got, http.StatusBadRequest, "", "patient", test.word)
			if strings.Contains(got.body, "p1") || strings.Contains(got.body, "p_1") {
				t.Errorf("%s repeats a value", got.body)
			}
		}
	}
	if keys := w.stored(); len(keys) != 0 || w.active() != 0 {
		t.Errorf("%q are stored, and %d jobs", keys, w.active())
	}
}

// P-23: a patient that the server does not hold, that is not in the group or that the grant excludes is refused, or ignored
// when lenient, in the same words: a foreign owner cannot tell a patient that exists from one that does not. If nobody is left, the
// kick-off is refused, since the export would be of others.
func TestIsolationOfPatients(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	answers := map[string]map[string]reply{"1": {}, "2": {}}
	for name, test := range map[string]struct {
		caller, target, body, number string
	}{
		"not held":              {"alice", patientExport, asking("Patient/none"), "1"},
		"not held, by two":      {"alice", patientExport, asking("Patient/p1", "Patient/none"), "1"},
		"no member":             {"alice", groupExport, asking("Patient/p4"), "1"},
		"no member, not held":   {"alice", groupExport, asking("Patient/p4", "Patient/none", "Patient/p1"), "2"},
		"of an empty group":     {"alice", "/fhir/Group/g2/$export", asking("Patient/p1"), "1"},
		"not granted":           {"erin", patientExport, asking("Patient/p2"), "1"},
		"not granted, not held": {"erin", patientExport, asking("Patient/p2", "Patient/none", "Patient/p4"), "2"},
		"not held by another":   {"erin", patientExport, asking("Patient/none"), "1"},
	} {
		answers[test.number][name] = w.post(test.target, test.body, w.as(test.caller)...)
	}
	for number, same := range answers {
		wantSame(t, same)
		for _, got := range same {
			wantOutcome(t, got, http.StatusBadRequest, "not-found", "patient", "number: "+number+".")
			break
		}
	}

	lenient := func(caller string) []string { return append(w.as(caller), "Prefer", "handling=lenient") }
	for _, test := range []struct{ caller, body, want string }{
		{"alice", asking("Patient/p1", "Patient/none", "Patient/p3"), "p1\np3\n"},
		{"erin", asking("Patient/p2", "Patient/p4"), "p4\n"},
	} {
		id := w.started(w.post(patientExport, test.body, lenient(test.caller)...))
		ignored := w.job(id).Request.Ignored
		if got := w.asked(id); got != test.want || len(ignored) != 1 || !strings.Contains(ignored[0], "Their number: 1.") {
			t.Errorf("%s: %q, ignored %q", test.caller, got, ignored)
		}
	}
	before := w.active()
	wantOutcome(t, w.post(patientExport, asking("Patient/none", "Patient/no"), lenient("alice")...), http.StatusBadRequest, "not-found", "number: 2.")
	wantOutcome(t, w.post(patientExport, asking("Patient/p2"), lenient("erin")...), http.StatusBadRequest, "not-found", "number: 1.")
	if n := w.active(); n != before {
		t.Errorf("%d jobs were started", n-before)
	}
}

// P-42: thousands of references.
func TestManyPatients(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	var references []string
	for n := range 10_001 {
		references = append(references, fmt.Sprintf("Patient/patient-with-an-id-of-36-chars-%05d", n))
	}
	w.users.Groups.Held = func(_ context.Context, meet func(string) error) error {
		for _, reference := range references {
			if err := meet(strings.TrimPrefix(reference, "Patient/")); err != nil {
				return err
			}
		}
		return nil
	}
	for _, n := range []int{5000, 10_000} {
		id := w.started(w.post(patientExport, asking(references[:n]...), w.as("alice")...))
		if got := strings.Count(w.asked(id), "\n"); got != n {
			t.Errorf("%d patients, want %d", got, n)
		}
	}
	wantOutcome(t, w.post(patientExport, asking(references...), w.as("alice")...), http.StatusBadRequest, "too-costly", "patient", "10000")
}

// With KICKOFF_REPEAT=same, other patients never join, and the same ones do; the list is stored once.
func TestAnIdenticalKickOffOfPatients(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.Repeat = "same" })
	start := func(body string, headers ...string) export.JobID {
		return w.started(w.post(patientExport, body, append(w.as("alice"), headers...)...))
	}
	first := start(asking("Patient/p1", "Patient/p2"))
	if again := start(asking("Patient/p2", "Patient/p1")); again != first {
		t.Error("the same patients did not join")
	}
	seen := []export.JobID{first}
	for name, id := range map[string]export.JobID{
		"other patients": start(asking("Patient/p1", "Patient/p3")), "fewer patients": start(asking("Patient/p1")),
		"all patients": start(emptyBody), "another type": start(withParameters(`{"name":"_type","valueCode":"Patient"}`)),
		"something ignored": start(withParameters(`{"name":"_x","valueCode":"y"}`), "Prefer", "handling=lenient"),
		"another level":     w.started(w.post("/fhir/$export", emptyBody, w.as("alice")...)),
	} {
		if slices.Contains(seen, id) {
			t.Errorf("%s joined another export", name)
		}
		seen = append(seen, id)
	}
	if keys := w.stored(); len(keys) != 3 {
		t.Errorf("%d lists are stored, want three: %q", len(keys), keys)
	}
	w.asked(first)
}

// K-20: without a store a kick-off of patients is a 503, and neither a job nor a list of patients is left.
func TestPatientsOutage(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	for name, broken := range map[string]*door{"object store": w.objectDoor, "job store": w.jobDoor, "queue": w.queueDoor} {
		broken.Shut()
		got := w.post(patientExport, asking("Patient/p1"), w.as("alice")...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		wantHeader(t, got, "Retry-After", "5", "Content-Location", "")
		broken.Open()
		if keys := w.stored(); len(keys) != 0 || w.active() != 0 {
			t.Errorf("%s: %q are left, and %d jobs", name, keys, w.active())
		}
	}
	w.asked(w.started(w.post(patientExport, asking("Patient/p1"), w.as("alice")...)))

	w.users.unknown = func() error { return fmt.Errorf("looking: %w", export.ErrUnavailable) }
	wantOutcome(t, w.post(patientExport, asking("Patient/p1"), w.as("alice")...), http.StatusServiceUnavailable, "transient")
	w.users.unknown = func() error { return directory.ErrNoGroup } // it was removed between two lookups
	wantOutcome(t, w.post(groupExport, asking("Patient/p1"), w.as("alice")...), http.StatusNotFound, "not-found", "no such Group")
}

// The list is encrypted with the key of the job, and is read with it.
func TestPatientsAreEncrypted(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	keys, err := envelope.ParseKeys("a:" + strings.Repeat("A", 43) + "=")
	must(t, err)
	plain := w.objects
	w.objects, err = objects.Open(objects.Config{
		Endpoint: w.place.Endpoint, AccessKey: w.place.AccessKey, SecretKey: w.place.SecretKey, Bucket: w.place.Bucket,
		Keys: envelope.NewRing(keys, w.jobs.Key, w.clock.Now).Key,
	})
	must(t, err)
	t.Cleanup(plain.Close)
	w.deps.Objects, w.deps.NewKey, w.deps.Registry = w.objects, keys.New, prometheus.NewRegistry()
	w.handler, err = httpapi.New(w.config(), w.deps)
	must(t, err)
	request := httptest.NewRequestWithContext(t.Context(), "POST", patientExport, strings.NewReader(asking("Patient/p1", "Patient/p2")))
	request.Header.Set("Authorization", w.as("alice")[1])
	request.Header.Set("Content-Type", "application/fhir+json")
	id := w.started(w.answer(request))
	if got := w.asked(id); got != "p1\np2\n" {
		t.Errorf("%q", got)
	}
	object, err := plain.Open(t.Context(), export.AskedKey(id), 0, -1)
	must(t, err)
	stored, err := io.ReadAll(object)
	must(t, errors.Join(err, object.Close()))
	if strings.Contains(string(stored), "p1") || len(stored) < 20 {
		t.Errorf("the list is stored as %q", stored)
	}
}

// A store that does not answer is an outage, too: the client may try again.
func TestKickoffWhileTheStoreHangs(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	back := make(chan struct{})
	w.objectDoor.watch(func([]byte) { <-back }, nil)
	got := w.post(patientExport, asking("Patient/p1"), w.as("alice")...)
	close(back)
	wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
	wantHeader(t, got, "Retry-After", "5", "Content-Location", "")
	if n := w.active(); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
}
