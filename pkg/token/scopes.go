package token

import (
	"errors"
	"regexp"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Scopes are the resource types that a token may read. The zero Scopes allow nothing.
//
// Read from SMART scopes in the contexts system/ and user/ (whose out-of-band context is the grant that the access
// directory has for the subject): v1 .read and .*, and v2 letters in the order c r u d s. Reading needs the letter
// r: .r, .rs and .cruds allow it. An export is a search-like read, yet r alone suffices, because s adds the right to
// filter and not to see more; s alone does not (Z-11), because it gives no right to whole resources. Scopes
// for writing, in the context patient/, with unknown types, or of any other form (openid, .dus) allow nothing.
type Scopes struct {
	all   bool
	types map[string]bool
}

// ErrGranularScope refuses a scope that narrows a type by a query, such as system/Observation.rs?category=laboratory.
// Granting it without its filter would disclose more than was allowed (Z-10).
var ErrGranularScope = errors.New("a scope with a query is not supported")

// The types and actions of a scope: v1 words or v2 letters, each at most once and in order.
var (
	scopeForm   = regexp.MustCompile(`^(?:system|user)/(\*|[A-Za-z]+)\.(read|write|\*|c?r?u?d?s?)$`)
	readActions = regexp.MustCompile(`^(?:read|\*|c?ru?d?s?)$`)
)

// ParseScopes reads a space-separated list of scopes. One granular scope refuses the whole list with
// ErrGranularScope.
func ParseScopes(list string) (Scopes, error) {
	var scopes Scopes
	for scope := range strings.SplitSeq(list, " ") {
		if narrowed(scope) {
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

func narrowed(scope string) bool {
	return strings.Contains(scope, "?") &&
		(strings.HasPrefix(scope, "system/") || strings.HasPrefix(scope, "user/"))
}

// MayRead reports whether resources of the type may be read. No scope allows what is not a resource type of FHIR R4.
func (s Scopes) MayRead(typ string) bool {
	return s.types[typ] || s.all && fhir.IsType(typ)
}
