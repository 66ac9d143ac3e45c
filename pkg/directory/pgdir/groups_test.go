package pgdir_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

func TestGroups(t *testing.T) {
	t.Parallel()
	directorytest.Groups(t, func(t *testing.T, now func() time.Time, held []directorytest.Group) directory.Groups {
		pool := open(t)
		load(t, pool, false, directorytest.NDJSON(t, held)...)
		return pgdir.NewGroups(pool, now)
	})
}

func TestFind(t *testing.T) {
	t.Parallel()
	directorytest.Find(t, func(t *testing.T, now func() time.Time, held []directorytest.Group) directory.Groups {
		pool := open(t)
		load(t, pool, false, directorytest.NDJSON(t, held)...)
		return pgdir.NewGroups(pool, now)
	})
}

// TestDescribe: a load replaces what an operator set, and a change of the members ends the number that the load had.
func TestDescribe(t *testing.T) {
	t.Parallel()
	pool := open(t)
	groups := pgdir.NewGroups(pool, now)
	find := func() (d directory.Details) {
		t.Helper()
		must(t, groups.Find(t.Context(), []string{"g"}, "", func(found directory.Details) error { d = found; return nil }))
		return d
	}
	named := func(name, quantity string) string {
		return strings.Replace(group(t, "g", "", "p"), `"active"`, `"name":"`+name+`","quantity":`+quantity+`,"active"`, 1)
	}
	load(t, pool, false, named("first", "1"))
	if got := find(); got.Name != "first" || got.Quantity == nil || *got.Quantity != 1 {
		t.Errorf("loaded %+v", got)
	}
	want := directory.Details{ID: "g", Name: "second", Identifiers: []directory.Identifier{{System: "s", Value: "v|w"}}}
	must(t, groups.Describe(t.Context(), want))
	_, err := groups.Add(t.Context(), "g", these("q"))
	must(t, err)
	if got := find(); !reflect.DeepEqual(got, want) {
		t.Errorf("described %+v, want %+v", got, want)
	}
	load(t, pool, false, named("third", "7"))
	if got := find(); got.Name != "third" || got.Identifiers != nil || *got.Quantity != 7 {
		t.Errorf("loaded again %+v", got)
	}
	must(t, groups.Describe(t.Context(), directory.Details{ID: "g"}))
	if got := find(); got.Name != "" || got.Identifiers != nil {
		t.Errorf("described with nothing: %+v", got)
	}
	for _, id := range []string{"none", "a/b"} {
		if err := groups.Describe(t.Context(), directory.Details{ID: id}); !errors.Is(err, directory.ErrNoGroup) {
			t.Errorf("group %s: %v, want ErrNoGroup", id, err)
		}
	}
	for _, bad := range []directory.Details{
		{ID: "g", Name: "\xff"}, {ID: "g", Name: "\x00"}, {ID: "g", Identifiers: []directory.Identifier{{}}},
		{ID: "g", Identifiers: []directory.Identifier{{Value: "\x00"}}},
	} {
		if err := groups.Describe(t.Context(), bad); err == nil || errors.Is(err, export.ErrUnavailable) {
			t.Errorf("%+v: %v, want an error", bad, err)
		}
	}
}

// held is a pool of a database with the Patients, some loads of which ended or are not sealed.
func held(t testing.TB, patients ...string) *pgxpool.Pool {
	t.Helper()
	pool := open(t)
	exec(t, pool, "INSERT INTO load_batch (no, sealed_at) VALUES (1, '2026-01-01'), (2, '2026-02-01'), (3, NULL)")
	patient := func(id string, born int, ended *int) {
		t.Helper()
		exec(t, pool, `INSERT INTO resource (born, ended, type, id, patient, head, body)
			VALUES ($1, $2, 'Patient', $3, $3, '', '')`, born, ended, id)
	}
	two, three := 2, 3
	for _, id := range patients {
		patient(id, 1, &two)
		patient(id, 2, &three) // the load that is not sealed replaces it
	}
	patient("p3", 1, &two)
	patient("p10", 3, nil)
	return pool
}

func TestPatients(t *testing.T) {
	t.Parallel()
	directorytest.Patients(t, func(t *testing.T, patients []string) directory.Groups {
		return pgdir.NewGroups(held(t, patients...), now)
	})
	none := func(t *testing.T, pool *pgxpool.Pool) {
		t.Helper()
		if ids, err := pgdir.NewGroups(pool, now).Unknown(t.Context(), "", []string{"p"}); err != nil || len(ids) > 0 {
			t.Errorf("%q are unknown, error %v, want none", ids, err)
		}
	}
	t.Run("no clinical data in the database", func(t *testing.T) { none(t, open(t)) })
	t.Run("a role that may not read the clinical data", func(t *testing.T) {
		role, pool := "reader_"+strings.ToLower(rand.Text()), held(t)
		exec(t, pool, "CREATE ROLE "+role)
		t.Cleanup(func() { _, _ = pool.Exec(context.WithoutCancel(t.Context()), "DROP ROLE "+role) })
		none(t, connect(t, pool.Config().ConnString()+"&options=-c%20role%3D"+role))
	})
}

// TestMembersMemory: memory does not grow with the group (pitfall 6).
func TestMembersMemory(t *testing.T) {
	const many = 300_000
	pool := open(t)
	exec(t, pool, "INSERT INTO directory_group (id, exportable) VALUES ('big', true), ('small', true)")
	exec(t, pool, `INSERT INTO directory_member (group_id, patient, inactive)
		SELECT 'big', '00000000-0000-0000-0000-' || lpad(n::text, 12, '0'), n > $1 FROM generate_series(1, $1 + 10) AS n`, many)
	exec(t, pool, "INSERT INTO directory_member (group_id, patient) VALUES ('small', 'p')")
	groups := pgdir.NewGroups(pool, now)

	before, most, n := heap(), uint64(0), 0
	_, err := groups.Members(t.Context(), "big", func(id string) error {
		if n++; n%(many/10) == 0 {
			most = max(most, heap())
		}
		return nil
	})
	if err != nil || n != many {
		t.Fatalf("%d members, want %d, error %v", n, many, err)
	}
	if most > before+1<<20 {
		t.Errorf("the heap grew from %d to %d bytes while %d members were streamed", before, most, many)
	}
	expect(t, pool, "small", "p")

	// A stream that ends early releases its connection.
	enough := errors.New("enough")
	for range pool.Config().MaxConns + 1 {
		if _, err := groups.Members(t.Context(), "big", func(string) error { return enough }); err != enough { //nolint:errorlint // as it is
			t.Fatal(err)
		}
	}
}

// TestMembersSnapshot: a load does not change a running stream.
func TestMembersSnapshot(t *testing.T) {
	t.Parallel()
	const many = 50_000 // more than the buffers of the connection hold
	pool := open(t)
	var before, after []string
	for n := range many {
		before = append(before, fmt.Sprintf("before-%d", n))
		after = append(after, fmt.Sprintf("after-%d", n))
	}
	load(t, pool, false, group(t, "g", "", before...))
	for _, want := range []string{"before-", "after-"} {
		n := 0
		_, err := pgdir.NewGroups(pool, now).Members(t.Context(), "g", func(id string) error {
			if n == 0 {
				load(t, pool, false, group(t, "g", "", after...))
			}
			if n++; !strings.HasPrefix(id, want) {
				return fmt.Errorf("%s was yielded", id)
			}
			return nil
		})
		if err != nil || n != many {
			t.Errorf("%d members %s, want %d, error %v", n, want, many, err)
		}
	}
}

func TestOutages(t *testing.T) {
	t.Parallel()
	ask := func(t *testing.T, url, text string) {
		pool := connect(t, url)
		groups, access := pgdir.NewGroups(pool, now), pgdir.NewAccess(pool)
		for name, call := range map[string]func() error{
			"Exists": func() error { return groups.Exists(t.Context(), "g") },
			"Members": func() error {
				_, err := groups.Members(t.Context(), "g", func(string) error { return nil })
				return err
			},
			"Unknown": func() error {
				_, err := groups.Unknown(t.Context(), "g", []string{"p"})
				return err
			},
			"Find": func() error { return groups.Find(t.Context(), nil, "", func(directory.Details) error { return nil }) },
			"Unknown of the server": func() error {
				_, err := groups.Unknown(t.Context(), "", []string{"p"})
				return err
			},
			"Grant": func() error {
				grant, err := access.Grant(t.Context(), export.Owner{Issuer: "i", Subject: "s"})
				if grant.Types.Has("Patient") || grant.Groups.Has("g") {
					t.Error("the grant allows access")
				}
				return err
			},
			"Patients": func() error {
				included, err := includes(t, access, "p")
				if included {
					t.Error("the grant includes a patient")
				}
				return err
			},
		} {
			if err := call(); !errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), text) {
				t.Errorf("%s: %v, want ErrUnavailable and %q", name, err, text)
			}
		}
		if groups.Check(t.Context()) == nil || access.Check(t.Context()) == nil {
			t.Error("Check returned no error")
		}
	}
	t.Run("no server", func(t *testing.T) {
		ask(t, "postgres://u:hunter2@127.0.0.1:1/none?sslmode=disable", "")
	})
	t.Run("not migrated", func(t *testing.T) { ask(t, testenv.Postgres(t), "sluice admin migrate") })
	t.Run("migrated", func(t *testing.T) {
		pool := open(t)
		if err := errors.Join(pgdir.NewGroups(pool, now).Check(t.Context()), pgdir.NewAccess(pool).Check(t.Context())); err != nil {
			t.Error(err)
		}
	})
}
