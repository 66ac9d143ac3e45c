package token

import (
	"errors"
	"regexp"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Scopes are the resource types that a token may read. The zero Scopes allow nothing.
//
// They come from SMART scopes in the contexts system/ and user/ (the access directory's grant for the subject is the
// user's context): v1 .read and .*, and v2 letters in the order c r u d s. Reading needs the letter r: .r, .rs and .cruds
// allow it. An export resembles a search, but r alone is enough, because s adds the right to filter, not to read more. s
// alone is not enough (Z-11), because it gives no right to whole resources. Scopes for writing, in the context
// patient/, with unknown types, or of any other form (openid, .dus) allow nothing.
type Scopes struct {
	all   bool
	types map[string]bool
}

// ErrGranularScope is returned for a scope with a query, such as system/Observation.rs?category=laboratory. Without its
// filter it would disclose more than allowed (Z-10).
var ErrGranularScope = errors.New("a scope with a query is not supported")

// The type and the actions of a scope: a v1 word, or v2 letters, each at most once and in order.
var (
	scopeForm   = regexp.MustCompile(`^(?:system|user)/(\*|[A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)$`)
	readActions = regexp.MustCompile(`^(?:read|\*|c?ru?d?s?)$`)
)

// ParseScopes reads a space-separated list of scopes. A granular scope is an error for the whole list (ErrGranularScope).
func ParseScopes(list string) (Scopes, error) {
	var scopes Scopes
	for scope := range strings.SplitSeq(list, " ") {
		if granular(scope) {
			return Scopes{}, ErrGranularScope
		}
		form := scopeForm.FindStringSubmatch(scope)
		if form == nil || !readActions.MatchString(form[2]) {
			continue
		}
		switch typ := form[1]; {
		case typ == "*":
			scopes.all = true
		case fhir.IsType(typ):
			if scopes.types == nil {
				scopes.types = make(map[string]bool)
			}
			scopes.types[typ] = true
		}
	}
	return scopes, nil
}

func granular(scope string) bool {
	return strings.Contains(scope, "?") &&
		(strings.HasPrefix(scope, "system/") || strings.HasPrefix(scope, "user/"))
}

// MayRead reports whether resources of the type may be read. Types that are not in FHIR R4 may not.
func (s Scopes) MayRead(typ string) bool {
	return s.types[typ] || s.all && fhir.IsType(typ)
}
