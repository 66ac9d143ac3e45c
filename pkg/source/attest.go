package source

import (
	"slices"
	"strings"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// rules is the version of the rules by which Read finds subjects and references (1 to 255). Increment it when
// they change: a resource attested under another version is scanned again.
const rules = 1

const rulesMask = 0xff

// Attest returns a hash over Type, ID, Named, References and Body, with the version of the rules in its low byte; never
// 0. It shows that scanning Body under these rules gave the other fields, so a query or an update that mixes parts of
// different resources is detected. It is not a signature: a writer of the store can forge it.
func (r *Resource) Attest() uint64 {
	var space [256]byte
	head := append(append(append(space[:0], r.Type...), '/'), r.ID...)
	for _, subject := range r.Named {
		head = append(append(head, ' '), subject...)
	}
	head = append(append(head, '\n'), r.References...)
	return xxh3.HashSeed(r.Body, xxh3.Hash(head))&^rulesMask | rules
}

// Attested reports whether r has an attestation under the current rules.
func (r *Resource) Attested() bool { return r.Attestation&rulesMask == rules }

// Read sets the fields of r from a line, with an attestation: the patients of its subject-like links and its references
// to the referenced types (spec 10). facts are those that a fhir.Scanner found in body. Subjects becomes Named; the
// source adds the patients of the targets of a Provenance. Slices of r are reused.
func Read(r *Resource, facts fhir.Facts, body []byte) {
	r.Type, r.ID, r.Body = facts.Type, facts.ID, body
	r.Named = Named(r.Named[:0], facts)
	r.Subjects = r.Named
	r.References = appendReferences(r.References[:0], body)
	r.Attestation = r.Attest()
}

// Named appends the patients that a line names in its subject-like links, sorted, without duplicates.
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
