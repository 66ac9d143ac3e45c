package source

import (
	"slices"

	"github.com/zeebo/xxh3"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Rules is the version of the rules by which Read finds subjects and references (1 to 255). Increment it when
// they change: a resource attested under another version is scanned again.
const Rules = 3

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
	return xxh3.HashSeed(r.Body, xxh3.Hash(head))&^rulesMask | Rules
}

// Attested reports whether r has an attestation under the current rules.
func (r *Resource) Attested() bool { return r.Attestation&rulesMask == Rules }

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

// Subjects that are no patient ids. They sort after all of them, and no cohort contains them.
const (
	// Somebody stands for subjects that cannot be identified and may be patients (spec 10).
	Somebody = "~"
	// Foreigner stands for subjects that are patients of another server.
	Foreigner = "~foreign"
)

// Named appends the patients that a line names in its subject-like links, sorted, without duplicates. Somebody and
// Foreigner follow if the line also names such subjects. A line of the compartment that names no patient has none of
// them, except for a Provenance, whose patients are those of its targets.
func Named(list []string, facts fhir.Facts) []string {
	if facts.Type == "Patient" {
		list = append(list, facts.ID)
	}
	for _, subject := range facts.Subjects {
		if subject.Type == "Patient" {
			list = append(list, subject.ID)
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) == 0 && facts.Type != "Provenance" && !fhir.IsReferenced(facts.Type) {
		return list
	}
	if facts.Unresolved+facts.Invalid > 0 {
		list = append(list, Somebody)
	}
	if facts.Foreign > 0 {
		list = append(list, Foreigner)
	}
	return list
}

// Homeless returns why a line of the compartment that names no patient is in no export.
func Homeless(facts fhir.Facts) export.Reason {
	switch {
	case facts.Unresolved > 0:
		return export.UnresolvedPatient
	case facts.Foreign > 0:
		return export.ForeignPatient
	case facts.Invalid > 0:
		return export.InvalidSubject
	}
	return export.NoPatient
}

// appendReferences appends the references of the body to the referenced types, each once.
func appendReferences(list, body []byte) []byte {
	const few = 16 // so few are compared one by one
	var known []fhir.Ref
	var seen map[fhir.Ref]bool
	fhir.References(body, func(ref fhir.Ref) bool {
		if !fhir.IsReferenced(ref.Type) || seen[ref] || seen == nil && slices.Contains(known, ref) {
			return true
		}
		if known = append(known, ref); seen != nil {
			seen[ref] = true
		} else if len(known) == few {
			seen = make(map[fhir.Ref]bool, 2*few)
			for _, ref := range known {
				seen[ref] = true
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
