package export_test

import (
	"slices"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestEveryReasonHasASeverityThatClientsUnderstand(t *testing.T) {
	for _, reason := range append(export.Reasons(), "of_a_later_version") {
		issue := export.LeftOut{Type: "Observation", Reason: reason, Count: 3}.Outcome().Issue[0]
		if issue.Severity != "warning" && issue.Severity != "information" || issue.Code == "" || reason.Text() == "" {
			t.Errorf("%s: %+v", reason, issue)
		}
	}
}

func TestOwnersLearnCountsOnlyOfDataThatTheyMaySee(t *testing.T) {
	for count, want := range map[int64]string{
		3: "Observation: 3 left out: the reference names a patient of another server.",
		0: "Observation: some left out: the reference names a patient of another server.",
	} {
		l := export.LeftOut{Type: "Observation", Reason: export.ForeignPatient, Count: count}
		if got := l.Outcome().Issue[0].Diagnostics; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestLinesOfNoKnownTypeAreNoWarning(t *testing.T) {
	for l, want := range map[export.LeftOut]bool{
		{Type: "Practitioner", Reason: export.UnresolvedReference}: false, {Reason: export.Malformed}: false, {Type: "Patient", Reason: export.Malformed}: true, {Reason: export.UnreadableFile}: true,
		{Reason: export.MemberByIdentifier}: true, {Reason: export.MemberType}: false, {Type: "Appointment", Reason: export.OtherPatient}: false,
	} {
		if got := l.Warning(); got != want {
			t.Errorf("%+v: %t", l, got)
		}
	}
}

func TestTally(t *testing.T) {
	var tally export.Tally
	tally.Add("B", export.Malformed, 2)
	tally.AddAll([]export.LeftOut{{"B", export.Malformed, 1}, {"A", export.NoPatient, 4}})
	want := []export.LeftOut{{"A", export.NoPatient, 4}, {"B", export.Malformed, 3}}
	if got := tally.List(); !slices.Equal(got, want) || tally.Total() != 7 {
		t.Errorf("got %v, %d in all, want %v", got, tally.Total(), want)
	}
}
