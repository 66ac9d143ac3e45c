package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// onRecord is what a test looks at in a line of the audit log.
type onRecord struct {
	action, outcome, subject string
	job                      export.JobID
	details                  map[string]string
}

// record reads the audit log, proves it, and returns what the API has recorded since the log was opened.
func (w *fixture) record() []onRecord {
	w.t.Helper()
	text, err := os.ReadFile(w.auditAt)
	w.must(err)
	proven, err := audit.Verify(audit.Proof{}, audit.Input{Name: "log", Reader: bytes.NewReader(text)})
	if err != nil || proven.Problem != nil {
		w.t.Fatalf("the log is not proven: %v %+v", err, proven)
	}
	for _, secret := range []string{"Bearer ey", "eyJ", "made-up-", "?_type="} {
		if bytes.Contains(text, []byte(secret)) {
			w.t.Errorf("the log holds %q", secret)
		}
	}
	var events []onRecord
	for line := range strings.Lines(string(text)) {
		var event struct {
			Subtype []struct{ System, Code string }
			Outcome string
			Agent   []struct {
				Who struct {
					Identifier struct{ System, Value string }
				}
			}
			Entity []struct {
				What struct {
					Identifier struct{ System, Value string }
				}
				Detail []struct{ Type, ValueString string }
			}
		}
		w.must(json.Unmarshal([]byte(line), &event))
		found := onRecord{outcome: event.Outcome, details: map[string]string{}}
		for _, subtype := range event.Subtype {
			if subtype.System == "urn:sluice:audit:action" {
				found.action = subtype.Code
			}
		}
		if found.action == "start" {
			continue
		}
		if who := event.Agent[0].Who.Identifier; who.Value != "" {
			found.subject = who.System + " " + who.Value
		}
		for _, entity := range event.Entity {
			if entity.What.Identifier.System == "urn:sluice:job" {
				found.job = export.JobID(entity.What.Identifier.Value)
			}
			for _, detail := range entity.Detail {
				found.details[detail.Type] = detail.ValueString
			}
		}
		events = append(events, found)
	}
	return events
}

const alicesName = issuerOne + " alice"

// Every step of an export is on record with who took it, and so is every one that was refused.
func TestEveryStepIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice, bob := w.as("alice"), w.as("bob")
	job := w.kickoff(alice, "?_type=Patient")
	status := statusPath(job)
	w.ask("GET", status, alice...)
	files := w.run(job, patients(3))
	w.ask("GET", status, alice...)
	file := status + "/files/" + files[0].Name
	whole := w.ask("GET", file, alice...)
	w.ask("HEAD", file, alice...)
	w.ask("GET", file, append(slices.Clone(alice), "Range", "bytes=5-14")...)
	w.ask("GET", file, append(slices.Clone(alice), "If-None-Match", whole.header.Get("ETag"))...)
	w.ask("GET", file, bob...)
	w.ask("DELETE", status, bob...)
	w.ask("GET", status)
	w.ask("GET", status, w.as("alice", "system/Observation.rs")...)
	w.ask("GET", groupExport+"?_type=Nothing", alice...)
	w.ask("GET", "/fhir/Group/none/$export", alice...)
	w.ask("DELETE", status, alice...)
	w.ask("DELETE", status, alice...)
	for _, quiet := range []string{"/fhir/metadata", "/readyz", "/livez", "/nothing"} { // told to everybody: no events
		w.ask("GET", quiet)
	}

	const success, refused = "0", "4"
	want := []struct {
		action, outcome, subject string
		job                      export.JobID
		status                   string
	}{
		{"kick-off", success, alicesName, job, "202"},
		{"status", success, alicesName, job, "202"},
		{"status", success, alicesName, job, "200"},
		{"file", success, alicesName, job, "200"},
		{"file", success, alicesName, job, "200"},
		{"file", success, alicesName, job, "206"},
		{"file", success, alicesName, job, "304"},
		{"file", refused, issuerOne + " bob", job, "404"},
		{"cancel", refused, issuerOne + " bob", job, "404"},
		{"denied", refused, "", "", "401"},
		{"status", refused, alicesName, job, "403"},
		{"kick-off", refused, alicesName, "", "400"},
		{"kick-off", refused, alicesName, "", "404"},
		{"cancel", success, alicesName, job, "202"},
		{"cancel", refused, alicesName, job, "404"},
	}
	got := w.record()
	if len(got) != len(want) {
		t.Fatalf("%d events, want %d: %+v", len(got), len(want), got)
	}
	for i, event := range got {
		if event.action != want[i].action || event.outcome != want[i].outcome || event.subject != want[i].subject ||
			event.job != want[i].job || event.details["status"] != want[i].status || event.details["request"] == "" {
			t.Errorf("event %d: %+v, want %+v", i, event, want[i])
		}
	}
	if event := got[5]; event.details["file"] != files[0].Name || event.details["range-start"] != "5" || event.details["range-length"] != "10" || event.details["bytes"] != "10" {
		t.Errorf("a range: %+v", event)
	}
}

// While nothing can be recorded nothing is done and nothing is disclosed, and everybody gets the same answer.
func TestWithoutARecordNothingHappens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	finished, running := w.kickoff(alice, ""), w.kickoff(alice, "")
	files := w.run(finished, patients(3))
	before := w.active()
	// Ends the log as a full disk does: for every event to come.
	must(t, w.deps.Audit.Close())
	for _, request := range []struct {
		method, target string
		headers        []string
	}{
		{"GET", groupExport, alice},
		{"GET", statusPath(running), alice},
		{"GET", statusPath(finished), alice},
		{"GET", filePath(finished, files[0]), alice},
		{"DELETE", statusPath(running), alice},
		{"DELETE", statusPath(running), w.as("bob")},
		{"GET", statusPath(running), nil},
	} {
		got := w.ask(request.method, request.target, request.headers...)
		wantOutcome(t, got, http.StatusServiceUnavailable, "transient")
		if got.header.Get("Retry-After") == "" || got.header.Get("Content-Location") != "" || strings.Contains(got.body, "Patient") {
			t.Errorf("%s: %v %s", request.method, got.header, got.body)
		}
	}
	if job := w.job(running); job.State != export.Scheduled {
		t.Errorf("the job that could not be cancelled on record is %q", job.State)
	}
	if after := w.active(); after != before {
		t.Errorf("%d jobs at work, want %d: a kick-off that is not on record left one", after, before)
	}
	if !strings.Contains(w.log.String(), export.ErrUnavailable.Error()) {
		t.Errorf("the log does not say what is wrong: %s", w.log.String())
	}
}

// A transfer that breaks off is on record with what went out.
func TestACutTransferIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	job := w.kickoff(alice, "")
	files := w.run(job, patients(200_000)) // more than what lies in buffers on the way
	w.objectDoor.ShutAfter(200 << 10)
	response, err := w.open("GET", filePath(job, files[0]), alice...)
	if err == nil {
		_, err = new(bytes.Buffer).ReadFrom(response.Body)
		response.Body.Close()
	}
	if err == nil {
		t.Fatal("the transfer did not break off")
	}
	w.server.Close() // waits for the handler
	events := w.record()
	last := events[len(events)-1]
	if last.action != "file" || last.outcome != "8" || last.job != job || last.details["file"] != files[0].Name || last.details["bytes"] == "" {
		t.Errorf("%+v, want that the transfer broke off", last)
	}
	if promised := events[len(events)-2]; promised.outcome != "0" || promised.details["bytes"] == last.details["bytes"] {
		t.Errorf("%+v, want what was promised", promised)
	}
}

// What is on record as done is done, also when the client hangs up in the middle of it; and what it had no answer to
// before that is on record as failed.
func TestAHangUpInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	// send hangs up when the first command with the word is on its way to the job store; "" is before anything.
	send := func(method, target, word string) int {
		ctx, hangUp := context.WithCancel(t.Context())
		defer hangUp()
		if word == "" {
			hangUp()
		} else {
			w.jobDoor.Before(word, hangUp)
		}
		request := httptest.NewRequestWithContext(ctx, method, target, nil)
		request.Header.Set(alice[0], alice[1])
		recorder := httptest.NewRecorder()
		func() {
			defer func() { _ = recover() }() // how a handler cuts a connection
			w.handler.ServeHTTP(recorder, request)
		}()
		return recorder.Code
	}
	if code := send("GET", groupExport, "sluice:jobs:active"); code != http.StatusAccepted {
		t.Fatalf("kick-off: %d", code)
	}
	entries, err := w.jobs.Active(t.Context(), 0, 10)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d jobs, %v, want the one that is on record", len(entries), err)
	}
	id := entries[0].ID
	if task := w.nextTask(); task.Job != id {
		t.Errorf("queued %+v, want the plan of %s", task, id)
	}
	send("GET", groupExport, "")
	send("DELETE", statusPath(id), "")
	if job := w.job(id); job.State != export.Scheduled {
		t.Errorf("after a cancel that was not heard to its end: %q", job.State)
	}
	if code := send("DELETE", statusPath(id), "sluice:jobs:active"); code != http.StatusAccepted {
		t.Errorf("cancel: %d", code)
	}
	if job := w.job(id); job.State != export.Cancelled {
		t.Errorf("after a cancel that is on record: %q", job.State)
	}
	var got []string
	for _, event := range w.record() {
		got = append(got, event.action+" "+event.outcome)
	}
	if want := []string{"kick-off 0", "kick-off 8", "cancel 8", "cancel 0"}; !slices.Equal(got, want) {
		t.Errorf("on record %q, want %q", got, want)
	}
}
