package token_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// B-28 to B-37 and Z-10 to Z-12 at the resource server.
func TestParseScopes(t *testing.T) {
	probe := []string{"Patient", "Observation", "Group", "Nonsense", "*", ""}
	everything := []string{"Patient", "Observation", "Group"}
	for list, want := range map[string][]string{
		"":                                           nil,
		" ":                                          nil,
		"launch fhirUser openid":                     nil,
		"system/*.read":                              everything,
		"system/*.*":                                 everything,
		"system/*.rs":                                everything,
		"system/*.r":                                 everything,
		"system/*.cruds":                             everything,
		"user/*.rs":                                  everything,
		"system/Patient.read":                        {"Patient"},
		"system/Patient.*":                           {"Patient"},
		"system/Patient.r":                           {"Patient"},
		"system/Patient.rs":                          {"Patient"},
		"system/Patient.cr":                          {"Patient"},
		"system/Patient.rud":                         {"Patient"},
		"user/Patient.read":                          {"Patient"},
		"system/Patient.s":                           nil,
		"system/*.s":                                 nil,
		"system/Patient.write":                       nil,
		"system/Patient.c":                           nil,
		"system/Patient.cud":                         nil,
		"system/Patient.cuds":                        nil,
		"system/Patient.sr":                          nil,
		"system/Patient.dus":                         nil,
		"system/Patient.rr":                          nil,
		"system/Patient.xyz":                         nil,
		"system/Patient.unknownAction":               nil,
		"system/Patient.reads":                       nil,
		"system/Patient.READ":                        nil,
		"system/Patient.":                            nil,
		"system/Patient":                             nil,
		"system/.read":                               nil,
		"system/patient.read":                        nil,
		"system/**.read":                             nil,
		"system/Pat*.read":                           nil,
		"system/Nonsense.read":                       nil,
		"system/Nonsense.r":                          nil,
		"System/Patient.read":                        nil,
		"systems/Patient.read":                       nil,
		"xsystem/Patient.read":                       nil,
		"system/Patient.read\n":                      nil,
		"system/Patient.read\tx":                     nil,
		"patient/*.read":                             nil,
		"patient/Patient.rs":                         nil,
		"patient/Observation.rs?a=b":                 nil,
		"launch/patient?x":                           nil,
		"system/Patient.read Observation":            {"Patient"},
		"system/Patient.read system/Observation.rs":  {"Patient", "Observation"},
		"system/Patient.read  system/Group.rs":       {"Patient", "Group"},
		"patient/*.read system/Group.r system/Zzz.r": {"Group"},
		"system/Patient.s system/*.write user/Group.r": {"Group"},
	} {
		t.Run(list, func(t *testing.T) {
			scopes, err := token.ParseScopes(list)
			must(t, err)
			for _, typ := range probe {
				if got := scopes.MayRead(typ); got != slices.Contains(want, typ) {
					t.Errorf("may read %q: %v", typ, got)
				}
			}
		})
	}
}

// Z-10 and B-37: a scope with a filter is never granted without it.
func TestParseScopesRefusesGranularScopes(t *testing.T) {
	for _, list := range []string{
		"system/Observation.rs?category=laboratory", "user/Observation.rs?category=laboratory",
		"system/*.rs system/Observation.rs?a=b", "system/Observation.rs?a=b system/*.rs", "system/Observation.rs?",
		"system/Observation?a=b", "system/Observation.c?a=b", "system/Nonsense.rs?a=b",
	} {
		scopes, err := token.ParseScopes(list)
		if !errors.Is(err, token.ErrGranularScope) || scopes.MayRead("Patient") || scopes.MayRead("Observation") {
			t.Errorf("%q: error %v, want ErrGranularScope and nothing granted", list, err)
		}
		if err != nil && strings.Contains(err.Error(), "Observation") {
			t.Errorf("the error repeats the scope: %v", err)
		}
	}
}

func FuzzParseScopes(f *testing.F) {
	for _, seed := range []string{
		"", "system/*.read", "system/Patient.rs user/Observation.cruds", "system/Observation.rs?category=x", "patient/*.r",
		"system/Patient.s", "system/Nonsense.read openid", "system/Patient.dus", "  system/Group.r\t", "system/*.*?",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, list string) {
		scopes, err := token.ParseScopes(list)
		words := strings.Split(list, " ")
		for _, typ := range []string{"Patient", "Observation", "Nonsense"} {
			granted := false
			for _, word := range words {
				context, rest, _ := strings.Cut(word, "/")
				name, action, _ := strings.Cut(rest, ".")
				granted = granted || (context == "system" || context == "user") && (name == typ || name == "*") &&
					(action == "*" || strings.Contains(action, "r")) && !strings.Contains(word, "?") && typ != "Nonsense"
			}
			if scopes.MayRead(typ) && (!granted || err != nil) {
				t.Errorf("%q reads %s, error %v", list, typ, err)
			}
		}
		slices.Reverse(words)
		reversed, reversedErr := token.ParseScopes(strings.Join(words, " "))
		if (err == nil) != (reversedErr == nil) || scopes.MayRead("Patient") != reversed.MayRead("Patient") {
			t.Errorf("%q depends on the order", list)
		}
	})
}
