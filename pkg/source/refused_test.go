package source_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/source"
)

func TestRefusedTellsWhatIsCertain(t *testing.T) {
	const head = `{"resourceType":"Observation","id":"o","meta":{"versionId":"2","lastUpdated":"2024-01-01T00:00:00Z"}`
	for line, want := range map[string]string{
		head + `,"subject":{},"subject":{}}`: "Observation/o 2", head + `,"subject":{"refer`: "Observation/o 2",
		head + "}" + head + "}": "Observation/o 2", head + `,"x":"` + strings.Repeat("x", 2<<20): "Observation/o 2",
		head + `,"contained":[{"resourceType":"Binary","id":"b"}],"x":"` + "\xff" + `"}`: "Observation/o 2",
		`{"Subject":{},"id":"o","resourceType":"Observation"}`:                           "Observation/o 0",
		`{"resourceType":"Observation","id":"o","Subject":{},"me`:                        "", // the version may follow
		head + `,"id":"p"}`: "", head + `,"ID":"p"}`: "", `{"resourceType":"Observation","x":{}}`: "",
		`{"resourceType":"Task","id":"o"}`: "Task/o 0", `{"resourceType":"OperationOutcome","id":"o"}`: "",
		`{"resourceType":"Observation","id":"not/an/id"}`: "", `[]`: "", `x`: "", "": "",
		`{"contained":[{"resourceType":"Observation","id":"o","meta":{}`: "",
	} {
		got := ""
		if facts, told := source.Refused([]byte(line)); told {
			got = fmt.Sprintf("%s/%s %d", facts.Type, facts.ID, facts.Version)
		}
		if got != want {
			t.Errorf("%.200s: got %q, want %q", line, got, want)
		}
	}
}
