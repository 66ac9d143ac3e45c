package httpapi_test

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/services/api/httpapi"
)

// P-07, P-08, P-36, P-40: `_since` and `_until` of GET and POST at every level, as the instants that they are.
func TestWindowOfAKickOff(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	alice := w.as("alice")
	since, until := time.Date(2025, 12, 31, 19, 0, 0, 5e8, time.UTC), time.Date(2026, 2, 1, 0, 0, 0, 0, time.UTC)
	const sinceText, untilText = "2026-01-01T00:00:00.5+05:00", "2026-02-01T00:00:00Z"
	for _, target := range []string{"/fhir/$export", patientExport, groupExport} {
		answers := map[string]reply{
			"GET":  w.ask("GET", target+"?_since="+url.QueryEscape(sinceText)+"&_until="+untilText, alice...),
			"plus": w.ask("GET", target+"?_since="+sinceText+"&_until="+untilText, alice...),
		}
		for _, kind := range []string{"valueInstant", "valueString", "valueDateTime"} {
			answers[kind] = w.post(target, withParameters(fmt.Sprintf(`{"name":"_since","%s":"%s"}`, kind, sinceText),
				fmt.Sprintf(`{"name":"_until","%s":"%s"}`, kind, untilText)), alice...)
		}
		for name, got := range answers {
			request := w.job(w.started(got)).Request
			if !request.Since.Equal(since) || !request.Until.Equal(until) || !request.After.IsZero() || !request.Incremental() {
				t.Errorf("%s %s: %+v", name, target, request)
			}
		}
	}
	// An instant in the future limits nothing yet as `_until`, and is no start.
	w.started(w.ask("GET", groupExport+"?_until=2057-01-01T00:00:00Z", alice...))
	now := w.clock.Now().Format(time.RFC3339Nano)
	w.started(w.ask("GET", groupExport+"?_since="+now, alice...))
	w.clock.Advance(-time.Millisecond)
	wantOutcome(t, w.ask("GET", groupExport+"?_since="+now, alice...), http.StatusBadRequest, "invalid", "_since", "future")
}

// spec 9: `_since` with a transactionTime that Sluice gave the same user for the same level and group continues from the
// snapshot of that export, in any spelling. For every other user, level, group and instant it is an instant.
func TestContinuation(t *testing.T) {
	t.Parallel()
	w := newFixture(t)
	ctx := t.Context()
	first := w.job(w.kickoff(w.as("alice"), "?_type=Patient"))
	first.Snapshot = w.clock.Now().Add(-time.Hour)
	at := w.clock.Now().Add(time.Minute).Truncate(time.Second) // the worker's clock is ahead
	must(t, w.jobs.NoteTransactionTime(ctx, first, at))
	text := at.Format(time.RFC3339)
	for _, query := range []string{
		"?_since=" + text, "?_since=" + at.In(time.FixedZone("", 3600)).Format(time.RFC3339), "?_type=Condition&_since=" + text,
		"?_since=" + at.Format("2006-01-02T15:04:05.000Z"), "?_until=2057-01-01T00:00:00Z&_since=" + text,
	} {
		request := w.job(w.kickoff(w.as("alice"), query)).Request
		if !request.After.Equal(first.Snapshot) || !request.Since.IsZero() || !request.Incremental() {
			t.Errorf("%s: %+v", query, request)
		}
	}
	w.clock.Advance(2 * time.Minute) // the others get no refusal of the future
	for name, got := range map[string]reply{
		"another user":       w.ask("GET", groupExport+"?_since="+text, w.as("bob")...),
		"another issuer":     w.ask("GET", groupExport+"?_since="+text, w.of(issuerTwo, "alice")...),
		"another group":      w.ask("GET", "/fhir/Group/g2/$export?_since="+text, w.as("alice")...),
		"the patient level":  w.ask("GET", patientExport+"?_since="+text, w.as("alice")...),
		"the system level":   w.ask("GET", "/fhir/$export?_since="+text, w.as("alice")...),
		"POST":               w.post(patientExport, withParameters(`{"name":"_since","valueInstant":"`+text+`"}`), w.as("alice")...),
		"a part of a second": w.ask("GET", groupExport+"?_since="+at.Add(time.Millisecond).Format(time.RFC3339Nano), w.as("alice")...),
		"a second later":     w.ask("GET", groupExport+"?_since="+at.Add(time.Second).Format(time.RFC3339Nano), w.as("alice")...),
	} {
		request := w.job(w.started(got)).Request
		if !request.After.IsZero() || request.Since.Before(at) || request.Since.After(at.Add(time.Second)) {
			t.Errorf("%s: %+v", name, request)
		}
	}
	w.jobDoor.Shut()
	wantOutcome(t, w.ask("GET", groupExport+"?_since="+text, w.as("alice")...), http.StatusServiceUnavailable, "transient")
}

// With KICKOFF_REPEAT=same only kick-offs with equal values join, in whatever form a body gives them.
func TestIdenticalKickOffsWithOptions(t *testing.T) {
	t.Parallel()
	w := newFixture(t, func(cfg *httpapi.Config) { cfg.Repeat = "same" })
	start := func(entries ...string) export.JobID {
		return w.started(w.post(patientExport, withParameters(entries...), w.as("alice")...))
	}
	var seen []export.JobID
	for _, entries := range [][2]string{
		{`{"name":"_format","valueCode":"json"}`, `{"name":"_format","valueString":"json"}`},
		{`{"name":"_since","valueInstant":"2026-01-01T00:00:00Z"}`, `{"name":"_since","valueString":"2026-01-01T01:00:00+01:00"}`},
		{`{"name":"_since","valueInstant":"2026-01-01T00:00:01Z"}`, `{"name":"_since","valueDateTime":"2026-01-01T00:00:01.0Z"}`},
		{`{"name":"_until","valueInstant":"2026-01-01T00:00:00Z"}`, `{"name":"_until","valueInstant":"2026-01-01T00:00:00.000Z"}`},
		{`{"name":"includeAssociatedData","valueCode":"LatestProvenanceResources"}`, `{"name":"includeAssociatedData","valueCoding":{"code":"LatestProvenanceResources"}}`},
		{`{"name":"includeAssociatedData","valueCode":"RelevantProvenanceResources"}`, `{"name":"includeAssociatedData","valueString":"LatestProvenanceResources,RelevantProvenanceResources"}`},
		{`{"name":"organizeOutputBy","valueCode":"Patient"}`, `{"name":"organizeOutputBy","valueString":"Patient"}`},
		{`{"name":"allowPartialManifests","valueBoolean":true}`, `{"name":"allowPartialManifests","valueString":"true"}`},
	} {
		id := start(entries[0])
		if slices.Contains(seen, id) {
			t.Errorf("%s joined another export", entries[0])
		}
		if again := start(entries[1]); again != id {
			t.Errorf("%s did not join", entries[1])
		}
		seen = append(seen, id)
	}
	if start(`{"name":"allowPartialManifests","valueBoolean":false}`) != seen[0] {
		t.Error("the default did not join")
	}
}
