package export

import (
	"slices"

	"github.com/sluice-fhir/sluice/pkg/fhir"
)

// Kind is the work of a unit. All work for a job is done in units, which are claimed with a fence, kept alive by
// heartbeats and committed by one script, so any of it can be killed, repeated or delayed.
type Kind string

// The kinds of units, in the order of a job's life.
const (
	KindPlan              Kind = "plan"       // resolve the cohort, cut the units
	KindExport            Kind = "export"     // export one type of one slice of the cohort
	KindResolveReferences Kind = "references" // close the set of referenced resources, cut their units
	KindExportReferenced  Kind = "referenced" // export one referenced type
	KindExportAssociated  Kind = "associated" // export the Provenance of what was exported
	KindSeal              Kind = "seal"       // write the manifest
)

// Writes reports whether units of the kind write resources, most of the work of a job.
func (k Kind) Writes() bool {
	return k == KindExport || k == KindExportReferenced || k == KindExportAssociated
}

// UnitID names a unit within its job, such as "plan" or "Observation-00003". It has no dot and no slash, because it is
// part of object keys.
type UnitID string

// The units that have fixed ids.
const (
	PlanUnit       UnitID = "plan"
	ReferencesUnit UnitID = "references"
	SealUnit       UnitID = "seal"
)

// FirstUnit is the unit that a kick-off records with the job.
func FirstUnit() Unit { return Unit{ID: PlanUnit, Kind: KindPlan} }

// Next returns the unit to open after the last open unit, of the given kind, was closed: the references unit, if the job
// has a cohort and exports referenced types or associated data, else the seal, and the zero Unit after the seal. The system
// level exports the referenced types whole, so nothing is followed there; blocks of patients have theirs in them.
func (r Request) Next(closed Kind, emptyCohort bool) Unit {
	follows := !emptyCohort && r.OrganizedBy == "" &&
		(r.Associated != "" || r.AtLevel() != SystemLevel && slices.ContainsFunc(r.Types, fhir.IsReferenced))
	switch {
	case closed == KindSeal:
		return Unit{}
	case (closed == KindPlan || closed == KindExport) && follows:
		return Unit{ID: ReferencesUnit, Kind: KindResolveReferences}
	default:
		return Unit{ID: SealUnit, Kind: KindSeal}
	}
}

// Unit is one piece of work. It is stored once and never changes; its fence and attempts are kept beside it.
type Unit struct {
	ID    UnitID `json:"id"`
	Kind  Kind   `json:"kind"`
	Type  string `json:"type,omitempty"`  // resource type, for the kinds that write resources; "" if organized
	Scope Scope  `json:"scope,omitempty"` // which resources of the type, for KindExport
	Slice Slice  `json:"slice,omitzero"`  // the part of the cohort, or of the list of references
	// Input is the object key prefix of the list of references, for KindExportReferenced and ScopeLeading.
	Input string `json:"input,omitempty"`
	Bytes int64  `json:"bytes"` // estimated NDJSON bytes, for ordering and progress

	// Digest is what the list Input is verified against, lower-case hex.
	Digest string `json:"digest,omitempty"`

	// Kept is the object key prefix of the list of the Provenance that is exported, if Request.Associated limits it, and
	// KeptDigest what it is verified against.
	Kept       string `json:"kept,omitempty"`
	KeptDigest string `json:"keptDigest,omitempty"`

	// Types are the types that a unit of KindExport of organized output reads (Request.OrganizedBy): those of the request, and
	// for their references also those of Request.Through. Sorted, separated by commas. A unit of ScopeLeading reads them in
	// their order.
	Types string `json:"types,omitempty"`
}

// Organized reports whether the unit writes blocks of patients (P-37). They have all of its types.
func (u Unit) Organized() bool { return u.Kind == KindExport && u.Type == "" }

// Scope says which resources of its type a unit of KindExport reads.
type Scope string

// The scopes. All but the first are of jobs that workers of earlier versions do not run (Request.Plain).
const (
	ScopeCohort   Scope = ""         // those about the patients of its slice
	ScopeJoined   Scope = "joined"   // the same of those who joined (Cohort.Joined), whatever changed
	ScopeGone     Scope = "gone"     // the deletions of those who are gone (Cohort.Gone)
	ScopeFollowed Scope = "followed" // the same, only for their references: nothing is written
	ScopeLeading  Scope = "leading"  // those that lead to resources of the list Input: nothing is written
	ScopeAll      Scope = "all"      // all those in the slice's range of patients; the owner may see every patient
	ScopeNobody   Scope = "nobody"   // those that are about no patient
)

// ShortBytes is the largest estimate, in NDJSON bytes, of a short unit that writes files.
const ShortBytes = 16 << 20

// Short reports whether the unit takes well under a second by its estimate.
func (u Unit) Short() bool {
	return !u.Kind.Writes() || u.Bytes <= ShortBytes
}

// Slice is a run of chunks of a stored list: From <= chunk < To.
type Slice struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Lease is the right to run a unit while the unit has the lease's fence. Results under an older fence are discarded.
type Lease struct {
	Job      JobID
	Unit     Unit
	Fence    int64
	Failures int    // number of failed attempts before this one
	Trace    string // of its job
}

// Result is the recorded result of a closed unit.
type Result struct {
	Files []File `json:"files,omitempty"` // NDJSON of the unit's type, and of OperationOutcome
	// Attachments are the packs with the content of the attachments of Files. They are not in the manifest.
	Attachments []Pack `json:"attachments,omitempty"`

	References []string  `json:"references,omitempty"` // object keys of sorted runs of references seen
	Found      int64     `json:"found,omitempty"`      // resources that the source returned for this unit's own part
	Targets    []string  `json:"targets,omitempty"`    // the same of what was written or may be associated with it
	Withheld   int64     `json:"withheld,omitempty"`   // resources that also name a patient outside the cohort
	Filtered   int64     `json:"filtered,omitempty"`   // resources that a stage of the chain dropped, such as `_typeFilter`
	LeftOut    []LeftOut `json:"leftOut,omitempty"`    // what else the unit left out, by type and reason

	// Of an organized unit: Types has the numbers of each type, which the fields above sum up, and Headers is the number of
	// lines of its files that are headers of blocks.
	Types   []TypeNumbers `json:"types,omitempty"`
	Headers int64         `json:"headers,omitempty"`

	Failure string `json:"failure,omitempty"` // why the unit failed for good; then the other fields are empty
}

// Pack is one object with the content of attachments of resources of one type.
type Pack struct {
	Name   string `json:"name"`   // see PackName
	Type   string `json:"type"`   // of the resources that have the attachments
	Count  int64  `json:"count"`  // attachments
	Stored int64  `json:"stored"` // bytes of the plaintext
}

// TypeNumbers says what became of the resources of one type that belong to an organized unit. A resource counts once for
// each block that it belongs to.
type TypeNumbers struct {
	Type     string `json:"type"`
	Found    int64  `json:"found"` // the sum of the others
	Written  int64  `json:"written"`
	Filtered int64  `json:"filtered,omitempty"`
	Withheld int64  `json:"withheld,omitempty"`
}

// HeaderType is the resource type of the header of a block. It is the type of the files that have blocks.
const HeaderType = "Parameters"

// File is one NDJSON file of a job, immutable from the moment its unit is committed.
type File struct {
	Name  string `json:"name"`  // unique in the job, such as "Observation.Observation-00003.1.0.ndjson"
	Type  string `json:"type"`  // resource type of every line; HeaderType if the lines are blocks of patients
	Error bool   `json:"error"` // belongs to the manifest's error list

	Deleted   bool   `json:"deleted,omitempty"`   // belongs to the manifest's deleted list
	Of        string `json:"of,omitempty"`        // resource type of what is deleted; "": of several
	Continues string `json:"continues,omitempty"` // name of the file in which the last patient's block goes on (P-37)

	Key    string `json:"key"`    // object key of the gzipped file
	Count  int64  `json:"count"`  // lines
	Bytes  int64  `json:"bytes"`  // uncompressed size
	Stored int64  `json:"stored"` // compressed size, as the object store confirmed it
	SHA256 string `json:"sha256"` // of the compressed bytes, lower-case hex

	Encoder string `json:"encoder,omitempty"` // what compressed it (gzipblocks.Encoder); "" for a file of an earlier version

	Encrypted bool `json:"encrypted,omitempty"` // the object is encrypted; the fields above describe the plaintext

	// Blocks is the index of the compressed bytes (pkg/gzipblocks), for ranges of the text. It is empty for a file of one
	// block, and for one of an earlier version.
	Blocks string `json:"blocks,omitempty"`
}

// Organized reports whether the lines of the file are blocks of patients (P-37).
func (f File) Organized() bool { return f.Type == HeaderType && !f.Error && !f.Deleted }
