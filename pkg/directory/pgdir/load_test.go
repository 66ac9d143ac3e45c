package pgdir_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
)

// TestMalformedLines: a malformed line is a Problem and leaves nothing staged; other lines are loaded.
func TestMalformedLines(t *testing.T) {
	t.Parallel()
	pool := open(t)
	load(t, pool, false, group(t, "g2", "", "kept"))
	good := group(t, "g1", "", "p1")
	lines := maps.Clone(directorytest.Malformed)
	lines["nothing"] = ""
	lines["not UTF-8"] = strings.Replace(good, "p1", "\xff", 1)
	l := begin(t, pool)
	for name, line := range lines {
		added, err := l.Add(t.Context(), places.Add(1), []byte(line))
		var problem *pgdir.Problem
		if !errors.As(err, &problem) || err.Error() == "" || strings.Contains(err.Error(), "20391") {
			t.Errorf("%s: got %v, want a Problem that quotes nothing", name, err)
		}
		if examined, other := pgdir.Examine([]byte(line)); examined.ID != added.ID || fmt.Sprint(other) != fmt.Sprint(err) {
			t.Errorf("%s: examined: %v, %v, want %v, %v", name, examined, other, added, err)
		}
	}
	add(t, l, good)
	if n := one[int](t, pool, "SELECT count(*) FROM "+stagedMembers(t, pool)); n != 1 {
		t.Errorf("%d members are staged, want the one of the good line", n)
	}
	must(t, seal(t, pool, l, false))
	expect(t, pool, "g1", "p1")
	expect(t, pool, "g2", "kept")

	l = begin(t, pool)
	add(t, l, good)
	if _, err := l.Add(t.Context(), places.Add(1), []byte("no JSON")); err == nil {
		t.Error("no error")
	}
	// The malformed line may have been g2.
	if err := seal(t, pool, l, true); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("deleting missing groups after a problem: %v", err)
	}
	expect(t, pool, "g2", "kept")
}

func stagedMembers(t *testing.T, pool *pgxpool.Pool) string {
	t.Helper()
	return "directory_stage." + one[string](t, pool,
		"SELECT tablename FROM pg_tables WHERE schemaname = 'directory_stage' AND tablename LIKE 'member%'")
}

// rows returns the stored members of a group, each with the version of its row, which changes when the row is written.
func rows(t *testing.T, pool *pgxpool.Pool, id string) map[string]string {
	t.Helper()
	found, err := pool.Query(t.Context(), `SELECT patient || ' ' || starts || ' ' || ends || ' ' || inactive,
		ctid || ' ' || xmin || ' ' || joined FROM directory_member WHERE group_id = $1`, id)
	must(t, err)
	stored := map[string]string{}
	var key, value string
	if _, err := pgx.ForEachRow(found, []any{&key, &value}, func() error { stored[key] = value; return nil }); err != nil {
		t.Fatal(err)
	}
	return stored
}

func joined(t *testing.T, pool *pgxpool.Pool, id string) map[string]time.Time {
	t.Helper()
	known := map[string]time.Time{}
	err := pgdir.NewGroups(pool, now).Roll(t.Context(), id, func(m pgdir.Member) error {
		known[m.Patient] = m.Joined
		return nil
	})
	must(t, err)
	return known
}

func TestLoadingAgain(t *testing.T) {
	t.Parallel()
	pool := open(t)
	ended := `{"entity":{"reference":"Patient/ends"},"period":{"end":"2027"}}`
	first := group(t, "g", "2026-01-01T00:00:00Z", "stays", "leaves", "rests", ended)
	load(t, pool, false, first, group(t, "other", "", "p1"))
	expect(t, pool, "g", "ends", "leaves", "rests", "stays")
	was, wasJoined := rows(t, pool, "g"), joined(t, pool, "g")
	head := one[string](t, pool, "SELECT ctid || ' ' || xmin FROM directory_group WHERE id = 'other'")

	load(t, pool, false, first, group(t, "other", "", "p1"))
	for key, row := range rows(t, pool, "g") {
		if was[key] != row {
			t.Error("an unchanged row was written")
		}
	}
	if now := one[string](t, pool, "SELECT ctid || ' ' || xmin FROM directory_group WHERE id = 'other'"); now != head {
		t.Errorf("an unchanged group was written: %s, then %s", head, now)
	}

	ended = `{"entity":{"reference":"Patient/ends"},"period":{"start":"2020","end":"2028"}}`
	rests := `{"entity":{"reference":"Patient/rests"},"inactive":true}`
	load(t, pool, false, group(t, "g", "2026-01-02T00:00:00Z", "stays", "comes", rests, ended, "stays"))
	expect(t, pool, "g", "comes", "ends", "stays")
	expect(t, pool, "other", "p1") // it was not in the load
	is := joined(t, pool, "g")
	for _, patient := range []string{"stays", "ends", "rests"} {
		if !is[patient].Equal(wasJoined[patient]) {
			t.Errorf("%s joined at %s, now at %s", patient, wasJoined[patient], is[patient])
		}
	}
	if !is["comes"].After(wasJoined["stays"]) {
		t.Errorf("comes joined at %s, not after %s", is["comes"], wasJoined["stays"])
	}
	if _, there := is["leaves"]; there {
		t.Error("a patient who left is still in the group")
	}
	if len(rows(t, pool, "g")) != 4 {
		t.Errorf("rows %v, want 4", rows(t, pool, "g"))
	}

	// A patient who joins again gets a new time.
	load(t, pool, false, group(t, "g", "2026-01-03T00:00:00Z", "stays", "leaves"))
	if back := joined(t, pool, "g")["leaves"]; !back.After(is["comes"]) {
		t.Errorf("a patient who joined again has the time %s, want after %s", back, is["comes"])
	}
}

// TestVersionsOfAGroup: the newest version wins, within a load and across loads.
func TestVersionsOfAGroup(t *testing.T) {
	t.Parallel()
	const early, late = "2026-01-01T00:00:00Z", "2026-01-01T01:00:00.5+01:00"
	pool := open(t)
	for name, test := range directorytest.Versions {
		t.Run(name, func(t *testing.T) {
			exec(t, pool, "TRUNCATE directory_group, directory_member CASCADE")
			l := begin(t, pool)
			readable := 0
			for _, line := range test.Lines {
				var problem *pgdir.Problem
				_, err := l.Add(t.Context(), places.Add(1), []byte(line))
				if err == nil {
					readable++
				} else if !errors.As(err, &problem) {
					t.Fatal(err)
				}
			}
			must(t, seal(t, pool, l, false))
			if test.Member == "" { // the group stays as it is: it is not in the directory
				expectNone(t, pool, "g")
				return
			}
			expect(t, pool, "g", test.Member)
			if readable < len(test.Lines) || len(test.Lines) > 2 { // a load knows the versions of others from their result
				return
			}
			exec(t, pool, "TRUNCATE directory_group, directory_member CASCADE")
			for _, line := range test.Lines {
				load(t, pool, true, line)
			}
			expect(t, pool, "g", test.Member)
		})
	}
	t.Run("one that cannot be exported", func(t *testing.T) {
		exec(t, pool, "TRUNCATE directory_group, directory_member CASCADE")
		load(t, pool, false, group(t, "g", early, "p"))
		load(t, pool, false, strings.Replace(group(t, "g", late, "p"), `"active":true`, `"active":false`, 1))
		expectNone(t, pool, "g")
	})
}

// TestTheNewestVersionAfterADeletion: the versions before a deletion are forgotten, in the load and in the directory.
func TestTheNewestVersionAfterADeletion(t *testing.T) {
	t.Parallel()
	pool := open(t)
	for name, test := range directorytest.Recreated {
		for _, before := range []int{0, 1} { // lines that an earlier load had
			if strings.Contains(test.Lines[0], "DELETE") {
				continue
			}
			t.Run(fmt.Sprint(name, " ", before), func(t *testing.T) {
				exec(t, pool, "TRUNCATE directory_group, directory_member CASCADE")
				load(t, pool, false, test.Lines[:before]...)
				l := begin(t, pool)
				deleted := map[string]int64{}
				for _, line := range test.Lines[before:] {
					place := places.Add(1)
					if strings.Contains(line, "DELETE") {
						deleted["g"] = place
						continue
					}
					var problem *pgdir.Problem
					if _, err := l.Add(t.Context(), place, []byte(line)); err != nil && !errors.As(err, &problem) {
						t.Fatal(err)
					}
				}
				must(t, pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return l.Sealing(false, deleted)(t.Context(), tx) }))
				must(t, l.Close(t.Context()))
				if test.Err != nil { // one that cannot be read is not in the directory
					expectNone(t, pool, "g")
					return
				}
				expect(t, pool, "g", test.Members...)
			})
		}
	}
}

// A load of the previous release writes neither member groups nor counts. Those of the version before must not stay.
func TestALoadOfThePreviousRelease(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	version := `{"resourceType":"Group","id":"g","meta":{"lastUpdated":"2026-01-01T00:00:00Z"},"member":[` +
		`{"entity":{"reference":"Group/h"}},{"entity":{"identifier":{"value":"1"}}}]}`
	load(t, pool, false, version, group(t, "h", "", "p1"))
	expect(t, pool, "g", "p1")
	exec(t, pool, "INSERT INTO directory_member (group_id, patient) VALUES ('g', 'p2')")
	exec(t, pool, `INSERT INTO directory_group AS g (id, exportable, last_updated) VALUES ('g', true, '2026-01-02')
		ON CONFLICT (id) DO UPDATE SET exportable = excluded.exportable, last_updated = excluded.last_updated`)
	expect(t, pool, "g", "p2")
	left, err := groups.Members(t.Context(), "g", func(string) error { return nil })
	if err != nil || len(left) > 0 {
		t.Errorf("left out %+v, error %v", left, err)
	}
	must(t, groups.Delete(t.Context(), "h")) // a delete of that release, too
	if n := one[int](t, pool, "SELECT (SELECT count(*) FROM directory_subgroup) + (SELECT count(*) FROM directory_left_out)"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

func TestALoadCountsMembersThatAreLeftOut(t *testing.T) {
	t.Parallel()
	l := begin(t, open(t))
	byIdentifier := `{"entity":{"identifier":{"value":"1"}}`
	line := []byte(group(t, "g", "", "p1", byIdentifier+"}", byIdentifier+`,"inactive":true}`, byIdentifier+"}"))
	added, err := l.Add(t.Context(), places.Add(1), line)
	must(t, err)
	examined, err := pgdir.Examine(line)
	must(t, err)
	want := []export.LeftOut{{Reason: export.MemberByIdentifier, Count: 2}}
	for _, got := range []pgdir.Added{added, examined} {
		if got.ID != "g" || !slices.Equal(got.LeftOut, want) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	must(t, l.Close(t.Context()))
}

func TestDeleteMissing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	both := []string{group(t, "g1", "", "p1"), group(t, "g2", "", "p2")}
	load(t, pool, false, both...)
	load(t, pool, false, both[0])
	expect(t, pool, "g2", "p2")
	load(t, pool, true) // a load without groups deletes none
	expect(t, pool, "g2", "p2")
	load(t, pool, true, both[0])
	expect(t, pool, "g1", "p1")
	expectNone(t, pool, "g2")
	if n := one[int](t, pool, "SELECT count(*) FROM directory_member"); n != 1 {
		t.Errorf("%d members are stored, want 1", n)
	}
}

func TestUnsealedLoadIsInvisible(t *testing.T) {
	t.Parallel()
	pool := open(t)
	load(t, pool, false, group(t, "g", "", "p1"))
	l := begin(t, pool)
	add(t, l, group(t, "g", "", "p2"), group(t, "h", ""))
	expect(t, pool, "g", "p1")
	broken := errors.New("broken")
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		if err := l.Seal(t.Context(), tx, true, nil); err != nil {
			return err
		}
		expect(t, pool, "g", "p1") // readers do not wait
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	expect(t, pool, "g", "p1")
	expectNone(t, pool, "h")
	if err := seal(t, pool, l, true); err != nil { // a second try succeeds
		t.Fatal(err)
	}
	expect(t, pool, "g", "p2")
	expect(t, pool, "h")
	if err := l.Close(t.Context()); err != nil {
		t.Errorf("a second Close: %v", err)
	}
	if n := one[int](t, pool, "SELECT count(*) FROM pg_tables WHERE schemaname = 'directory_stage'"); n != 0 {
		t.Errorf("%d tables are left", n)
	}
}

func TestLoadsTakeTurns(t *testing.T) {
	t.Parallel()
	pool := open(t)
	killed := begin(t, pool)
	add(t, killed, group(t, "g", "", "p1"))
	if _, err := pgdir.BeginLoad(t.Context(), pool); !errors.Is(err, pgdb.ErrBusy) {
		t.Fatalf("a second load: %v, want ErrBusy", err)
	}
	// The server ends the session of the first load, as after a failure of its machine.
	exec(t, pool, `SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE locktype = 'advisory' AND granted
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
	next := begin(t, pool)
	add(t, next, group(t, "g", "", "p2"))
	var problem *pgdir.Problem
	if _, err := killed.Add(t.Context(), places.Add(1), []byte(group(t, "h", "", "p1"))); err == nil || errors.As(err, &problem) {
		t.Errorf("a load that lost its turn continues: %v", err)
	}
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return killed.Seal(t.Context(), tx, true, nil) })
	if err == nil {
		t.Error("a load that lost its turn is sealed")
	}
	if err := killed.Close(t.Context()); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("closing without a session: %v", err)
	}
	must(t, seal(t, pool, next, false))
	expect(t, pool, "g", "p2")
}

// TestLostStage: a crash of the server empties the stage. The load must fail, not delete groups.
func TestLostStage(t *testing.T) {
	t.Parallel()
	pool := open(t)
	load(t, pool, false, group(t, "g", "", "p1"))
	l := begin(t, pool)
	add(t, l, group(t, "g", "", "p1"), group(t, "h", "", "p1"))
	members := stagedMembers(t, pool)
	exec(t, pool, "TRUNCATE "+members+", "+strings.Replace(members, "member_", "group_", 1))
	if err := seal(t, pool, l, true); err == nil || !strings.Contains(err.Error(), "0 of 2") {
		t.Errorf("sealed: %v", err)
	}
	expect(t, pool, "g", "p1")
}

func TestAddingAtOnce(t *testing.T) {
	t.Parallel()
	const groups, people = 40, 200
	pool := open(t)
	l := begin(t, pool)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for g := n; g < groups; g += 8 {
				var ids []string
				for p := range people {
					ids = append(ids, fmt.Sprintf("%d-%d", g, p))
				}
				if _, err := l.Add(t.Context(), places.Add(1), []byte(group(t, fmt.Sprintf("g%d", g), "", ids...))); err != nil {
					t.Error(err)
				}
				var problem *pgdir.Problem
				if _, err := l.Add(t.Context(), places.Add(1), []byte("no JSON")); !errors.As(err, &problem) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	must(t, seal(t, pool, l, false))
	list, err := pgdir.NewGroups(pool, now).List(t.Context())
	if err != nil || len(list) != groups {
		t.Fatalf("%d groups, want %d, error %v", len(list), groups, err)
	}
	for _, g := range list {
		if g.Members != people || g.Current != people || !g.Exportable {
			t.Errorf("group %+v, want %d members", g, people)
		}
	}
}

// TestAddMemory: Add does not hold the members of the line.
func TestAddMemory(t *testing.T) {
	const many = 150_000
	pool := open(t)
	line := []byte(group(t, "big", "", numbered(many)...))
	l := begin(t, pool)
	before, most := heap(), uint64(0)
	done := make(chan error)
	go func() { _, err := l.Add(t.Context(), places.Add(1), line); done <- err }()
	for looks := 0; ; looks++ {
		most = max(most, heap())
		select {
		case err := <-done:
			if err != nil || looks < 3 {
				t.Fatalf("added after %d looks: %v", looks, err)
			}
		default:
			continue
		}
		break
	}
	// Members in memory would take several times the line. Garbage counts as well.
	if most > before+uint64(len(line)) {
		t.Errorf("the heap grew from %d to %d while a line of %d bytes was staged", before, most, len(line))
	}
	must(t, seal(t, pool, l, false))
	if n := len(members(t, pgdir.NewGroups(pool, now), "big")); n != many {
		t.Errorf("%d members, want %d", n, many)
	}
}

// TestLoadsAndOperatorsAtOnce: concurrent changes are serializable, and leave no members of a deleted group.
func TestLoadsAndOperatorsAtOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	var all sync.WaitGroup
	for n := range 4 {
		all.Go(func() {
			for i := range 10 {
				_, err := groups.Create(t.Context(), "g", these("created"))
				if err != nil && !errors.Is(err, pgdir.ErrGroupExists) {
					t.Error(err)
				}
				id := fmt.Sprintf("%d-%d", n, i)
				if _, err := groups.Add(t.Context(), "g", these(id, id)); err != nil && !isNoGroup(err) {
					t.Error(err)
				}
				if _, err := groups.Remove(t.Context(), "g", these("created", id)); err != nil && !isNoGroup(err) {
					t.Error(err)
				}
				if n == 0 {
					if err := groups.Delete(t.Context(), "g"); err != nil && !isNoGroup(err) {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Go(func() {
		for range 10 {
			load(t, pool, true, group(t, "g", "", "loaded"))
		}
	})
	all.Wait()
	if err := groups.Delete(t.Context(), "g"); err != nil && !isNoGroup(err) {
		t.Fatal(err)
	}
	if n := one[int](t, pool, "SELECT count(*) FROM directory_member"); n != 0 {
		t.Errorf("%d members of deleted groups are left", n)
	}
	load(t, pool, false, group(t, "g", "", "loaded"))
	if got := members(t, groups, "g"); !slices.Equal(got, []string{"loaded"}) {
		t.Errorf("members %q", got)
	}
}

func numbered(many int) []string {
	ids := make([]string, many)
	for n := range ids {
		ids[n] = fmt.Sprintf("00000000-0000-0000-0000-%012d", n)
	}
	return ids
}
