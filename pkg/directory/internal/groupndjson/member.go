package groupndjson

import (
	"time"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Member is one element of Group.member.
type Member struct {
	Entity struct {
		Reference string `json:"reference"`
	} `json:"entity"`
	Period   Period `json:"period"`
	Inactive bool   `json:"inactive"`
}

// Patient returns the patient id of the member, and false for a member that is not a patient.
func (m Member) Patient() (id string, ok bool) {
	ref, ok := fhir.ParseReference(m.Entity.Reference)
	return ref.ID, ok && ref.Type == "Patient"
}

// Covers reports whether the member is active at the instant.
func (m Member) Covers(now time.Time) (bool, error) {
	from, until, err := m.Period.Span()
	begun := from == nil || !now.Before(*from)
	over := until != nil && !now.Before(*until)
	return err == nil && begun && !over && !m.Inactive, err
}
