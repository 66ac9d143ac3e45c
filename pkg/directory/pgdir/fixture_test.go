package pgdir_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/pgdb"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func now() time.Time { return time.Date(2026, 3, 15, 12, 0, 0, 0, time.UTC) }

// open returns a pool on a new migrated database.
func open(t testing.TB) *pgxpool.Pool {
	t.Helper()
	url := testenv.Postgres(t)
	if _, err := pgdb.Migrate(t.Context(), url); err != nil {
		t.Fatal(err)
	}
	return connect(t, url)
}

func connect(t testing.TB, url string) *pgxpool.Pool {
	t.Helper()
	pool, err := pgdir.Open(t.Context(), pgdb.Config{URL: url, Connections: 12})
	must(t, err)
	t.Cleanup(pool.Close)
	return pool
}

func exec(t testing.TB, pool *pgxpool.Pool, text string, args ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), text, args...); err != nil {
		t.Fatal(err)
	}
}

// one returns the only value of a query.
func one[T any](t testing.TB, pool *pgxpool.Pool, text string, args ...any) T {
	t.Helper()
	rows, err := pool.Query(t.Context(), text, args...)
	must(t, err)
	value, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[T])
	must(t, err)
	return value
}

func begin(t testing.TB, pool *pgxpool.Pool) *pgdir.Load {
	t.Helper()
	load, err := pgdir.BeginLoad(t.Context(), pool)
	must(t, err)
	return load
}

// places numbers the lines of all loads.
var places atomic.Int64

func add(t testing.TB, load *pgdir.Load, lines ...string) {
	t.Helper()
	for _, line := range lines {
		_, err := load.Add(t.Context(), places.Add(1), []byte(line))
		must(t, err)
	}
}

func seal(t testing.TB, pool *pgxpool.Pool, load *pgdir.Load, deleteMissing bool) error {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error { return load.Seal(t.Context(), tx, deleteMissing, nil) })
	if closed := load.Close(context.WithoutCancel(t.Context())); closed != nil {
		t.Error(closed)
	}
	return err
}

// load loads the lines.
func load(t testing.TB, pool *pgxpool.Pool, deleteMissing bool, lines ...string) {
	t.Helper()
	l := begin(t, pool)
	add(t, l, lines...)
	must(t, seal(t, pool, l, deleteMissing))
}

// group returns a line; a member is a patient id or JSON.
func group(t testing.TB, id, lastUpdated string, members ...string) string {
	t.Helper()
	var list []string
	for _, member := range members {
		if !strings.HasPrefix(member, "{") {
			member = fmt.Sprintf(`{"entity":{"reference":"Patient/%s"}}`, member)
		}
		list = append(list, member)
	}
	meta := ""
	if lastUpdated != "" {
		meta = fmt.Sprintf(`"meta":{"lastUpdated":%q},`, lastUpdated)
	}
	line := fmt.Sprintf(`{"resourceType":"Group","id":%q,%s"active":true,"actual":true,"member":[%s]}`,
		id, meta, strings.Join(list, ","))
	if !json.Valid([]byte(line)) {
		t.Fatalf("not JSON: %s", line)
	}
	return line
}

// members returns the current members, sorted, or nil when there is no group.
func members(t testing.TB, groups directory.Groups, id string) []string {
	t.Helper()
	ids := []string{}
	_, err := groups.Members(t.Context(), id, func(patient string) error {
		ids = append(ids, patient)
		return nil
	})
	if errors.Is(err, directory.ErrNoGroup) {
		return nil
	}
	must(t, err)
	slices.Sort(ids)
	return ids
}

func expect(t testing.TB, pool *pgxpool.Pool, id string, want ...string) {
	t.Helper()
	if got := members(t, pgdir.NewGroups(pool, now), id); got == nil || !slices.Equal(got, want) {
		t.Errorf("group %s has %q (no group: %v), want %q", id, got, got == nil, want)
	}
}

func expectNone(t testing.TB, pool *pgxpool.Pool, id string) {
	t.Helper()
	if got := members(t, pgdir.NewGroups(pool, now), id); got != nil {
		t.Errorf("group %s has %q, want no such group", id, got)
	}
}

func these(ids ...string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for _, id := range ids {
			if !yield(id, nil) {
				return
			}
		}
	}
}

// heap returns the bytes of memory in use.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
