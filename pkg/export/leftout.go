package export

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// LeftOut counts what an export does not contain, for one type and reason (spec 11).
type LeftOut struct {
	Type   string `json:"type,omitempty"` // resource type; "" when it is unknown, and for members of a group
	Reason Reason `json:"reason"`
	Count  int64  `json:"count"` // 0: the number is not for the owner of the export
}

// Reason says why something is left out. The set is closed, so a reason may be the label of a metric.
type Reason string

// Reasons for what cannot be read as a resource.
const (
	Malformed         Reason = "malformed"
	UnknownType       Reason = "unknown_type"
	TooLong           Reason = "too_long"
	TooManyReferences Reason = "too_many_references"
	UnreadableFile    Reason = "unreadable_file"
	UnsupportedEntry  Reason = "unsupported_entry"
)

// Reasons for resources of the patient compartment that no export of a group or of patients contains.
const (
	NoPatient         Reason = "no_patient"
	InvalidSubject    Reason = "invalid_subject"
	UnresolvedPatient Reason = "unresolved_patient"
	ForeignPatient    Reason = "foreign_patient"
)

// Reasons for resources that one export does not contain.
const (
	OtherPatient   Reason = "other_patient"
	UnknownPatient Reason = "unknown_patient"
	NotGranted     Reason = "not_granted"
)

// Reasons for references that were not followed. The type is the one that the reference names.
const (
	UnresolvedReference Reason = "unresolved_reference"
	ForeignReference    Reason = "foreign_reference"
)

// Reasons for attachments whose content is not served. The type is that of the resource, which is exported.
const (
	MissingAttachment  Reason = "missing_attachment"
	WithheldAttachment Reason = "withheld_attachment"
)

// Reasons for members of a group.
const (
	MemberByIdentifier Reason = "member_by_identifier"
	MemberUnresolved   Reason = "member_unresolved"
	MemberForeign      Reason = "member_foreign"
	MemberGroup        Reason = "member_group"
	MemberType         Reason = "member_type"
	MemberMissing      Reason = "member_missing"
)

// DeletionsUnknown is the reason of an incremental export whose window begins before the oldest deletion that the source
// knows.
const DeletionsUnknown Reason = "deletions_unknown"

// reasons has each reason with the severity and the code of its issue, and its text.
var reasons = map[Reason]struct{ severity, code, text string }{
	Malformed:           {"warning", "structure", "not readable as a FHIR resource"},
	UnknownType:         {"information", "not-supported", "not a resource type of FHIR R4"},
	TooLong:             {"warning", "too-long", "longer than the limit of a resource"},
	TooManyReferences:   {"warning", "too-costly", "more references than the limit of a resource"},
	UnreadableFile:      {"warning", "structure", "files that cannot be read to their end"},
	UnsupportedEntry:    {"warning", "not-supported", "entries of Bundles that cannot be applied"},
	NoPatient:           {"information", "incomplete", "not about a patient"},
	InvalidSubject:      {"warning", "incomplete", "the reference to the patient is not valid"},
	UnresolvedPatient:   {"warning", "incomplete", "the reference to the patient matches no resource, or several"},
	ForeignPatient:      {"warning", "incomplete", "the reference names a patient of another server"},
	OtherPatient:        {"information", "suppressed", "also about a patient outside the export"},
	UnknownPatient:      {"warning", "suppressed", "also about somebody who cannot be identified and may be another patient"},
	NotGranted:          {"information", "suppressed", "the grant does not include them"},
	UnresolvedReference: {"warning", "not-found", "references that match no resource, or several, and were not followed"},
	ForeignReference:    {"information", "not-found", "references to resources of other servers, which were not followed"},
	MissingAttachment:   {"warning", "not-found", "the content of attachments whose Binary is missing or unreadable"},
	WithheldAttachment:  {"warning", "suppressed", "the content of attachments whose Binary may be about another patient"},
	MemberByIdentifier:  {"warning", "incomplete", "members of the group that are named by an identifier only"},
	MemberUnresolved:    {"warning", "incomplete", "members of the group whose reference cannot be resolved to a patient"},
	MemberForeign:       {"warning", "incomplete", "members of the group that are patients of another server"},
	MemberGroup:         {"warning", "incomplete", "member groups that do not exist or cannot be exported"},
	MemberMissing:       {"warning", "not-found", "members of the group, or requested patients, that the data does not have"},
	MemberType:          {"information", "incomplete", "members of the group that are not patients"},
	DeletionsUnknown:    {"warning", "incomplete", "deletions before the oldest record; only a full export is without them"},
}

// Reasons returns every reason, sorted.
func Reasons() []Reason { return slices.Sorted(maps.Keys(reasons)) }

// Text returns the reason in words, for people. It is the reason itself for one that this version does not know.
func (r Reason) Text() string { return cmp.Or(reasons[r].text, string(r)) }

// Homeless reports whether the reason is that a resource of the compartment has no known patient. The system level
// exports those.
func (r Reason) Homeless() bool {
	return r == NoPatient || r == InvalidSubject || r == UnresolvedPatient || r == ForeignPatient
}

// Warning reports whether something that should be served is not. It is false for what is left out by design.
func (r Reason) Warning() bool { return reasons[r].severity != "information" }

// Warning reports whether data that the export should contain may be missing. What is of no known type, and a reference
// somewhere in the source, most likely does not concern the export.
func (l LeftOut) Warning() bool {
	elsewhere := l.Reason == UnresolvedReference || l.Type == "" && l.Reason == Malformed
	return l.Reason.Warning() && !elsewhere
}

// Outcome returns l for the owner of an export.
func (l LeftOut) Outcome() fhir.OperationOutcome {
	severity, number := "information", "some"
	if l.Warning() {
		severity = "warning"
	}
	if l.Count > 0 {
		number = fmt.Sprint(l.Count)
	}
	text := fmt.Sprintf("%s left out: %s.", number, l.Reason.Text())
	if l.Type != "" {
		text = l.Type + ": " + text
	}
	return fhir.Outcome(severity, cmp.Or(reasons[l.Reason].code, "incomplete"), text)
}

// Tally adds up what is left out. The zero Tally is ready to use. It is not safe for concurrent use.
type Tally struct{ counts map[LeftOut]int64 }

// Add counts n more of a type for a reason.
func (t *Tally) Add(typ string, reason Reason, n int64) {
	if n != 0 {
		t.AddAll([]LeftOut{{typ, reason, n}})
	}
}

// AddAll adds the counts of other lists, also of those without a number.
func (t *Tally) AddAll(list []LeftOut) {
	if t.counts == nil {
		t.counts = map[LeftOut]int64{}
	}
	for _, l := range list {
		t.counts[LeftOut{Type: l.Type, Reason: l.Reason}] += l.Count
	}
}

// Total returns the sum of all counts.
func (t *Tally) Total() int64 {
	total := int64(0)
	for _, n := range t.counts {
		total += n
	}
	return total
}

// List returns the counts, sorted by type and reason.
func (t *Tally) List() []LeftOut {
	list := make([]LeftOut, 0, len(t.counts))
	for l, n := range t.counts {
		list = append(list, LeftOut{l.Type, l.Reason, n})
	}
	slices.SortFunc(list, func(a, b LeftOut) int {
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Reason, b.Reason))
	})
	return list
}
