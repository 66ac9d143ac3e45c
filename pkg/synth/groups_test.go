package synth

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// members returns the references of a group's members, in their order.
func members(group resource) []string {
	var found []string
	for _, who := range group.at("member.entity.reference") {
		found = append(found, who.(string))
	}
	return found
}

func TestGroupsAreAsDocumented(t *testing.T) {
	const patients = 130
	dir, summary := generated(t, Config{Patients: patients, Seed: 6})
	p := parsed(t, dir, groupKind, patientKind)
	var everybody []string
	for _, r := range p.all {
		if r["resourceType"] == "Patient" {
			everybody = append(everybody, r.name())
		}
	}
	want := []string{"all", "hundred", "ten", "empty", "mixed", "retired"}
	for i := range payerCount {
		want = append(want, fmt.Sprintf("payer-%03d", i+1))
	}
	if !slices.Equal(summary.Groups, want) {
		t.Fatalf("groups %v, want %v", summary.Groups, want)
	}
	for id, want := range map[string][]string{
		"all": everybody, "hundred": everybody[:100], "ten": everybody[:10], "empty": nil, "retired": everybody[:10],
	} {
		if got := members(p.byName["Group/"+id]); !slices.Equal(got, want) {
			t.Errorf("group %s has %d members, want the first %d patients", id, len(got), len(want))
		}
	}
	for _, id := range summary.Groups {
		group := p.byName["Group/"+id]
		if got := group["active"]; got != (id != "retired") {
			t.Errorf("group %s: active is %v", id, got)
		}
		if got, want := group["quantity"], float64(len(members(group))); got != want {
			t.Errorf("group %s: quantity is %v, want %v", id, got, want)
		}
	}
	if _, there := p.byName["Group/empty"]["member"]; there {
		t.Error("group empty has a member element")
	}
}

func TestPayerGroupsShareThePopulation(t *testing.T) {
	for _, groups := range []int{1, 3, payerCount, 20} {
		const patients = 150
		dir, summary := generated(t, Config{Patients: patients, Seed: 6, Groups: groups})
		p := parsed(t, dir, groupKind, coverageKind)
		payers := map[string]string{} // of the patients
		for _, r := range p.all {
			if r["resourceType"] == "Coverage" {
				payers[r.text("beneficiary.reference")] = r.text("payor.reference")
			}
		}
		groupOf := map[string]string{}
		for _, id := range summary.Groups[6:] {
			found := members(p.byName["Group/"+id])
			if len(found) < patients/groups/2 {
				t.Errorf("%d groups: %s has %d of %d patients", groups, id, len(found), patients)
			}
			covered := map[string]bool{}
			for _, patient := range found {
				if other, twice := groupOf[patient]; twice {
					t.Errorf("%d groups: a patient is in %s and in %s", groups, other, id)
				}
				groupOf[patient] = id
				covered[payers[patient]] = true
			}
			if groups == payerCount && len(covered) != 1 {
				t.Errorf("patients of %s are covered by %d payers, want 1", id, len(covered))
			}
		}
		if len(groupOf) != patients {
			t.Errorf("%d groups hold %d of %d patients", groups, len(groupOf), patients)
		}
	}
}

func TestTheMixedGroupHasMembersOfAllSorts(t *testing.T) {
	dir, _ := generated(t, Config{Patients: 5, Seed: 6})
	p := parsed(t, dir, groupKind)
	pool := newPool(6)
	patient := func(index int) string {
		var l line
		return "Patient/" + string(l.uuid(pool.patient(index)).buf)
	}
	type member struct {
		who      string
		inactive bool
		from, to string
	}
	var got []member
	for _, one := range p.byName["Group/mixed"].at("member") {
		m := resource(one.(map[string]any))
		got = append(got, member{m.text("entity.reference"), m.text("inactive") == "true",
			m.text("period.start"), m.text("period.end")})
	}
	var doctor line
	want := []member{
		{"Practitioner/" + string(doctor.uuid(pool.practitioners[0].id).buf), false, "", ""},
		{patient(0), false, "", ""},
		{patient(0), false, "", ""},
		{patient(1), true, "", ""},
		{patient(2), false, "2013-10-01T00:00:00Z", "2014-10-01T06:00:00Z"},
		{patient(3), false, "2015-01-01T00:00:00Z", ""},
		{patient(4), false, "2999-01-01T00:00:00Z", ""},
	}
	if !slices.Equal(got, want) {
		t.Errorf("members\n%v, want\n%v", got, want)
	}

	tiny, _ := generated(t, Config{Patients: 1, Seed: 6})
	if found := members(parsed(t, tiny, groupKind).byName["Group/mixed"]); len(found) != 3 {
		t.Errorf("with one patient: members %v, want the patient twice and a practitioner", found)
	}
}

func TestGroupFilesRollOverBetweenGroups(t *testing.T) {
	const limit = 20_000 // the group of all patients is larger, those of payers are smaller
	dir := t.TempDir()
	out, err := newOutput(dir, limit)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := Config{Patients: 600, Seed: 6, Dir: dir}.checked()
	if err != nil {
		t.Fatal(err)
	}
	written, err := writeGroups(t.Context(), cfg, newPool(cfg.Seed), out)
	if err != nil {
		t.Fatal(err)
	}
	if err := out.publish(); err != nil {
		t.Fatal(err)
	}
	names, groups := entries(t, dir), 0
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		inFile := bytes.Count(content, []byte("\n"))
		groups += inFile
		if len(content) > limit && inFile > 1 {
			t.Errorf("%s has %d groups in %d bytes, limit %d", name, inFile, len(content), limit)
		}
	}
	if len(names) < 3 || len(names) == groups {
		t.Errorf("%d groups in %d files, want several in some", groups, len(names))
	}
	if groups != len(written) {
		t.Errorf("%d groups in the files, want %d", groups, len(written))
	}
}
