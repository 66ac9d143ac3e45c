// Package source is the contract between the workers and the clinical data. A driver (ndjson, postgres) reads one kind
// of store; sourcetest is the suite that every driver passes.
//
// A source promises completeness and attribution: a call returns every resource about its patients, each once, with all
// of its subjects. It does not check access: the worker checks every resource against the job's cohort before it writes
// a line.
package source

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/typefilter"
)

// Source reads the clinical data. Methods may be called concurrently and repeatedly: the same arguments give the same
// resources as long as the data has not changed.
type Source interface {
	// Snapshot returns the instant of a job's reads, in whole seconds: every later call with it as AsOf returns the
	// state at that instant, regardless of later writes. It comes from the store's clock, so a running write cannot
	// get an earlier instant. A store without history returns now.
	Snapshot(ctx context.Context, now time.Time) (time.Time, error)

	// Sizes returns the size of every type in the store. Estimates are enough.
	Sizes(ctx context.Context) (Sizes, error)

	// ForPatients streams every resource of q.Type that is about any of q.Patients, each once per call, in any order. A
	// resource about several patients is in the call for each of them, always with all of its Subjects: the worker
	// writes it in one of those calls and skips it in the others. An error from yield ends the stream and is returned
	// unchanged. An empty q.Patients returns nothing: an empty filter never means all patients.
	ForPatients(ctx context.Context, q Query, yield func(Resource) error) error

	// ByID streams the resources of q.Type with the ids q.IDs; it ignores unknown ids. Only the types of HasByID are
	// allowed.
	ByID(ctx context.Context, q ByIDQuery, yield func(Resource) error) error

	// About streams the Provenance resources that have no patient (every target is of a referenced type)
	// and target at least one of q.Refs. A Provenance with several targets may be in several calls.
	About(ctx context.Context, q AboutQuery, yield func(Resource) error) error

	// Patients streams the ids of the Patient resources that reads as of asOf show, ascending, each once.
	Patients(ctx context.Context, asOf time.Time, yield func(id string) error) error

	// NewPatients streams those of Patients(asOf) that reads as of after do not show, ascending, each once. A source
	// without history may return more.
	NewPatients(ctx context.Context, after, asOf time.Time, yield func(id string) error) error

	// Deleted streams the resources of q.Type whose patients changed in the window of q, or that were deleted in it, by the
	// patients that they had before. It may return one that began in the window too; a source without history returns what
	// it knows. The worker decides which of them an owner may learn (M-09).
	Deleted(ctx context.Context, q DeletedQuery, yield func(Deletion) error) error

	// Everything streams every resource of q.Type in the range of q, each once, in any order, whether it is about a
	// patient or not, also those that ForPatients leaves out (fhir.IsStored; system level).
	Everything(ctx context.Context, q EverythingQuery, yield func(Resource) error) error

	// Mentions streams, in any order, who mentions the referenced resources q.Refs: of q.Patients those about whom a
	// resource does; or, if that is nil, the referenced resources that do, themselves or by a Provenance about them, as
	// "Type/id". Pairs may come twice, and there may be more: of versions that are not visible. A source that does not know
	// every pair as of q.AsOf returns ErrMentionsUnknown.
	Mentions(ctx context.Context, q MentionsQuery, yield func(by, ref string) error) error

	// LeftOut returns what the store holds or was given and no export of a group or of patients contains, by type and reason
	// (spec 11), in any order. Everything returns those of them that are held.
	LeftOut(ctx context.Context) ([]export.LeftOut, error)
}

// Limits bound one resource. A resource beyond them is left out, counted and told (spec 10).
type Limits struct {
	// longest line of a resource, in bytes; a worker needs about 2.5 times as much memory for each unit
	MaxLine int `env:"MAX_LINE" envDefault:"33554432"`
	// references, and subjects, of a resource
	MaxReferences int `env:"MAX_REFERENCES" envDefault:"10000"`
}

// Validate returns every problem of the limits.
func (l Limits) Validate() error {
	var errs []error
	if l.MaxLine < 1024 || l.MaxLine > 1<<28 {
		errs = append(errs, errors.New("SLUICE_MAX_LINE must be from 1024 to 268435456"))
	}
	if l.MaxReferences < 1 || l.MaxReferences > fhir.MaxSubjects {
		errs = append(errs, fmt.Errorf("SLUICE_MAX_REFERENCES must be from 1 to %d", fhir.MaxSubjects))
	}
	return errors.Join(errs...)
}

// Sizes are the sizes of the whole store.
type Sizes struct {
	Patients int64               // Patient resources
	Types    map[string]TypeSize // by resource type; with zero for one that earlier snapshots may hold
	// DeletionsSince is the instant from which on Deleted is complete; zero: always.
	DeletionsSince time.Time
	// Identity tells the data of a store without history apart from other data: an export must not continue with other data
	// than it was planned with. It is "" if snapshots do not change.
	Identity string
}

// TypeSize is the size of one type.
type TypeSize struct {
	Resources int64
	Bytes     int64 // NDJSON bytes, uncompressed, newlines included
}

// Query selects one type of some patients.
type Query struct {
	Type     string    // a compartment type (fhir.InCompartment)
	Patients []string  // patient ids without "Patient/", sorted ascending, no id twice
	AsOf     time.Time // a result of Snapshot, or zero for now; drivers without history ignore it
	Window
	Narrowing
}

// Window limits a query to what changed. The zero Window is everything. One of the fields is set at most.
type Window struct {
	// After is an earlier result of Snapshot: the query returns the resources whose versions or patients reads as of it do not
	// show. It goes by what was loaded, whatever lastUpdated says, so that a chain of exports loses nothing (spec 9). A
	// source without history may return more.
	After time.Time
	// Since is an instant: the query returns the resources whose lastUpdated is later, and those without one (P-07, P-12).
	Since time.Time
}

// Narrowing lets a driver leave out of a query what the caller's filter would drop, so that it need not send it. A driver
// may ignore it. The zero Narrowing leaves out nothing.
type Narrowing struct {
	// Bound is that of the filter. A driver may leave out a resource whose sketch does not meet it, if the caller would admit
	// the resource without looking at its line: one that is attested under the current rules, and is not about several
	// patients.
	Bound typefilter.Bound
	// LeftOut is told how many were left out, as often as the driver likes. The sum is exact when the query returns nil.
	LeftOut func(n int64)
}

// DeletedQuery selects what was deleted, or is about others now.
type DeletedQuery struct {
	Type     string    // fhir.IsStored
	Patients []string  // of whom a resource was about any, as in Query; nil: the range decides
	From, To string    // as in EverythingQuery, of the patients before; only without Patients
	AsOf     time.Time // what is deleted later does not count
	Window             // zero: everything that is known
}

// Deletion is a resource that reads as of AsOf do not show, or show about other patients.
type Deletion struct {
	ID string
	// Before are the patients that it was about, as Resource.Subjects. Valid until yield returns, as Now.
	Before []string
	// Held reports whether reads as of AsOf show it, and Now whom it is about.
	Held bool
	Now  []string
	// At is when that changed.
	At time.Time
}

// MentionsQuery selects who mentions referenced resources.
type MentionsQuery struct {
	Refs     []string // "Type/id" of referenced types (fhir.IsReferenced), whether they are held or not
	Patients []string // as in Query; nil: referenced resources
	AsOf     time.Time
}

// ErrMentionsUnknown is returned by Mentions.
var ErrMentionsUnknown = errors.New("the source does not know who mentions referenced resources")

// HasByID reports whether ByID reads the type: the referenced types (fhir.IsReferenced), and Binary, which attachments
// name.
func HasByID(typ string) bool { return fhir.IsReferenced(typ) || typ == "Binary" }

// ByIDQuery selects resources of one type.
type ByIDQuery struct {
	Type string   // HasByID
	IDs  []string // sorted ascending, no id twice
	AsOf time.Time
}

// AboutQuery selects the Provenance of resources of the referenced types.
type AboutQuery struct {
	Refs []Ref
	AsOf time.Time
}

// EverythingQuery selects resources of one type, whoever they are about.
type EverythingQuery struct {
	Type string // fhir.IsStored
	// From <= the smallest of the resource's patients < To, in byte order; "" is no bound. A resource without a patient
	// sorts before all others, so that only a query without From returns it, and To of NoPatient returns these alone.
	// Of a type outside the compartment every resource is without a patient.
	From, To string
	AsOf     time.Time
	Window
	Narrowing
}

// NoPatient sorts after no patient and before every id.
const NoPatient = "\x01"

// Ref names one resource.
type Ref struct{ Type, ID string }

// Resource is one resource of the store.
type Resource struct {
	Type string
	ID   string
	// Subjects are the patients that the resource is about by its subject-like links, sorted, without duplicates, and
	// Somebody or Foreigner. For a Provenance they are the patients of its targets, which only the source can look up,
	// and Somebody if it does not hold one of the targets. Empty for ByID and About.
	Subjects []string
	// Named are the Subjects that the body names: all of them, except for a Provenance. Named and References are set
	// only for a resource with an Attestation.
	Named []string
	// References are the "Type/id" of the referenced types (fhir.IsReferenced) that the body names, each once, separated
	// by spaces.
	References []byte
	// Attestation is the result of Attest when the resource was stored, or 0 when the store has none.
	Attestation uint64
	// Body is the resource's JSON on one line, without the newline, valid UTF-8. Body and the slices above are valid
	// only until yield returns.
	Body []byte
}
