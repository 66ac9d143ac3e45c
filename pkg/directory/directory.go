// Package directory is the contract of group membership and access grants. Sluice does not own groups: it reads them
// (spec 1). Access fails closed: no entry means no access. Errors never contain a patient id.
package directory

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ErrNoGroup means that the group does not exist or cannot be exported (inactive, definitional). The two cases are
// indistinguishable on purpose.
var ErrNoGroup = errors.New("no such group")

// ErrUnreadable is the export.ErrUnavailable of a group whose definition is not valid. It lasts until the data is
// corrected.
var ErrUnreadable = fmt.Errorf("the definition of the group cannot be read: %w", export.ErrUnavailable)

// Groups reads group membership. filedir and pgdir implement it.
type Groups interface {
	// Exists returns nil if the group can be exported, else ErrNoGroup, or ErrUnreadable.
	Exists(ctx context.Context, groupID string) error

	// Members streams the ids of the group's active patient members, without "Patient/", in any order; an id may occur
	// twice. Members of a member group are members, if the member group can be exported; each group counts once, so
	// cycles end. ErrNoGroup as for Exists. An error from yield ends the stream and is returned unchanged.
	//
	// Inactive members and members outside their period are not active. Members counts the active ones that it left out,
	// by reason (spec 11): those that are no patient of this server, and the member groups that cannot be exported.
	Members(ctx context.Context, groupID string, yield func(patientID string) error) ([]export.LeftOut, error)

	// Unknown returns those of the patients (FHIR ids, ascending, each once) that are not active patient members of the
	// group, in their order. With the group "" it returns those that are no Patient that the server holds (P-23); a directory
	// that cannot look them up returns none then. ErrNoGroup as for Exists.
	Unknown(ctx context.Context, groupID string, patients []string) ([]string, error)

	// Find streams the groups that can be exported and whose id is greater than after, ascending by id (L-07): those of
	// the FHIR ids, or with nil all. It leaves out groups that are ErrUnreadable. An error from yield ends the stream and is
	// returned unchanged.
	Find(ctx context.Context, ids []string, after string, yield func(Details) error) error
}

// Details are what a group is called. They decide nothing.
type Details struct {
	ID          string
	Name        string // "" for none
	Identifiers []Identifier
	Quantity    *int64 // Group.quantity, as its author counted; nil if it is missing
}

// Identifier is one of Group.identifier. One of its values may be empty.
type Identifier struct {
	System string `json:"system,omitempty"`
	Value  string `json:"value,omitempty"`
}

// Access reads grants. A grant may list millions of patients, so no call holds them in memory.
type Access interface {
	// Grant returns the owner's grant, without reading a long list of patients: the zero Grant for an owner without an entry.
	Grant(ctx context.Context, owner export.Owner) (Grant, error)

	// Patients calls use once, with the owner's grant and its patients from one consistent read: the zero Grant and no
	// patient for an owner without an entry. An error of use is returned unchanged. An invalid list may be detected at its
	// end, so discard what use has done if Patients returns an error.
	Patients(ctx context.Context, owner export.Owner, use func(Grant, *PatientFilter) error) error
}

// Grant is what one owner may export. The zero Grant allows nothing.
type Grant struct {
	Types  Selection  // resource types
	Groups Selection  // group ids
	Levels Levels     // levels of export
	Few    *Selection // patient ids if the list is short, else nil; it only saves work, PatientFilter decides
}

// Levels are the levels of export that a grant allows. Without any it allows the group level alone.
type Levels []export.Level

// Has reports whether the level is allowed.
func (l Levels) Has(level export.Level) bool {
	if len(l) == 0 {
		return level == export.GroupLevel
	}
	return slices.Contains(l, level)
}

// Selection is a set of names: the listed names, or all but the listed names. The zero Selection is empty.
type Selection struct {
	all    bool
	listed map[string]struct{}
}

// Everything selects every name.
func Everything() Selection { return Selection{all: true} }

// Only selects the given names.
func Only(names ...string) Selection { return Selection{listed: set(names)} }

// AllBut selects every name except the given ones.
func AllBut(names ...string) Selection { return Selection{all: true, listed: set(names)} }

// Has reports whether the name is selected. It is false for the empty name.
func (s Selection) Has(name string) bool {
	_, listed := s.listed[name]
	return name != "" && listed != s.all
}

// IsEverything reports whether every name is selected.
func (s Selection) IsEverything() bool { return s.all && len(s.listed) == 0 }

func set(names []string) map[string]struct{} {
	m := make(map[string]struct{}, len(names))
	for _, name := range names {
		m[name] = struct{}{}
	}
	return m
}
