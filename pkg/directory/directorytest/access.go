package directorytest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
)

// OpenAccess returns an implementation with the entries. Types and Groups with All have no Names.
type OpenAccess func(t *testing.T, entries []directory.GrantEntry) directory.Access

// Access tests the contract of directory.Access.
func Access(t *testing.T, open OpenAccess) {
	all := directory.NameList{All: true}
	only := func(names ...string) directory.NameList { return directory.NameList{Names: names} }
	owner := func(issuer, subject string) export.Owner { return export.Owner{Issuer: issuer, Subject: subject} }
	type list = directory.NameList
	entry := func(issuer, subject string, types, groups, patients list) directory.GrantEntry {
		return directory.GrantEntry{Owner: owner(issuer, subject), Types: types, Groups: groups, Patients: patients}
	}
	at := func(entry directory.GrantEntry, levels ...export.Level) directory.GrantEntry {
		entry.Levels = levels
		return entry
	}
	access := open(t, []directory.GrantEntry{
		at(entry("https://a.example", "full", all, all, all), export.SystemLevel, export.GroupLevel, export.PatientLevel),
		at(entry("https://a.example", "narrow", only("Patient", "Observation"), only("g1", "007"), only("p1", "1e3")),
			export.PatientLevel),
		entry("https://a.example", "except", all, all, list{All: true, Names: []string{"p1"}}),
		entry("https://a.example", "nothing", only(), only(), only()),
		entry("https://b.example", "narrow", only("Condition"), all, all),
		entry("https://a.example", "123", only("Patient"), all, all),
		entry("https://a.example", "true", only("Group"), all, all),
	})
	type probe struct{ kind, name string }
	probes := []probe{
		{"type", "Patient"}, {"type", "Observation"}, {"type", "Condition"}, {"type", "patient"}, {"type", "all"},
		{"group", "g1"}, {"group", "g2"}, {"group", "007"}, {"group", "7"}, {"group", "G1"},
		{"patient", "p1"}, {"patient", "p2"}, {"patient", "1e3"}, {"patient", "1000"}, {"patient", "Patient/p1"},
		{"type", ""}, {"group", ""}, {"patient", ""},
		{"level", "patient"}, {"level", "system"}, {"level", "group"}, {"level", ""},
	}
	everything := func(p probe) bool { return p.name != "" }
	nothing := func(p probe) bool { return p == probe{"level", "group"} } // which alone allows nothing
	among := func(allowed ...probe) func(probe) bool {
		return func(p probe) bool {
			for _, one := range allowed {
				if one == p || one.name == "*" && one.kind == p.kind && p.name != "" {
					return true
				}
			}
			return false
		}
	}
	for name, test := range map[string]struct {
		owner export.Owner
		want  func(probe) bool
	}{
		"everything": {owner("https://a.example", "full"), everything},
		"lists": {owner("https://a.example", "narrow"), among(probe{"type", "Patient"}, probe{"type", "Observation"},
			probe{"group", "g1"}, probe{"group", "007"}, probe{"patient", "p1"}, probe{"patient", "1e3"},
			probe{"level", "patient"})},
		"all but": {owner("https://a.example", "except"), func(p probe) bool {
			return p.name != "" && p != probe{"patient", "p1"} && p != probe{"level", "patient"} && p != probe{"level", "system"}
		}},
		// pitfall 1: an empty list allows nothing, not everything.
		"empty lists": {owner("https://a.example", "nothing"), nothing},
		"the same subject of another issuer": {owner("https://b.example", "narrow"),
			among(probe{"type", "Condition"}, probe{"group", "*"}, probe{"patient", "*"}, probe{"level", "group"})},
		"a subject of digits": {owner("https://a.example", "123"),
			among(probe{"type", "Patient"}, probe{"group", "*"}, probe{"patient", "*"}, probe{"level", "group"})},
		"a subject that is a word of YAML": {owner("https://a.example", "true"),
			among(probe{"type", "Group"}, probe{"group", "*"}, probe{"patient", "*"}, probe{"level", "group"})},
		"unknown subject":      {owner("https://a.example", "unknown"), nothing},
		"unknown issuer":       {owner("https://c.example", "full"), nothing},
		"subject in capitals":  {owner("https://a.example", "FULL"), nothing},
		"issuer with a slash":  {owner("https://a.example/", "full"), nothing},
		"no subject":           {owner("https://a.example", ""), nothing},
		"no issuer or subject": {owner("", ""), nothing},
		"issuer and subject":   {owner("", "https://a.examplefull"), nothing},
		"a pattern":            {owner("https://a.example", "%"), nothing},
		"a pattern of a shell": {owner("*", "*"), nothing},
	} {
		t.Run(name, func(t *testing.T) {
			grant, err := access.Grant(t.Context(), test.owner)
			if err != nil {
				t.Fatal(err)
			}
			all, patients := read(t, access, test.owner)
			for _, p := range probes {
				var got bool
				switch p.kind {
				case "type":
					got = grant.Types.Has(p.name)
					if all.Types.Has(p.name) != got {
						t.Errorf("type %q: Patients differs from Grant", p.name)
					}
				case "group":
					got = grant.Groups.Has(p.name)
					if all.Groups.Has(p.name) != got {
						t.Errorf("group %q: Patients differs from Grant", p.name)
					}
				case "level":
					got = grant.Levels.Has(export.Level(p.name))
					if all.Levels.Has(export.Level(p.name)) != got {
						t.Errorf("level %q: Patients differs from Grant", p.name)
					}
				default:
					got = slices.Contains(patients, p.name)
					if grant.Few != nil && grant.Few.Has(p.name) != got {
						t.Errorf("patient %q: Few differs from Patients", p.name)
					}
				}
				if got != test.want(p) {
					t.Errorf("%s %q: allowed %v, want %v", p.kind, p.name, got, !got)
				}
			}
		})
	}
	t.Run("patients in any order, twice", func(t *testing.T) {
		names := []string{"p3", "p-1", "P2", "p.1", "p3", "p10", "p1"}
		patients := []string{"0", "P2", "p-1", "p-1", "p.1", "p1", "p10", "p2", "p3", "p30"}
		access := open(t, []directory.GrantEntry{
			entry("i", "only", all, all, only(names...)), entry("i", "except", all, all, list{All: true, Names: names}),
		})
		for subject, want := range map[string][]string{
			"only": {"P2", "p-1", "p-1", "p.1", "p1", "p10", "p3"}, "except": {"0", "p2", "p30"},
		} {
			var got []string
			must(t, access.Patients(t.Context(), owner("i", subject),
				func(_ directory.Grant, filter *directory.PatientFilter) error {
					for _, patient := range patients {
						included, err := filter.Includes(patient)
						must(t, err)
						if included {
							got = append(got, patient)
						}
					}
					if _, err := filter.Includes("p2"); err == nil {
						t.Error("an id that is not in ascending order is answered")
					}
					return nil
				}))
			if !slices.Equal(got, want) {
				t.Errorf("%s: got %q, want %q", subject, got, want)
			}
		}
	})
	t.Run("short and long lists", func(t *testing.T) {
		long := make([]string, 2000)
		for n := range long {
			long[n] = fmt.Sprintf("%x", sha256.Sum256([]byte{byte(n), byte(n >> 8)}))
		}
		access := open(t, []directory.GrantEntry{
			entry("i", "short", all, all, only(long[:10]...)), entry("i", "long", all, all, only(long...)),
		})
		for subject, want := range map[string]bool{"short": true, "long": false} {
			grant, err := access.Grant(t.Context(), owner("i", subject))
			if err != nil || (grant.Few != nil) != want || want && (!grant.Few.Has(long[9]) || grant.Few.Has(long[10])) {
				t.Errorf("%s: few %v, error %v", subject, grant.Few != nil, err)
			}
		}
	})
	t.Run("an error of the caller", func(t *testing.T) {
		enough := errors.New("enough")
		for _, subject := range []string{"except", "unknown"} {
			err := access.Patients(t.Context(), owner("https://a.example", subject),
				func(directory.Grant, *directory.PatientFilter) error { return enough })
			if err != enough { //nolint:errorlint // unchanged
				t.Errorf("%s: got %v, want the same error", subject, err)
			}
		}
	})
	t.Run("without entries", func(t *testing.T) {
		grant, patients := read(t, open(t, nil), owner("https://a.example", "full"))
		if grant.Types.Has("Patient") || grant.Groups.Has("g1") || len(patients) > 0 {
			t.Errorf("grant %+v, patients %q, want nothing", grant, patients)
		}
	})
	t.Run("a cancelled context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		grant, err := access.Grant(ctx, owner("https://a.example", "full"))
		if !errors.Is(err, context.Canceled) || grant.Types.Has("Patient") {
			t.Errorf("grant %+v, error %v, want context.Canceled and nothing", grant, err)
		}
		err = access.Patients(ctx, owner("https://a.example", "full"), func(directory.Grant, *directory.PatientFilter) error {
			t.Error("the grant is used")
			return nil
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("Patients: %v, want context.Canceled", err)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var askers sync.WaitGroup
		for range 8 {
			askers.Go(func() {
				grant, err := access.Grant(t.Context(), owner("https://a.example", "full"))
				if err != nil || !grant.Types.Has("Patient") {
					t.Errorf("grant %+v, error %v", grant, err)
				}
			})
		}
		askers.Wait()
	})
}

// probed are the patients that read asks for, in ascending order.
var probed = []string{"", "1000", "1e3", "Patient/p1", "p1", "p2"}

// read returns the grant that Patients reads, and the probed patients that it includes.
func read(t *testing.T, access directory.Access, owner export.Owner) (grant directory.Grant, patients []string) {
	t.Helper()
	must(t, access.Patients(t.Context(), owner, func(g directory.Grant, filter *directory.PatientFilter) error {
		grant = g
		for _, patient := range probed {
			included, err := filter.Includes(patient)
			if included {
				patients = append(patients, patient)
			}
			must(t, err)
		}
		return nil
	}))
	return grant, patients
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
