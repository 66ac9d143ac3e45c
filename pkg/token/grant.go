package token

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// ErrScope refuses a scope that the token service never grants, or what is left of a request when nothing is.
var ErrScope = errors.New("invalid scope")

// asked is one scope of a request: its resource type or *, and how its right to read is spelled.
type asked struct{ typ, read string }

// CheckScopes reports ErrScope when a list of scopes names one that is never granted to a backend service, or none at
// all. The text says which one by its number in the list and never repeats it.
//
// Never granted are: other contexts than system/ (patient/ and user/ need somebody who is not there, Z-12), and
// what is no resource scope (launch, openid, fhirUser); types that FHIR R4 does not have; actions that SMART does not
// have, or letters out of the order c r u d s; scopes that only write, or only search; and scopes with a query, whose
// filter would not be applied (Z-10).
func CheckScopes(list string) error {
	_, err := readScopes(list)
	return err
}

// NarrowScopes returns what of the asked scopes a client with the registered ones is granted: of each asked type what is
// registered too, and of its actions those that read. A scope of SMART v1 is answered in v1 and one of v2 in v2: of
// .* there remains .read, and of .cruds there remains .rs. It is ErrScope when one of the asked is never granted
// (CheckScopes), or when nothing remains.
func NarrowScopes(list, registered string) (string, error) {
	wanted, err := readScopes(list)
	if err != nil {
		return "", err
	}
	allowed, err := readScopes(registered)
	if err != nil {
		return "", fmt.Errorf("registration: %w", err)
	}
	var granted []string
	seen := make(map[string]bool) // a type counts once, so that a token's size has a bound
	grant := func(typ, read, registered string) {
		if read == "rs" && registered == "r" { // search was not registered
			read = registered
		}
		if !seen[typ] {
			seen[typ] = true
			granted = append(granted, "system/"+typ+"."+read)
		}
	}
	for _, want := range wanted {
		for _, may := range allowed {
			switch {
			case may.typ == "*" || may.typ == want.typ:
				grant(want.typ, want.read, may.read)
			case want.typ == "*":
				grant(may.typ, want.read, may.read)
			}
		}
	}
	if len(granted) == 0 {
		return "", fmt.Errorf("%w: none of those asked for is among those registered", ErrScope)
	}
	return strings.Join(granted, " "), nil
}

func readScopes(list string) ([]asked, error) {
	var scopes []asked
	for scope := range strings.SplitSeq(list, " ") {
		if scope == "" { // one blank too many harms nobody
			continue
		}
		read, err := readAsked(scope)
		if err != nil {
			return nil, fmt.Errorf("%w: number %d of the list %w", ErrScope, len(scopes)+1, err)
		}
		scopes = append(scopes, read)
	}
	if len(scopes) == 0 {
		return nil, fmt.Errorf("%w: the list is empty", ErrScope)
	}
	return scopes, nil
}

func readAsked(scope string) (asked, error) {
	if !strings.HasPrefix(scope, "system/") {
		return asked{}, errors.New("is not in the context system/")
	}
	if strings.Contains(scope, "?") {
		return asked{}, errors.New("has a query, which is not supported")
	}
	form := scopeForm.FindStringSubmatch(scope)
	if form == nil || form[2] == "" {
		return asked{}, errors.New("is not a scope of SMART v1 or v2")
	}
	typ, actions := form[1], form[2]
	switch {
	case typ != "*" && !fhir.IsType(typ):
		return asked{}, errors.New("names no resource type of FHIR R4")
	case !readActions.MatchString(actions):
		return asked{}, errors.New("does not read")
	case actions == "read" || actions == "*":
		return asked{typ, "read"}, nil
	case strings.HasSuffix(actions, "s"):
		return asked{typ, "rs"}, nil
	}
	return asked{typ, "r"}, nil
}
