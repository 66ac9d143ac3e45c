// Package source is the contract between the workers and the clinical data. A driver (ndjson, postgres) reads one
// kind of store; sourcetest is the suite that every driver passes.
//
// A source promises completeness and attribution: everything about the patients asked for, each resource once a call,
// with all the patients that it is about. It does not decide who may see what: the worker checks every resource
// against the job's cohort again before it writes a line.
package source

import (
	"context"
	"time"
)

// Source reads the clinical data. Methods may be called at any time from any goroutine, and a call may be repeated:
// the same arguments give the same resources as long as the data has not changed.
type Source interface {
	// Snapshot returns the instant that a job reads the store at, in whole seconds: every later call with it as AsOf
	// gives what the store held then, whatever is written meanwhile. The instant is the store's own, so that no write
	// that is under way can slip in below it; a store without a past returns now.
	Snapshot(ctx context.Context, now time.Time) (time.Time, error)

	// Sizes tells, for every type the store holds, how much there is in the whole store. Types come in any
	// order. The planner divides by Patients, so estimates are enough.
	Sizes(ctx context.Context) (Sizes, error)

	// ForPatients streams every resource of q.Type that is about any of q.Patients, each once a call. One about
	// several patients comes in the call for each of them, always with all of its Subjects: the worker, who knows
	// the cohort, writes it in one of those calls and passes over it in the others.
	// No order is promised. An error from yield stops the stream and is returned as it is.
	// An empty q.Patients gives nothing: an empty filter is never everybody.
	ForPatients(ctx context.Context, q Query, yield func(Resource) error) error

	// ByID streams the resources of q.Type with the ids of q.IDs that exist; unknown ids are passed over.
	// It serves the referenced types only (fhir.IsReferenced); any other type is an error.
	ByID(ctx context.Context, q ByIDQuery, yield func(Resource) error) error

	// About streams the Provenance resources that have no patient (every target is of a referenced type)
	// and target at least one of q.Refs. A Provenance with several targets may come in several calls.
	About(ctx context.Context, q AboutQuery, yield func(Resource) error) error

	// Problems streams what the store holds but cannot serve (a malformed line), for the types asked for. Problems
	// whose type cannot be told come whatever types are asked for. A place (file and line) is named, never content.
	Problems(ctx context.Context, types []string, yield func(Problem) error) error
}

// Sizes is the shape of the whole store.
type Sizes struct {
	Patients int64               // Patient resources held
	Types    map[string]TypeSize // by resource type
}

// TypeSize is what the store holds of one type.
type TypeSize struct {
	Resources int64
	Bytes     int64 // NDJSON bytes, uncompressed, newlines included
}

// Query asks for one type of some patients.
type Query struct {
	Type     string    // a compartment type (fhir.InCompartment)
	Patients []string  // patient ids without "Patient/", sorted ascending, no id twice
	AsOf     time.Time // what Snapshot returned, or zero for now; a driver that cannot read the past says so in its docs
}

// ByIDQuery asks for resources of one referenced type.
type ByIDQuery struct {
	Type string
	IDs  []string // sorted ascending, no id twice
	AsOf time.Time
}

// AboutQuery asks for the Provenance of resources of the referenced types.
type AboutQuery struct {
	Refs []Ref
	AsOf time.Time
}

// Ref names one resource.
type Ref struct{ Type, ID string }

// Resource is one line to be.
type Resource struct {
	Type string
	ID   string
	// Subjects are the patients the resource is about by its subject-like links, sorted, no id twice. For a
	// Provenance they are the patients of its targets: only the source can know them. Empty for ByID and About.
	Subjects []string
	// Named are those of Subjects that the body itself names, which is all of them but for a Provenance; known, as
	// References are, only of a resource with an Attestation.
	Named []string
	// References are the "Type/id" of the referenced types (fhir.IsReferenced) that the body names, each once, with
	// a space between.
	References []byte
	// Attestation is what Attest returned when the resource was stored, or 0 when the store keeps none.
	Attestation uint64
	// Body is the resource's JSON on one line, without the newline, valid UTF-8. It is the caller's only until yield
	// returns. So are the lists above.
	Body []byte
}

// Problem is one thing that the store holds and cannot serve.
type Problem struct {
	Type  string // resource type, or "" when it cannot be told
	Place string // such as "Observation.ndjson.gz line 17"
	What  string // such as "not valid JSON"; never content of the line
}
