package audit

import (
	"os"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// Recent reads the end of the file, and only events of the issuer's agents.
func TestRecent(t *testing.T) {
	path := logFile(t)
	l := mustOpen(t, config(path), openHandle)
	defer mustClose(t, l)
	jane, id := export.Owner{Issuer: "urn:desk", Subject: "jane"}, export.NewJobID()
	first := Event{Action: Admin, Outcome: Success, Agent: jane, Target: "pause", Reason: "move"}
	mustRecord(t, l, first)
	filler := Event{Action: Status, Outcome: Success, Agent: export.Owner{Issuer: "urn:other", Subject: "jane"}, RequestID: strings.Repeat("x", 4000)}
	fill := func(bytes int) {
		for end := len(content(t, path)) + bytes; len(content(t, path)) < end; {
			mustRecord(t, l, filler)
		}
	}
	fill(recentBytes / 4)
	second := Event{Action: Cancel, Outcome: Refused, Agent: jane, Job: id}
	mustRecord(t, l, second)
	check := func(most int, want ...Event) {
		t.Helper()
		got, err := l.Recent("urn:desk", most)
		must(t, err)
		if len(got) != len(want) {
			t.Fatalf("%d events, want %d: %+v", len(got), len(want), got)
		}
		for i, entry := range got {
			if entry.Action != want[i].Action || entry.Outcome != want[i].Outcome || entry.Agent != jane ||
				entry.Job != want[i].Job || entry.Target != want[i].Target || entry.Reason != want[i].Reason || entry.At.IsZero() {
				t.Errorf("event %d: %+v, want %+v", i, entry, want[i])
			}
		}
	}
	check(10, second, first)
	check(1, second)
	fill(recentBytes * 7 / 8)
	check(10, second) // the first is further from the end than is read
	must(t, os.Rename(path, path+".1"))
	check(10)
}
