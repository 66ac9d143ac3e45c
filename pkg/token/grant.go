package token

import (
	"errors"
	"fmt"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// ErrScope is returned for a scope that the token service never grants, and when no requested scope can be granted.
var ErrScope = errors.New("invalid scope")

// readScope is a scope that can be granted: its resource type or *, and its actions, reduced to those that read.
type readScope struct{ typ, actions string }

// CheckScopes returns ErrScope when a list is empty or has a scope that is never granted to a backend service. The error
// has the scope's number in the list, not its text.
//
// These are never granted: contexts other than system/ (patient/ and user/ need a user, Z-12); scopes that are not for
// resources (launch, openid, fhirUser); types that are not in FHIR R4; unknown actions, or letters out of the order
// c r u d s; scopes that only write or only search; and scopes with a query, because the filter would not be applied
// (Z-10).
func CheckScopes(list string) error {
	_, err := parseReadScopes(list)
	return err
}

// NarrowScopes returns the requested scopes reduced to the registered types and to the actions that read. A SMART v1 scope
// stays v1 and a v2 scope stays v2: .* becomes .read, and .cruds becomes .rs. The error is ErrScope when a requested scope
// is never granted (CheckScopes), or when nothing remains.
func NarrowScopes(requested, registered string) (string, error) {
	wanted, err := parseReadScopes(requested)
	if err != nil {
		return "", err
	}
	allowed, err := parseReadScopes(registered)
	if err != nil {
		return "", fmt.Errorf("registration: %w", err)
	}
	var granted []string
	seen := make(map[string]bool) // each type once, which limits the token's size
	for _, want := range wanted {
		for _, may := range allowed {
			typ, actions := want.typ, want.actions
			switch {
			case may.typ == "*" || may.typ == want.typ:
			case want.typ == "*":
				typ = may.typ
			default:
				continue
			}
			if actions == "rs" && may.actions == "r" { // search is not registered
				actions = "r"
			}
			if !seen[typ] {
				seen[typ] = true
				granted = append(granted, "system/"+typ+"."+actions)
			}
		}
	}
	if len(granted) == 0 {
		return "", fmt.Errorf("%w: none of the requested scopes is registered", ErrScope)
	}
	return strings.Join(granted, " "), nil
}

func parseReadScopes(list string) ([]readScope, error) {
	var scopes []readScope
	for scope := range strings.SplitSeq(list, " ") {
		if scope == "" {
			continue
		}
		read, err := parseReadScope(scope)
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

func parseReadScope(scope string) (readScope, error) {
	if !strings.HasPrefix(scope, "system/") {
		return readScope{}, errors.New("is not in the context system/")
	}
	if strings.Contains(scope, "?") {
		return readScope{}, errors.New("has a query, which is not supported")
	}
	form := scopeForm.FindStringSubmatch(scope)
	if form == nil || form[2] == "" {
		return readScope{}, errors.New("is not a scope of SMART v1 or v2")
	}
	typ, actions := form[1], form[2]
	switch {
	case typ != "*" && !fhir.IsType(typ):
		return readScope{}, errors.New("has no resource type of FHIR R4")
	case !readActions.MatchString(actions):
		return readScope{}, errors.New("does not allow reading")
	case actions == "read" || actions == "*":
		return readScope{typ, "read"}, nil
	case strings.HasSuffix(actions, "s"):
		return readScope{typ, "rs"}, nil
	}
	return readScope{typ, "r"}, nil
}
