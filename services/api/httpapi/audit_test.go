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

// record reads and verifies the audit log and returns the events of the API since the log was opened: the action, outcome,
// subject and job of each event, and its details by type.
func (w *fixture) record() (events []map[string]string) {
	w.t.Helper()
	text := w.text()
	proven, err := audit.Verify(audit.Proof{}, audit.Input{Name: "log", Reader: bytes.NewReader(text)})
	if err != nil || proven.Problem != nil {
		w.t.Fatalf("the log is not proven: %v %+v", err, proven)
	}
	for _, secret := range []string{"Bearer ey", "eyJ", "made-up-", "?_type="} {
		if bytes.Contains(text, []byte(secret)) {
			w.t.Errorf("the log holds %q", secret)
		}
	}
	type identified struct {
		Identifier struct{ System, Value string }
	}
	for line := range strings.Lines(string(text)) {
		var event struct {
			Subtype []struct{ System, Code string }
			Outcome string
			Agent   []struct{ Who identified }
			Entity  []struct {
				What   identified
				Detail []struct{ Type, ValueString string }
			}
		}
		w.must(json.Unmarshal([]byte(line), &event))
		found := map[string]string{"outcome": event.Outcome}
		for _, subtype := range event.Subtype {
			found[subtype.System] = subtype.Code
		}
		found["action"] = found["urn:sluice:audit:action"]
		if who := event.Agent[0].Who.Identifier; who.Value != "" {
			found["subject"] = who.System + " " + who.Value
		}
		for _, entity := range event.Entity {
			found[entity.What.Identifier.System] = entity.What.Identifier.Value
			for _, detail := range entity.Detail {
				found[detail.Type] = detail.ValueString
			}
		}
		found["job"] = found["urn:sluice:job"]
		if found["action"] != "start" {
			events = append(events, found)
		}
	}
	return events
}

// text returns the audit log.
func (w *fixture) text() []byte {
	w.t.Helper()
	text, err := os.ReadFile(w.auditAt)
	w.must(err)
	return text
}

// Every step of an export and every refused step is in the audit log, with its agent.
func TestEveryStepIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	const aliceName, bobName, done, refused = issuerOne + " alice", issuerOne + " bob", "0", "4"
	alice, bob := w.as("alice"), w.as("bob")
	with := func(headers ...string) []string { return append(slices.Clone(alice), headers...) }
	job := w.kickoff(alice, "?_type=Patient")
	w.ask("GET", statusPath(job), alice...)
	files := w.run(job, patients(3))
	id, status, file := string(job), statusPath(job), filePath(job, files[0])
	etag := `"` + files[0].SHA256 + `"`
	steps := []struct {
		method, target                    string
		headers                           []string
		action, outcome, subject, job, is string
	}{
		{"", "", nil, "kick-off", done, aliceName, id, "202"},
		{"", "", nil, "status", done, aliceName, id, "202"},
		{"GET", status, alice, "status", done, aliceName, id, "200"},
		{"GET", file, alice, "file", done, aliceName, id, "200"},
		{"HEAD", file, alice, "file", done, aliceName, id, "200"},
		{"GET", file, with("Range", "bytes=5-14"), "file", done, aliceName, id, "206"},
		{"GET", file, with("If-None-Match", etag), "file", done, aliceName, id, "304"},
		{"GET", file, bob, "file", refused, bobName, id, "404"},
		{"DELETE", status, bob, "cancel", refused, bobName, id, "404"},
		{"GET", status, nil, "denied", refused, "", "", "401"},
		{"GET", status, w.as("alice", "system/Observation.rs"), "status", refused, aliceName, id, "403"},
		{"GET", groupExport + "?_type=Nothing", alice, "kick-off", refused, aliceName, "", "400"},
		{"GET", "/fhir/Group/none/$export", alice, "kick-off", refused, aliceName, "", "404"},
		{"DELETE", status, alice, "cancel", done, aliceName, id, "202"},
		{"DELETE", status, alice, "cancel", refused, aliceName, id, "404"},
	}
	for _, step := range steps {
		if step.method != "" {
			w.ask(step.method, step.target, step.headers...)
		}
	}
	for _, quiet := range []string{"/fhir/metadata", "/readyz", "/livez", "/nothing"} { // public: no events
		w.ask("GET", quiet)
	}
	events := w.record()
	if len(events) != len(steps) {
		t.Fatalf("%d events, want %d: %+v", len(events), len(steps), events)
	}
	for i, event := range events {
		want := steps[i]
		if event["action"] != want.action || event["outcome"] != want.outcome || event["subject"] != want.subject ||
			event["job"] != want.job || event["status"] != want.is || event["request"] == "" {
			t.Errorf("event %d: %+v, want %+v", i, event, want)
		}
	}
	if event := events[5]; event["file"] != files[0].Name || event["range-start"] != "5" || event["range-length"] != "10" ||
		event["bytes"] != "10" {
		t.Errorf("a range: %+v", event)
	}
}

// While events cannot be recorded, nothing is done or disclosed, and every caller gets the same response.
func TestWithoutARecordNothingHappens(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	finished, running := w.kickoff(alice, ""), w.kickoff(alice, "")
	files := w.run(finished, patients(3))
	before := w.active()
	// From here on every event fails, as with a full disk.
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
		wantHeader(t, got, "Content-Location", "")
		if wantRetry(t, got); strings.Contains(got.body, "Patient") {
			t.Errorf("%s: %s", request.method, got.body)
		}
	}
	if job := w.job(running); job.State != export.Scheduled {
		t.Errorf("the job whose cancel could not be recorded is %q", job.State)
	}
	if after := w.active(); after != before {
		t.Errorf("%d live jobs, want %d: a kick-off that was not recorded left one", after, before)
	}
	if !strings.Contains(w.log.String(), export.ErrUnavailable.Error()) {
		t.Errorf("the log does not have the cause: %s", w.log.String())
	}
}

// An interrupted transfer is recorded with the number of bytes that were sent.
func TestACutTransferIsOnRecord(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	job := w.kickoff(alice, "")
	files := w.run(job, patients(200_000)) // more than the buffers on the way hold
	w.objectDoor.ShutAfter(200 << 10)
	response, err := w.open("GET", filePath(job, files[0]), alice...)
	if err == nil {
		_, err = new(bytes.Buffer).ReadFrom(response.Body)
		response.Body.Close()
	}
	if err == nil {
		t.Fatal("the transfer was not interrupted")
	}
	w.server.Close() // waits for the handler
	events := w.record()
	last := events[len(events)-1]
	if last["action"] != "file" || last["outcome"] != "8" || last["job"] != string(job) || last["file"] != files[0].Name ||
		last["bytes"] == "" {
		t.Errorf("%+v, want an interrupted transfer", last)
	}
	if promised := events[len(events)-2]; promised["outcome"] != "0" || promised["bytes"] == last["bytes"] {
		t.Errorf("%+v, want the announced file", promised)
	}
}

// A recorded step is completed even if the client disconnects during it. A request whose client disconnects before its
// step is recorded as failed.
func TestAHangUpInTheMiddle(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	// send disconnects when the first command that contains the word is sent to the job store; "": before any command.
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
		t.Fatalf("%d jobs, %v, want the recorded one", len(entries), err)
	}
	id := entries[0].ID
	if task := w.nextTask(); task.Job != id {
		t.Errorf("queued %+v, want the plan of %s", task, id)
	}
	send("GET", groupExport, "")
	send("DELETE", statusPath(id), "")
	if job := w.job(id); job.State != export.Scheduled {
		t.Errorf("after a cancel that was not read completely: %q", job.State)
	}
	if code := send("DELETE", statusPath(id), "sluice:jobs:active"); code != http.StatusAccepted {
		t.Errorf("cancel: %d", code)
	}
	if job := w.job(id); job.State != export.Cancelled {
		t.Errorf("after a recorded cancel: %q", job.State)
	}
	var got []string
	for _, event := range w.record() {
		got = append(got, event["action"]+" "+event["outcome"])
	}
	if want := []string{"kick-off 0", "kick-off 8", "cancel 8", "cancel 0"}; !slices.Equal(got, want) {
		t.Errorf("recorded %q, want %q", got, want)
	}
}
