package export_test

import (
	"encoding/json"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestBalance(t *testing.T) {
	request := export.Request{Types: []string{"Location", "Observation", "Patient", "Practitioner"}}
	unit := func(typ string) export.Unit { return export.Unit{ID: "u", Kind: export.KindExport, Type: typ} }
	written := func(n int64) []export.File {
		return []export.File{{Count: n}, {Count: 9, Error: true}}
	}
	var b export.Balance
	b.Add(request, export.FirstUnit(), export.Result{Files: []export.File{{Count: 1, Error: true}}, LeftOut: []export.LeftOut{
		{Type: "Observation", Reason: export.UnresolvedPatient, Count: 2},
		{Type: "Condition", Reason: export.Malformed}, // the number is not for the owner
		{Type: "Observation", Reason: export.NoPatient, Count: 100}, {Type: "Observation", Reason: export.UnreadableFile, Count: 100},
		{Type: "Location", Reason: export.UnresolvedReference, Count: 100}, {Reason: export.Malformed, Count: 100},
	}})
	b.Add(request, unit("Observation"), export.Result{Found: 6, Files: written(3), Withheld: 2, Filtered: 1})
	b.Add(request, unit("Observation"), export.Result{Files: written(4), Withheld: 1}) // of the previous release
	b.Add(request, unit("Condition"), export.Result{Found: 1, Files: written(1)})
	b.Add(request, unit("Encounter"), export.Result{Found: 2, Files: written(2)})
	b.Add(request, unit("Encounter"), export.Result{Failure: "made up"})
	b.Add(request, unit("Patient"), export.Result{Found: 7, Files: written(7)})
	b.Add(request, export.Unit{ID: export.ReferencesUnit, Kind: export.KindResolveReferences}, export.Result{Failure: "made up"})
	got, err := json.Marshal(b.List([]export.LeftOut{{Reason: export.MemberMissing, Count: 3}, {Reason: export.MemberGroup, Count: 8}}))
	if err != nil {
		t.Fatal(err)
	}
	want := `[{"type":"Condition","expected":null,"written":1,"filtered":0,"withheld":0,"leftOut":null,"failed":0},` +
		`{"type":"Encounter","expected":null,"written":2,"filtered":0,"withheld":0,"leftOut":0,"failed":1},` +
		`{"type":"Location","expected":null,"written":0,"filtered":0,"withheld":0,"leftOut":0,"failed":1},` +
		`{"type":"Observation","expected":13,"written":7,"filtered":1,"withheld":3,"leftOut":2,"failed":0},` +
		`{"type":"Patient","expected":10,"written":7,"filtered":0,"withheld":0,"leftOut":3,"failed":0},` +
		`{"type":"Practitioner","expected":null,"written":0,"filtered":0,"withheld":0,"leftOut":0,"failed":1}]`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestResultCheck(t *testing.T) {
	files := []export.File{{Count: 2}, {Count: 3}}
	if err := (export.Result{Found: 8, Files: files, Withheld: 1, Filtered: 2}).Check(); err != nil {
		t.Error(err)
	}
	for _, found := range []int64{0, 7, 9} {
		if (export.Result{Found: found, Files: files, Withheld: 1, Filtered: 2}).Check() == nil {
			t.Errorf("%d found, and 8 accounted for", found)
		}
	}
}
