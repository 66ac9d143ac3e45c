package pipeline_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// numbers returns the numbers of a job as "Type expected=written+filtered+withheld+leftOut !failed", and fails the test
// unless they add up and agree with the files.
func (o outcome) numbers(t *testing.T) string {
	t.Helper()
	var all []string
	for _, n := range o.job.Resources {
		text := func(n *int64) string {
			if n == nil {
				return "?"
			}
			return fmt.Sprint(*n)
		}
		if int(n.Written) != len(o.lines[n.Type]) {
			t.Errorf("%s: %d written, %d lines", n.Type, n.Written, len(o.lines[n.Type]))
		}
		if n.Expected != nil && *n.Expected != n.Written+n.Filtered+n.Withheld+*n.LeftOut {
			t.Errorf("%s does not add up: %+v", n.Type, n)
		}
		all = append(all, fmt.Sprintf("%s %s=%d+%d+%d+%s !%d",
			n.Type, text(n.Expected), n.Written, n.Filtered, n.Withheld, text(n.LeftOut), n.Failed))
	}
	for typ := range o.lines {
		if !strings.Contains(strings.Join(all, "\n"), typ+" ") {
			t.Errorf("%s has files and no numbers", typ)
		}
	}
	return strings.Join(all, "\n")
}

// M-14: a resource about several members counts once, one about a stranger as withheld, and what the source cannot
// attribute as left out; of a member without a Patient resource the Patient is left out.
func TestNumbers(t *testing.T) {
	src := holding(t, patient(1), patient(2), patient(9), observation(1, 1), observation(2, 2),
		appointment("both", "pat-1", "pat-2"), appointment("withheld", "pat-1", "pat-9"),
		`{"resourceType":"Condition","id":"con-1","subject":{"reference":"Patient/pat-1"},`+
			`"asserter":{"reference":"Practitioner/gp"}}`,
		`{"resourceType":"Practitioner","id":"gp"}`, provenance("gp", "Practitioner/gp"), provenance("pat", "Patient/pat-1"))
	src.leftOut = []export.LeftOut{{Type: "Observation", Reason: export.UnresolvedPatient, Count: 3}}
	fx := newFixture(t, src, "pat-1", "pat-2", "pat-gone")
	types := []string{"Appointment", "Condition", "Observation", "Patient", "Practitioner", "Provenance"}
	want := `Appointment 2=1+0+1+0 !0
Condition 1=1+0+0+0 !0
Observation 5=2+0+0+3 !0
Patient 3=2+0+0+1 !0
Practitioner 1=1+0+0+0 !0
Provenance 2=2+0+0+0 !0`
	if got := fx.export(types...).numbers(t); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	// An owner who may not see every patient does not get the numbers of the whole source.
	fx.people.patients.All, fx.people.patients.Names = false, []string{"pat-1", "pat-2", "pat-gone"}
	want = strings.Replace(want, "Observation 5=2+0+0+3", "Observation ?=2+0+0+?", 1)
	if got := fx.export(types...).numbers(t); got != want {
		t.Errorf("of a part of the patients: got\n%s\nwant\n%s", got, want)
	}
}

// A unit that failed makes what was expected unknown. The numbers name no patient.
func TestNumbersOfAFailedUnit(t *testing.T) {
	src := holding(t, patient(1), observation(1, 1))
	src.resources = append(src.resources, resource("Observation", "obs-x", observation("x", 8), "pat-1"))
	fx := newFixture(t, src, "pat-1")
	o := fx.export("Observation", "Patient")
	if got, want := o.numbers(t), "Observation ?=0+0+0+0 !1\nPatient 1=1+0+0+0 !0"; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if text, err := json.Marshal(o.job.Resources); err != nil || strings.Contains(string(text), "pat-") {
		t.Errorf("%s, %v", text, err)
	}
}
