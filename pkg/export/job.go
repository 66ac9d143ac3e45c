package export

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"
)

// JobID names a job in URLs, keys and logs: 128 random bits as 26 characters of lower-case base32.
type JobID string

var jobIDForm = regexp.MustCompile(`^[a-z2-7]{26}$`)

// NewJobID returns a fresh random id.
func NewJobID() JobID {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails: it aborts the process instead
	return JobID(strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:])))
}

// ParseJobID returns the id when s has the form of one. Any other text is ErrNotFound.
func ParseJobID(s string) (JobID, error) {
	if !jobIDForm.MatchString(s) {
		return "", fmt.Errorf("job id: %w", ErrNotFound)
	}
	return JobID(s), nil
}

// Owner is the user that a job belongs to: the same subject from two issuers is two users (spec 1).
type Owner struct {
	Issuer  string `json:"iss"`
	Subject string `json:"sub"`
}

// Hash returns a stable name of the owner for logs and admin output, which never contain the subject itself.
func (o Owner) Hash() string { return o.Key()[:16] }

// Key returns the name of the owner in store keys. It has a fixed length and is unique.
func (o Owner) Key() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d:%s%s", len(o.Issuer), o.Issuer, o.Subject))
	return hex.EncodeToString(sum[:])
}

// Dialect is the form of a job's responses (spec 9).
type Dialect string

// The dialects: Classic is the documented service, IG is the HL7 Bulk Data Access IG.
const (
	Classic Dialect = "classic"
	IG      Dialect = "ig"
)

// Level says whose data a job exports (L-01 to L-03).
type Level string

// The levels of an export.
const (
	GroupLevel   Level = "group"   // the members of a group
	PatientLevel Level = "patient" // every patient that the owner may see
	SystemLevel  Level = "system"  // everything that the owner may see, about a patient or not
)

// Levels returns every level.
func Levels() []Level { return []Level{GroupLevel, PatientLevel, SystemLevel} }

// Request is a validated kick-off. It is stored with the job and never changes. Its fields are what the chain of stages is
// built from; a field that is absent is a stage that is absent.
type Request struct {
	URL     string   `json:"url"`             // the absolute URL of the request, on the public base URL
	Level   Level    `json:"level,omitempty"` // see AtLevel
	GroupID string   `json:"group"`           // the group to export, at the group level
	Types   []string `json:"types"`           // the requested types, else all allowed ones; sorted; never empty
	Dialect Dialect  `json:"dialect"`         // fixed at kick-off

	// Through are the types that the owner may export and did not ask for. They are read for what they reference, and not
	// written, when Types has only referenced types (P-17); else it is empty.
	Through []string `json:"through,omitempty"`
	// Asked are the patients of the parameter `patient`, which the cohort is limited to. Nil: it is not limited.
	Asked *Asked `json:"asked,omitempty"`
	// Filters are the queries of `_typeFilter`, as in "Type?name=value"; several of a type are alternatives (P-32). A type
	// without one is not filtered.
	Filters []string `json:"filters,omitempty"`
	// Elements are the entries of `_elements`, as in "id" and "Patient.name" (P-19). None: resources are whole.
	Elements []string `json:"elements,omitempty"`
	// Since is `_since`; zero if absent. After is set instead when `_since` continues an export of the owner: its snapshot
	// (spec 9). Until is `_until`.
	Since time.Time `json:"since,omitzero"`
	After time.Time `json:"after,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Associated is the value of `includeAssociatedData` that counts (P-28); "" if absent.
	Associated Associated `json:"associated,omitempty"`
	// OrganizedBy is `organizeOutputBy`: "Patient" or "" (P-37).
	OrganizedBy string `json:"organizedBy,omitempty"`
	// Partial is `allowPartialManifests` (P-39).
	Partial bool `json:"partial,omitempty"`
	// SeparateStatus says that a poll is answered with 200, and the code of the export has a header of its own (S-19).
	SeparateStatus bool `json:"separateStatus,omitempty"`
	// Ignored has what the kick-off ignored because of handling=lenient, each a sentence for the owner (K-17).
	Ignored []string `json:"ignored,omitempty"`
}

// AtLevel returns the level. Jobs of earlier versions have none stored: they export a group.
func (r Request) AtLevel() Level { return cmp.Or(r.Level, GroupLevel) }

// Follows reports whether references in or to resources of the type count.
func (r Request) Follows(typ string) bool {
	return slices.Contains(r.Types, typ) || slices.Contains(r.Through, typ)
}

// Base returns the public base URL of the kick-off, without a slash at its end, and false if URL is of another form.
func (r Request) Base() (string, bool) {
	operation, _, _ := strings.Cut(r.URL, "?")
	at := strings.LastIndexByte(operation, '/')
	if at < 0 {
		return "", false
	}
	switch base := operation[:at]; r.AtLevel() {
	case SystemLevel:
		return base, true
	case PatientLevel:
		return strings.CutSuffix(base, "/Patient")
	default:
		return strings.CutSuffix(base, "/Group/"+r.GroupID)
	}
}

// Incremental reports whether the job exports only what changed since an instant, and what was deleted.
func (r Request) Incremental() bool { return !r.Since.IsZero() || !r.After.IsZero() }

// Plain reports whether workers that know only the export of a group would run the request correctly.
func (r Request) Plain() bool {
	known := Request{
		URL: r.URL, Level: r.Level, GroupID: r.GroupID, Types: r.Types, Dialect: r.Dialect, SeparateStatus: r.SeparateStatus,
	}
	return r.AtLevel() == GroupLevel && reflect.DeepEqual(r, known)
}

// Associated is a kind of associated data.
type Associated string

// The kinds of associated data (P-26, P-27).
const (
	LatestProvenance   Associated = "LatestProvenanceResources"
	RelevantProvenance Associated = "RelevantProvenanceResources"
)

// Asked describes the stored list of the patients that a kick-off names. It is one object, because Redis holds no
// patient ids: one id a line, ascending, each once.
type Asked struct {
	Key      string `json:"key"`    // object key
	Patients int64  `json:"count"`  // ids in the list
	SHA256   string `json:"sha256"` // of the list, lower-case hex
}

// Job is one export as it is stored. Times are UTC with millisecond precision; the zero time means "not yet".
type Job struct {
	ID       JobID
	Owner    Owner
	Request  Request
	State    State
	Created  time.Time
	Snapshot time.Time // the instant at which the data is read; frozen by the plan
	Finished time.Time // completed or failed
	Expires  time.Time // from this instant on the job does not exist (spec 6)
	Data     string    // identity of the data that the plan read; "" if the source keeps versions. Set by the plan
	Percent  int       // 0..99 until sealed, never decreasing
	Failure  string    // why the job failed, for its owner
	Cohort   Cohort    // set by the plan
	Manifest string    // object key of the sealed file list (one JSON File a line); set by the seal
	Digest   string    // SHA-256 of the sealed file list, lower-case hex; "" when an earlier version sealed the job
	// Resources has the numbers of each type; set by the seal. Nil when an earlier version sealed the job.
	Resources []Numbers
	Key       []byte // the data key of its objects, wrapped (pkg/envelope); empty: they are in plaintext. Fixed at kick-off
	Trace     string // W3C traceparent of the kick-off, the parent of its units' spans; empty: not traced. Fixed at kick-off

	Unconfirmed bool // the kick-off has not yet queued the plan
}

// Visible reports whether the owner may still see the job: it is not cancelled, and not expired by the clock (spec 6).
func (j Job) Visible(now time.Time) bool {
	if j.State == Cancelled || j.State == Expired {
		return false
	}
	return j.Expires.IsZero() || now.Before(j.Expires)
}

// Cohort describes the stored list of patients whose data a job may export.
type Cohort struct {
	Prefix   string `json:"prefix"`   // object key prefix of the chunks
	Chunks   int    `json:"chunks"`   // chunk objects, numbered from 0
	Patients int64  `json:"patients"` // ids in all chunks, no id twice

	// Digest is what the stored list is verified against, lower-case hex.
	Digest string `json:"digest,omitempty"`

	// Of an incremental export: Joined are those of the cohort whose data is exported whole, Gone are patients of the
	// level that were deleted since, and are not in the cohort.
	Joined Sublist `json:"joined,omitzero"`
	Gone   Sublist `json:"gone,omitzero"`
}

// Sublist describes a stored list of patients beside the cohort. Its chunks and digest are as those of a Cohort.
type Sublist struct {
	Prefix string `json:"prefix"`
	Chunks int    `json:"chunks"`
	Digest string `json:"digest"`
}
