package groupndjson

import (
	"cmp"
	"encoding/json"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Member is one element of Group.member.
type Member struct {
	Entity   Entity `json:"entity"`
	Period   Period `json:"period"`
	Inactive bool   `json:"inactive"`
}

// Entity is a Reference to who the member is.
type Entity struct {
	Reference  string          `json:"reference"`
	Type       string          `json:"type"`
	Identifier json.RawMessage `json:"identifier"`
}

// UnmarshalJSON refuses keys that another parser could read otherwise, as fhir.Scanner does.
func (m *Member) UnmarshalJSON(object []byte) error {
	type plain Member
	return unmarshal(object, (*plain)(m), "entity", "period", "inactive")
}

// UnmarshalJSON is like that of Member.
func (e *Entity) UnmarshalJSON(object []byte) error {
	type plain Entity
	return unmarshal(object, (*plain)(e), "reference", "type", "identifier")
}

// UnmarshalJSON is like that of Member.
func (p *Period) UnmarshalJSON(object []byte) error {
	type plain Period
	return unmarshal(object, (*plain)(p), "start", "end")
}

func unmarshal(object []byte, to any, names ...string) error {
	if _, err := fhir.Members(object, names...); err != nil {
		return keyError{err}
	}
	return json.Unmarshal(object, to)
}

// keyError is the error of an object that parsers could read differently.
type keyError struct{ error }

// Resolver decides what references of members name.
type Resolver struct {
	Bases fhir.Bases // absolute references below these URLs are local
	URNs  bool       // urn:uuid:x and urn:oid:x name the resource with the id x
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
	typ, id, form := fhir.Classify(entity.Reference)
	ref = fhir.Ref{Type: typ, ID: id}
	switch form {
	case fhir.Foreign:
		if own, below := r.Bases.Literal(entity.Reference); below {
			ref, form = own, fhir.Local
		}
	case fhir.Urn:
		urn, _, _ := strings.Cut(entity.Reference, "#")
		ref = fhir.Ref{Type: cmp.Or(entity.Type, "Patient"), ID: urn[strings.LastIndexByte(urn, ':')+1:]}
	default:
	}
	isMember := ref.Type == "Patient" || ref.Type == "Group"
	switch {
	case ref.Type != "" && !isMember:
		return fhir.Ref{}, export.MemberType
	case form == fhir.Foreign:
		return fhir.Ref{}, export.MemberForeign
	case form == fhir.Local || form == fhir.Urn && r.URNs && fhir.IsID(ref.ID):
		return ref, ""
	}
	return fhir.Ref{}, export.MemberUnresolved
}

// Covers reports whether the member is active at the instant.
func (m Member) Covers(now time.Time) (bool, error) {
	from, until, err := m.Period.Span()
	begun := from == nil || !now.Before(*from)
	over := until != nil && !now.Before(*until)
	return err == nil && begun && !over && !m.Inactive, err
}
