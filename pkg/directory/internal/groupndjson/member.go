package groupndjson

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Member is one element of Group.member.
type Member struct {
	Entity struct {
		Reference  string          `json:"reference"`
		Type       string          `json:"type"`
		Identifier json.RawMessage `json:"identifier"`
	} `json:"entity"`
	Period   Period `json:"period"`
	Inactive bool   `json:"inactive"`
}

// Resolver decides what references of members name.
type Resolver struct {
	Bases []string // absolute references below these URLs are local
	URNs  bool     // urn:uuid:x and urn:oid:x name the resource with the id x
}

// Resolve returns the patient or the group that the member is, or else the reason why it is left out.
func (r Resolver) Resolve(m Member) (ref fhir.Ref, leftOut export.Reason) {
	entity := m.Entity
	if entity.Reference == "" {
		if len(entity.Identifier) > 0 && string(entity.Identifier) != "null" {
			return fhir.Ref{}, export.MemberByIdentifier
		}
		return fhir.Ref{}, export.MemberUnresolved
	}
	form, ref := classify(entity.Reference, r.Bases)
	if form == formURN {
		ref.Type = "Patient" // unless the member has a type
		if entity.Type != "" {
			ref.Type = entity.Type
		}
	}
	isMember := ref.Type == "Patient" || ref.Type == "Group"
	switch {
	case ref.Type != "" && !isMember:
		return fhir.Ref{}, export.MemberType
	case form == formForeign:
		return fhir.Ref{}, export.MemberForeign
	case form == formLocal || form == formURN && r.URNs && fhir.IsID(ref.ID):
		return ref, ""
	}
	return fhir.Ref{}, export.MemberUnresolved
}

// form is the form of a reference.
type form int

const (
	formInvalid     form = iota
	formLocal            // Type/id, with or without /_history/n and #fragment, relative or below an own base
	formURN              // urn:uuid:id or urn:oid:id; no type
	formConditional      // Type?query; no id
	formContained        // #id; no type and no id
	formForeign          // absolute, below another base; no type and no id if it is not that of a resource
)

// classify returns the form of a reference and what it names (spec 10). Only a local one names a resource of this server.
func classify(ref string, bases []string) (form, fhir.Ref) {
	if strings.HasPrefix(ref, "#") {
		return formContained, fhir.Ref{}
	}
	ref, _, _ = strings.Cut(ref, "#")
	for _, scheme := range []string{"urn:uuid:", "urn:oid:"} {
		if id, is := cutPrefixFold(ref, scheme); is {
			return formURN, fhir.Ref{ID: id}
		}
	}
	if _, absolute := cutScheme(ref); absolute {
		for _, base := range bases {
			if rest, below := cutBase(ref, base); below {
				return classifyRelative(rest)
			}
		}
		_, named := classifyRelative(lastSegments(ref))
		return formForeign, named
	}
	return classifyRelative(strings.TrimPrefix(ref, "/"))
}

func classifyRelative(ref string) (form, fhir.Ref) {
	if typ, _, conditional := strings.Cut(ref, "?"); conditional {
		if !fhir.IsType(typ) {
			return formInvalid, fhir.Ref{}
		}
		return formConditional, fhir.Ref{Type: typ}
	}
	if named, ok := fhir.ParseReference(ref); ok && fhir.IsType(ref[:strings.IndexByte(ref, '/')]) {
		return formLocal, named
	}
	return formInvalid, fhir.Ref{}
}

// cutScheme returns what follows http:// or https://.
func cutScheme(ref string) (rest string, ok bool) {
	for _, scheme := range []string{"http://", "https://"} {
		if rest, ok := cutPrefixFold(ref, scheme); ok {
			return rest, true
		}
	}
	return "", false
}

// cutBase returns what follows the base. Scheme and host are compared without case, as in any URL.
func cutBase(ref, base string) (rest string, ok bool) {
	base = strings.TrimRight(base, "/")
	host := len(base)
	if after, ok := cutScheme(base); ok {
		if slash := strings.IndexByte(after, '/'); slash >= 0 {
			host -= len(after) - slash
		}
	}
	if _, ok := cutPrefixFold(ref, base[:host]); !ok {
		return "", false
	}
	return strings.CutPrefix(ref[host:], base[host:]+"/")
}

// lastSegments returns the end of a URL that may be a relative reference: Type/id, Type/id/_history/n or Type?query.
func lastSegments(url string) string {
	path, _, conditional := strings.Cut(url, "?")
	segments := strings.Split(path, "/")
	n := 2
	switch {
	case conditional:
		return segments[len(segments)-1] + "?"
	case len(segments) > 4 && segments[len(segments)-2] == "_history":
		n = 4
	}
	return strings.Join(segments[max(len(segments)-n, 0):], "/")
}

func cutPrefixFold(s, prefix string) (rest string, ok bool) {
	if len(s) < len(prefix) || !strings.EqualFold(s[:len(prefix)], prefix) {
		return s, false
	}
	return s[len(prefix):], true
}

// Covers reports whether the member is active at the instant.
func (m Member) Covers(now time.Time) (bool, error) {
	from, until, err := m.Period.Span()
	begun := from == nil || !now.Before(*from)
	over := until != nil && !now.Before(*until)
	return err == nil && begun && !over && !m.Inactive, err
}
