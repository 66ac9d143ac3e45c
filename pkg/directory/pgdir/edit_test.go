package pgdir_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
)

func isNoGroup(err error) bool { return errors.Is(err, directory.ErrNoGroup) }

func TestEditing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	changes := func(want int64, call func() (int64, error)) {
		t.Helper()
		if got, err := call(); err != nil || got != want {
			t.Errorf("%d members changed, want %d, error %v", got, want, err)
		}
	}
	changes(2, func() (int64, error) { return groups.Create(t.Context(), "g", these("p1", "p2", "p1")) })
	changes(0, func() (int64, error) { return groups.Create(t.Context(), "empty", these()) })
	if _, err := groups.Create(t.Context(), "g", these("p3")); !errors.Is(err, pgdir.ErrGroupExists) {
		t.Errorf("the group exists: %v", err)
	}
	changes(1, func() (int64, error) { return groups.Add(t.Context(), "g", these("p2", "p3")) })
	expect(t, pool, "g", "p1", "p2", "p3")
	expect(t, pool, "empty")
	changes(2, func() (int64, error) { return groups.Remove(t.Context(), "g", these("p1", "p3", "unknown")) })
	expect(t, pool, "g", "p2")

	// Add makes inactive and former members current.
	load(t, pool, false, group(t, "g", "", "p2", `{"entity":{"reference":"Patient/p4"},"inactive":true}`,
		`{"entity":{"reference":"Patient/p5"},"period":{"end":"2025"}}`))
	expect(t, pool, "g", "p2")
	was := joined(t, pool, "g")
	changes(2, func() (int64, error) { return groups.Add(t.Context(), "g", these("p2", "p4", "p5")) })
	expect(t, pool, "g", "p2", "p4", "p5")
	for patient, at := range joined(t, pool, "g") {
		if !at.Equal(was[patient]) {
			t.Errorf("%s joined at %s, now at %s", patient, was[patient], at)
		}
	}
	changes(1, func() (int64, error) { return groups.Remove(t.Context(), "g", these("p4")) })
	expect(t, pool, "g", "p2", "p5")

	shown, err := groups.Show(t.Context(), "g")
	if err != nil || shown.ID != "g" || !shown.Exportable || shown.Members != 2 || shown.Current != 2 {
		t.Errorf("shown %+v, error %v", shown, err)
	}
	must(t, groups.Delete(t.Context(), "g"))
	expectNone(t, pool, "g")
	for what, call := range map[string]func() error{
		"delete": func() error { return groups.Delete(t.Context(), "g") },
		"add":    func() error { _, err := groups.Add(t.Context(), "g", these("p1")); return err },
		"remove": func() error { _, err := groups.Remove(t.Context(), "g", these("p1")); return err },
		"show":   func() error { _, err := groups.Show(t.Context(), "g"); return err },
	} {
		if err := call(); !isNoGroup(err) {
			t.Errorf("%s without a group: %v", what, err)
		}
	}
	list, err := groups.List(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != "empty" || list[0].Members != 0 {
		t.Errorf("listed %+v, error %v", list, err)
	}
}

func TestFailedEditChangesNothing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	if _, err := groups.Create(t.Context(), "g", these("p1")); err != nil {
		t.Fatal(err)
	}
	cut := errors.New("the file was cut")
	failing := func(yield func(string, error) bool) { _ = yield("p1", nil) && yield("", cut) }
	for what, call := range map[string]func(pgdir.Patients) (int64, error){
		"create": func(ids pgdir.Patients) (int64, error) { return groups.Create(t.Context(), "new", ids) },
		"add":    func(ids pgdir.Patients) (int64, error) { return groups.Add(t.Context(), "g", ids) },
		"remove": func(ids pgdir.Patients) (int64, error) { return groups.Remove(t.Context(), "g", ids) },
	} {
		_, err := call(these("p1", "p2", "Patient/20391", "p3"))
		if err == nil || !strings.Contains(err.Error(), "number 3") || strings.Contains(err.Error(), "20391") {
			t.Errorf("%s: got %v, want an error that names the third", what, err)
		}
		if _, err := call(failing); !errors.Is(err, cut) {
			t.Errorf("%s: got %v, want the error of the list", what, err)
		}
	}
	expect(t, pool, "g", "p1")
	expectNone(t, pool, "new")
	if _, err := groups.Create(t.Context(), "Group/new", these()); err == nil || !strings.Contains(err.Error(), "not a FHIR id") {
		t.Errorf("a malformed id: %v", err)
	}
}

func TestEditManyPatients(t *testing.T) {
	t.Parallel()
	const many = 50_000
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	numbered := func(yield func(string, error) bool) {
		for n := range many {
			if !yield(fmt.Sprintf("p%d", n), nil) {
				return
			}
		}
	}
	if n, err := groups.Create(t.Context(), "g", numbered); err != nil || n != many {
		t.Fatalf("%d members, want %d, error %v", n, many, err)
	}
	if n, err := groups.Remove(t.Context(), "g", numbered); err != nil || n != many {
		t.Fatalf("%d removed, want %d, error %v", n, many, err)
	}
	expect(t, pool, "g")
}
