package source

import (
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// rules numbers the rules by which Read tells subjects and references (1 to 255). A change of what a line says is a
// new number: what was attested under another one is read again.
const rules = 1

const rulesMask = 0xff

// Attest returns what vouches for r: that a reading of Body under the rules of now gave Type, ID, Named and References.
// It is a fast hash with the number of the rules in its low byte, never 0. It shows that the parts belong together, so
// that a query or an update that mixes them up is noticed; it is no signature, and who can write to the store can
// forge it as well as the body itself.
func (r *Resource) Attest() uint64 {
	var space [256]byte
	head := append(append(append(space[:0], r.Type...), '/'), r.ID...)
	for _, subject := range r.Named {
		head = append(append(head, ' '), subject...)
	}
	head = append(append(head, '\n'), r.References...)
	return xxh3.HashSeed(r.Body, xxh3.Hash(head))&^rulesMask | rules
}

// Attested reports whether r carries an attestation under the rules of now. One under other rules counts as none.
func (r *Resource) Attested() bool { return r.Attestation&rulesMask == rules }

// Read fills r with what the line says, attested: the patients by its subject-like links and the referenced types that
// it names (spec 10). facts are what a fhir.Scanner found in body. Subjects are the same patients: those of what a
// Provenance targets are for the source to add. Slices of r are used again.
func Read(r *Resource, facts fhir.Facts, body []byte) {
	r.Type, r.ID, r.Body = facts.Type, facts.ID, body
	r.Named = Named(r.Named[:0], facts)
	r.Subjects = r.Named
	r.References = appendReferences(r.References[:0], body)
	r.Attestation = r.Attest()
}

// Named appends the patients that a line names by its subject-like links, sorted, each once.
func Named(list []string, facts fhir.Facts) []string {
	if facts.Type == "Patient" {
		list = append(list, facts.ID)
	}
	for _, subject := range facts.Subjects {
		if subject.Type == "Patient" && !slices.Contains(list, subject.ID) {
			list = append(list, subject.ID)
		}
	}
	slices.Sort(list)
	return list
}

func appendReferences(list, body []byte) []byte {
	fhir.References(body, func(ref fhir.Ref) bool {
		if !fhir.IsReferenced(ref.Type) {
			return true
		}
		for known := range strings.FieldsSeq(string(list)) {
			if typ, id, _ := strings.Cut(known, "/"); typ == ref.Type && id == ref.ID {
				return true
			}
		}
		if len(list) > 0 {
			list = append(list, ' ')
		}
		list = append(append(append(list, ref.Type...), '/'), ref.ID...)
		return true
	})
	return list
}
