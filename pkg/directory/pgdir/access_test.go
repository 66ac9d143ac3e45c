package pgdir_test

import (
	"errors"
	"fmt"
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
				wide.Patients.Names = []string{"p9"}
				err = errors.Join(err, access.Set(t.Context(), wide), access.Set(t.Context(), entry))
			}
			return err
		},
		"replace": func(t *testing.T, access *pgdir.Access, entries []directory.GrantEntry) error {
			before := everything(export.Owner{Issuer: "https://a.example", Subject: "unknown"})
			return errors.Join(access.Set(t.Context(), before), access.Replace(t.Context(), entries))
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
		if err != nil || grant.Types.Has("Patient") != want || grant.Groups.Has("g") != want || grant.Patients.Has("p") != want {
			t.Errorf("grant %+v, error %v, want everything allowed: %v", grant, err, want)
		}
	}
	allows(false)
	for _, withdraw := range []func() error{
		func() error { return other.Remove(t.Context(), owner) },
		func() error { return other.Set(t.Context(), directory.GrantEntry{Owner: owner}) },
		func() error { return other.Replace(t.Context(), nil) },
	} {
		must(t, other.Set(t.Context(), everything(owner)))
		allows(true)
		must(t, withdraw())
		allows(false)
	}
	if err := other.Remove(t.Context(), owner); !errors.Is(err, pgdir.ErrNoGrant) {
		t.Errorf("Remove without an entry: %v, want ErrNoGrant", err)
	}
}

func TestInvalidRowsAllowNothing(t *testing.T) {
	t.Parallel()
	pool := open(t)
	access := pgdir.NewAccess(pool)
	for name, change := range map[string]string{
		"a kind of a later version": "patients = 'some'",
		"a kind in capitals":        "types = 'ALL', type_names = '{}'",
		"all with names":            "groups = 'all', group_names = '{g2}'",
		"no name":                   "patients = 'except', patient_names = ARRAY[NULL, 'p2']",
		"an unknown type":           "types = 'except', type_names = '{Observations}'",
		"no id":                     "patients = 'except', patient_names = '{Patient/20391}'",
	} {
		t.Run(name, func(t *testing.T) {
			must(t, access.Set(t.Context(), everything(owner)))
			// The table refuses some of these rows.
			for constraint := range strings.FieldsSeq(one[string](t, pool, `SELECT coalesce(string_agg(conname, ' '), '')
				FROM pg_constraint WHERE conrelid = 'directory_grant'::regclass AND contype = 'c'`)) {
				exec(t, pool, "ALTER TABLE directory_grant DROP CONSTRAINT "+constraint)
			}
			exec(t, pool, "UPDATE directory_grant SET "+change)
			grant, err := access.Grant(t.Context(), owner)
			if err == nil || grant.Types.Has("Patient") || grant.Groups.Has("g") || grant.Patients.Has("p") {
				t.Errorf("grant %+v, error %v, want an error and nothing", grant, err)
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
	must(t, access.Set(t.Context(), everything(owner)))
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
		for _, err := range []error{access.Set(t.Context(), bad), access.Replace(t.Context(), entries)} {
			if err == nil || !strings.Contains(err.Error(), place) || strings.Contains(err.Error(), "20391") {
				t.Errorf("got error %v, want one that names %s", err, place)
			}
		}
	}
	// An owner has one entry.
	if err := access.Replace(t.Context(), []directory.GrantEntry{{Owner: owner}, {Owner: owner}}); err == nil {
		t.Error("accepted two entries for one owner")
	}
	if grant, err := access.Grant(t.Context(), owner); err != nil || !grant.Patients.Has("p") {
		t.Errorf("grant %+v, error %v, want the old one", grant, err)
	}
}

func TestAGrantOfManyPatients(t *testing.T) {
	t.Parallel()
	const many = 300_000
	access := pgdir.NewAccess(open(t))
	entry := directory.GrantEntry{Owner: owner, Types: directory.NameList{All: true}}
	for n := range many {
		entry.Patients.Names = append(entry.Patients.Names, fmt.Sprintf("00000000-0000-0000-0000-%012d", n))
	}
	must(t, access.Set(t.Context(), entry))
	grant, err := access.Grant(t.Context(), owner)
	must(t, err)
	for _, name := range []string{entry.Patients.Names[0], entry.Patients.Names[many-1]} {
		if !grant.Patients.Has(name) {
			t.Errorf("%s is not allowed", name)
		}
	}
	if grant.Patients.Has("p") {
		t.Error("an unlisted patient is allowed")
	}
	list, err := access.List(t.Context())
	want := pgdir.Summary{Owner: owner, Types: pgdir.Count{Kind: "all"}, Groups: pgdir.Count{Kind: "only"},
		Patients: pgdir.Count{Kind: "only", Names: many}}
	if err != nil || len(list) != 1 || list[0] != want {
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
