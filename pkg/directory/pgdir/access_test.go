package pgdir_test

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/directorytest"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/export"
)

func TestAccess(t *testing.T) {
	t.Parallel()
	for name, store := range map[string]func(t *testing.T, access *pgdir.Access, entries []directory.GrantEntry) error{
		"set": func(t *testing.T, access *pgdir.Access, entries []directory.GrantEntry) error {
			var err error
			for _, entry := range entries { // Set replaces the whole entry
				wide := everything(entry.Owner)
				wide.Patients.Names, wide.Levels = []string{"p9"}, export.Levels()
				err = errors.Join(err, access.Set(t.Context(), wide, nil), access.Set(t.Context(), entry, nil))
			}
			return err
		},
		"set with a stream": func(t *testing.T, access *pgdir.Access, entries []directory.GrantEntry) error {
			var err error
			for _, entry := range entries {
				patients := pgdir.Patients(nil)
				if !entry.Patients.All || len(entry.Patients.Names) > 0 {
					patients, entry.Patients.Names = these(entry.Patients.Names...), nil
				}
				err = errors.Join(err, access.Set(t.Context(), entry, patients))
			}
			return err
		},
		"replace": func(t *testing.T, access *pgdir.Access, entries []directory.GrantEntry) error {
			before := everything(export.Owner{Issuer: "https://a.example", Subject: "unknown"})
			return errors.Join(access.Set(t.Context(), before, nil), access.Replace(t.Context(), entries))
		},
	} {
		t.Run(name, func(t *testing.T) {
			directorytest.Access(t, func(t *testing.T, entries []directory.GrantEntry) directory.Access {
				access := pgdir.NewAccess(open(t))
				must(t, store(t, access, entries))
				return access
			})
		})
	}
}

var owner = export.Owner{Issuer: "https://a.example", Subject: "s"}

func everything(owner export.Owner) directory.GrantEntry {
	all := directory.NameList{All: true}
	return directory.GrantEntry{Owner: owner, Types: all, Groups: all, Patients: all}
}

func TestAWithdrawnGrantIsGoneAtOnce(t *testing.T) {
	t.Parallel()
	pool := open(t)
	access, other := pgdir.NewAccess(pool), pgdir.NewAccess(pool)
	allows := func(want bool) {
		t.Helper()
		grant, err := access.Grant(t.Context(), owner)
		if err != nil || grant.Types.Has("Patient") != want || grant.Groups.Has("g") != want {
			t.Errorf("grant %+v, error %v, want everything allowed: %v", grant, err, want)
		}
		if got, err := includes(t, access, "p"); err != nil || got != want {
			t.Errorf("the patient is included: %v, error %v, want %v", got, err, want)
		}
	}
	allows(false)
	for _, withdraw := range []func() error{
		func() error { return other.Remove(t.Context(), owner) },
		func() error { return other.Set(t.Context(), directory.GrantEntry{Owner: owner}, nil) },
		func() error { return other.Replace(t.Context(), nil) },
	} {
		must(t, other.Set(t.Context(), everything(owner), nil))
		allows(true)
		must(t, withdraw())
		allows(false)
	}
	if err := other.Remove(t.Context(), owner); !errors.Is(err, pgdir.ErrNoGrant) {
		t.Errorf("Remove without an entry: %v, want ErrNoGrant", err)
	}
}

// includes reports whether the owner's grant includes the patient. It is false after an error.
func includes(t *testing.T, access *pgdir.Access, patient string) (included bool, err error) {
	t.Helper()
	err = access.Patients(t.Context(), owner, func(_ directory.Grant, filter *directory.PatientFilter) (err error) {
		included, err = filter.Includes(patient)
		return err
	})
	return included && err == nil, err
}

func TestInvalidRowsAllowNothing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	access := pgdir.NewAccess(pool)
	for name, change := range map[string]string{
		"a kind of a later version": "patients = 'some'",
		"a kind in capitals":        "types = 'ALL', type_names = '{}'",
		"all patients with ids":     "patient_names = '{p2}'",
		"all with names":            "groups = 'all', group_names = '{g2}'",
		"no name":                   "patients = 'except', patient_names = ARRAY[NULL, 'p2']",
		"an unknown level":          "levels = '{group,everything}'",
		"no level":                  "levels = '{}'",
		"a level of null":           "levels = ARRAY[NULL, 'group']",
		"an unknown type":           "types = 'except', type_names = '{Observations}'",
		"no id":                     "patients = 'except', patient_names = '{Patient/20391}'",
	} {
		t.Run(name, func(t *testing.T) {
			must(t, access.Set(t.Context(), everything(owner), nil))
			// The table refuses some of these rows.
			for constraint := range strings.FieldsSeq(one[string](t, pool, `SELECT coalesce(string_agg(conname, ' '), '')
				FROM pg_constraint WHERE conrelid = 'directory_grant'::regclass AND contype = 'c'`)) {
				exec(t, pool, "ALTER TABLE directory_grant DROP CONSTRAINT "+constraint)
			}
			exec(t, pool, "UPDATE directory_grant SET "+change)
			// The plan reads the whole row, and nothing of it counts when a part is not valid.
			included, err := includes(t, access, "p")
			if err == nil || included {
				t.Errorf("included: %v, error %v, want an error", included, err)
			}
			grant, grantErr := access.Grant(t.Context(), owner)
			if grantErr == nil || grant.Types.Has("Patient") || grant.Groups.Has("g") {
				t.Errorf("grant %+v, error %v, want an error and nothing", grant, grantErr)
			}
			if err != nil && strings.Contains(err.Error(), "20391") {
				t.Errorf("error %q quotes an id", err)
			}
		})
	}
	for _, invalid := range []export.Owner{{Issuer: "a\x00", Subject: "s"}, {Issuer: "a", Subject: "\xff"}} {
		if grant, err := access.Grant(t.Context(), invalid); err != nil || grant.Types.Has("Patient") {
			t.Errorf("grant %+v, error %v, want nothing for a name that no entry can have", grant, err)
		}
	}
}

func TestInvalidEntriesChangeNothing(t *testing.T) {
	t.Parallel()
	access := pgdir.NewAccess(open(t))
	must(t, access.Set(t.Context(), everything(owner), nil))
	for place, change := range map[string]func(*directory.GrantEntry){
		"issuer":               func(e *directory.GrantEntry) { e.Owner.Issuer = "" },
		"subject":              func(e *directory.GrantEntry) { e.Owner.Subject = "\x00" },
		"number 2 of types":    func(e *directory.GrantEntry) { e.Types.Names = []string{"Patient", "patient"} },
		"number 1 of groups":   func(e *directory.GrantEntry) { e.Groups.Names = []string{"Group/g"} },
		"number 1 of patients": func(e *directory.GrantEntry) { e.Patients.Names = []string{"p20391*"} },
	} {
		bad := directory.GrantEntry{Owner: owner}
		change(&bad)
		entries := []directory.GrantEntry{{Owner: owner}, bad}
		for _, err := range []error{access.Set(t.Context(), bad, nil), access.Replace(t.Context(), entries)} {
			if err == nil || !strings.Contains(err.Error(), place) || strings.Contains(err.Error(), "20391") {
				t.Errorf("got error %v, want one that names %s", err, place)
			}
		}
	}
	// An owner has one entry.
	if err := access.Replace(t.Context(), []directory.GrantEntry{{Owner: owner}, {Owner: owner}}); err == nil {
		t.Error("accepted two entries for one owner")
	}
	// Streams of patients.
	cut := errors.New("the file was cut")
	only := directory.GrantEntry{Owner: owner}
	if err := access.Set(t.Context(), only, these("p1", "p20391*")); err == nil || strings.Contains(err.Error(), "20391") ||
		!strings.Contains(err.Error(), "number 2") {
		t.Errorf("got error %v, want one that names the second patient", err)
	}
	failing := func(yield func(string, error) bool) { _ = yield("p1", nil) && yield("", cut) }
	if err := access.Set(t.Context(), only, failing); !errors.Is(err, cut) {
		t.Errorf("got error %v, want that of the stream", err)
	}
	if err := access.Set(t.Context(), everything(owner), these()); err == nil {
		t.Error("an empty list of exceptions is accepted")
	}
	if included, err := includes(t, access, "p"); err != nil || !included {
		t.Errorf("included: %v, error %v, want the old grant", included, err)
	}
}

// TestAGrantOfManyPatients: neither a kick-off nor a plan holds the list of a grant.
func TestAGrantOfManyPatients(t *testing.T) {
	const many = 300_000
	access := pgdir.NewAccess(open(t))
	names := numbered(many)
	must(t, access.Set(t.Context(), directory.GrantEntry{Owner: owner, Types: directory.NameList{All: true}}, these(names...)))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := access.Grant(t.Context(), owner)
	must(t, err)
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 1<<20 {
		t.Errorf("Grant allocates %d bytes", after.TotalAlloc-before.TotalAlloc)
	}
	must(t, access.Patients(t.Context(), owner, func(_ directory.Grant, filter *directory.PatientFilter) error {
		before := heap()
		for n, name := range names {
			included, err := filter.Includes(name)
			between, betweenErr := filter.Includes(name + "-")
			if err != nil || betweenErr != nil || !included || between {
				t.Fatalf("patient number %d: included %v and %v, errors %v and %v", n, included, between, err, betweenErr)
			}
			if now := heap; n == many/2 && now() > before+2<<20 {
				t.Errorf("the heap grew from %d to %d bytes", before, now())
			}
		}
		return nil
	}))
	list, err := access.List(t.Context())
	want := pgdir.Summary{Owner: owner, Types: pgdir.Count{Kind: "all"}, Groups: pgdir.Count{Kind: "only"},
		Patients: pgdir.Count{Kind: "only", Names: many}, Levels: directory.Levels{export.GroupLevel}}
	if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0], want) {
		t.Errorf("listed %+v, error %v, want %+v", list, err, want)
	}
}

// TestConcurrentReplace: readers see the entries of one call, never a mix.
func TestConcurrentReplace(t *testing.T) {
	t.Parallel()
	access := pgdir.NewAccess(open(t))
	versions := make([][]directory.GrantEntry, 4)
	for v := range versions {
		for s := range 20 {
			entry := everything(export.Owner{Issuer: "i", Subject: fmt.Sprintf("%d-%d", v, s)})
			versions[v] = append(versions[v], entry)
		}
		versions[v] = append(versions[v], everything(owner))
	}
	must(t, access.Replace(t.Context(), versions[0]))
	var all sync.WaitGroup
	for _, version := range versions {
		all.Go(func() {
			for range 5 {
				if err := access.Replace(t.Context(), version); err != nil {
					t.Error(err)
				}
				list, err := access.List(t.Context())
				if err != nil || len(list) != 21 {
					t.Errorf("%d grants, want 21, error %v", len(list), err)
				}
				for _, one := range list[1:] { // the first entry is in both calls
					if one.Owner.Subject[:2] != list[1].Owner.Subject[:2] {
						t.Errorf("%s is listed with %s", one.Owner.Subject, list[1].Owner.Subject)
					}
				}
			}
		})
	}
	all.Wait()
}
