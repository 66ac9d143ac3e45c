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
	for _, test := range []struct{ reads, lists []string }{
		{[]string{"Patient", "Observation", "Group"}, []string{
			"system/*.read", "system/*.*", "system/*.rs", "system/*.r", "system/*.cruds", "user/*.rs",
		}},
		{[]string{"Patient"}, []string{
			"system/Patient.read", "system/Patient.*", "system/Patient.r", "system/Patient.rs", "system/Patient.cr",
			"system/Patient.rud", "user/Patient.read", "system/Patient.read Observation",
		}},
		{[]string{"Patient", "Observation"}, []string{"system/Patient.read system/Observation.rs"}},
		{[]string{"Patient", "Group"}, []string{"system/Patient.read  system/Group.rs"}},
		{[]string{"Group"}, []string{
			"patient/*.read system/Group.r system/Zzz.r", "system/Patient.s system/*.write user/Group.r",
		}},
		{nil, []string{
			"", " ", "launch fhirUser openid", "system/Patient.s", "system/*.s", "system/Patient.write", "system/Patient.c",
			"system/Patient.cud", "system/Patient.cuds", "system/Patient.sr", "system/Patient.dus", "system/Patient.rr",
			"system/Patient.xyz", "system/Patient.unknownAction", "system/Patient.reads", "system/Patient.READ",
			"system/Patient.", "system/Patient", "system/.read", "system/patient.read", "system/**.read",
			"system/Pat*.read", "system/Nonsense.read", "system/Nonsense.r", "System/Patient.read", "systems/Patient.read",
			"xsystem/Patient.read", "system/Patient.read\n", "system/Patient.read\tx", "patient/*.read",
			"patient/Patient.rs", "patient/Observation.rs?a=b", "launch/patient?x",
		}},
	} {
		for _, list := range test.lists {
			scopes, err := token.ParseScopes(list)
			must(t, err)
			for _, typ := range []string{"Patient", "Observation", "Group", "Nonsense", "*", ""} {
				if got := scopes.MayRead(typ); got != slices.Contains(test.reads, typ) {
					t.Errorf("%q may read %q: %v", list, typ, got)
				}
			}
		}
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
			t.Errorf("the error contains the scope: %v", err)
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
