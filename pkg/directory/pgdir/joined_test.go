package pgdir_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
)

func TestJoined(t *testing.T) {
	t.Parallel()
	directorytest.Joined(t, func(t *testing.T, now func() time.Time, held []directorytest.Group) directory.Groups {
		pool := open(t)
		load(t, pool, false, directorytest.NDJSON(t, held)...)
		return pgdir.NewGroups(pool, now)
	})
}

// TestJoinedByLoads: members join when a load or an operator makes them members. Each step is an hour after the one before.
func TestJoinedByLoads(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, time.Now)
	inactive := func(line string) string { return strings.Replace(line, `"active":true`, `"active":false`, 1) }
	const (
		cIsInactive  = `{"entity":{"reference":"Patient/c"},"inactive":true}`
		bWithAPeriod = `{"entity":{"reference":"Patient/b"},"period":{"start":"2020"}}`
		cOnceMore    = `{"entity":{"reference":"Patient/c"},"period":{"end":"2020"}}`
		g, h, k      = `{"entity":{"reference":"Group/g"}}`, `{"entity":{"reference":"Group/h"}}`, `{"entity":{"reference":"Group/k"}}`
	)
	loads := func(lines ...string) func() { return func() { load(t, pool, false, lines...) } }
	for _, step := range []struct {
		name  string
		do    func()
		group string
		want  []string
	}{
		{"a new group", loads(group(t, "g", "", "a", "b")), "g", nil},
		{"one more", loads(group(t, "g", "", "a", "b", "c")), "g", []string{"c"}},
		{"nothing", func() {}, "g", nil},
		{"by an operator", func() { _, err := groups.Add(t.Context(), "g", these("a", "d")); must(t, err) }, "g", []string{"d"}},
		{"inactive, a period", loads(group(t, "g", "", "a", bWithAPeriod, "d", cIsInactive)), "g", nil},
		{"active again", loads(group(t, "g", "", "a", bWithAPeriod, "d", "c")), "g", []string{"c"}},
		{"a second period", loads(group(t, "g", "", "a", "b", "d", "c", cOnceMore)), "g", nil},
		{"left", func() { _, err := groups.Remove(t.Context(), "g", these("a")); must(t, err) }, "g", nil},
		{"back", loads(group(t, "g", "", "a", "b", "d", "c")), "g", []string{"a"}},
		{"a group of a group", loads(group(t, "p", "", g)), "p", nil},
		{"the group it names", func() { _, err := groups.Add(t.Context(), "g", these("e")); must(t, err) }, "p", []string{"e"}},
		{"another group", loads(group(t, "p", "2026-01-01T00:00:00Z", g, h), group(t, "h", "", "a", "x")), "p", []string{"x"}},
		{"one to come", loads(group(t, "p", "2026-01-02T00:00:00Z", g, h, k)), "p", nil},
		{"which comes", loads(group(t, "k", "", "y", "e")), "p", []string{"y"}},
		{"is inactive", loads(inactive(group(t, "k", "", "y", "e"))), "p", nil},
		{"and active", loads(group(t, "k", "", "y", "e")), "p", []string{"y"}},
		{"is deleted", func() { must(t, groups.Delete(t.Context(), "k")) }, "p", nil},
		{"and created", func() { _, err := groups.Create(t.Context(), "k", these("y")); must(t, err) }, "k", []string{"y"}},
		{"a new one by an operator", func() { _, err := groups.Create(t.Context(), "n", these("y")); must(t, err) }, "n", nil},
		{"links stay", loads(group(t, "p", "2026-01-03T00:00:00Z", "z", k, g, h)), "p", []string{"z"}},
	} {
		age(t, pool)
		step.do()
		if got := joinedSince(t, groups, step.group, time.Now().Add(-30*time.Minute)); !slices.Equal(got, step.want) {
			t.Errorf("%s: %q joined, want %q", step.name, got, step.want)
		}
	}
	// A change is visible some time after its time.
	if got := joinedSince(t, groups, "p", time.Now()); !slices.Equal(got, []string{"z"}) {
		t.Errorf("%q joined a moment ago, want z", got)
	}
	age(t, pool)
	if got := joinedSince(t, groups, "p", time.Now()); len(got) > 0 {
		t.Errorf("%q joined after now", got)
	}
}

// age makes every change an hour older.
func age(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for _, text := range []string{
		"UPDATE directory_member SET active_since = active_since - interval '1 hour'",
		"UPDATE directory_subgroup SET active_since = active_since - interval '1 hour'",
		"UPDATE directory_group SET exportable_since = exportable_since - interval '1 hour'",
	} {
		_, err := pool.Exec(t.Context(), text)
		must(t, err)
	}
}

func joinedSince(t *testing.T, groups directory.Groups, id string, since time.Time) (ids []string) {
	t.Helper()
	must(t, groups.Joined(t.Context(), id, since, func(patient string) error {
		ids = append(ids, patient)
		return nil
	}))
	slices.Sort(ids)
	return slices.Compact(ids)
}
