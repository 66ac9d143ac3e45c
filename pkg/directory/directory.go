// Package directory knows who is in which group and who may export what. Sluice does not own groups: it reads them
// (spec 1). Access fails closed: no entry means no access.
package directory

import (
	"context"
	"errors"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// ErrNoGroup says that a group does not exist or cannot be exported (inactive, definitional). Whether it exists is
// never told apart from whether it may be exported.
var ErrNoGroup = errors.New("no such group")

// Groups reads group membership. Two implementations: files and Postgres.
type Groups interface {
	// Exists returns nil when the group can be exported and ErrNoGroup when not.
	Exists(ctx context.Context, groupID string) error

	// Members streams the ids of the group's active patient members, without "Patient/". An id may come twice; the
	// order is not defined. ErrNoGroup as for Exists. An error from yield stops the stream and is returned as it is.
	// Inactive members, members whose period is over or has not begun, and members that are not patients are left out.
	Members(ctx context.Context, groupID string, yield func(patientID string) error) error
}

// Access reads grants.
type Access interface {
	// Grant returns what the owner may export. An owner without an entry gets the zero Grant, which allows nothing.
	Grant(ctx context.Context, owner export.Owner) (Grant, error)
}

// Grant is what one owner may export. The zero Grant allows nothing.
type Grant struct {
	Types    Selection // resource types
	Groups   Selection // group ids
	Patients Selection // patient ids
}

// Selection is a set of names: listed ones, or all but listed ones. The zero Selection is empty.
type Selection struct {
	all    bool
	listed map[string]struct{}
}

// Everything selects every name.
func Everything() Selection { return Selection{all: true} }

// Only selects the names given.
func Only(names ...string) Selection { return Selection{listed: set(names)} }

// AllBut selects every name except the ones given.
func AllBut(names ...string) Selection { return Selection{all: true, listed: set(names)} }

// Has reports whether the name is selected. The empty name never is.
func (s Selection) Has(name string) bool {
	_, listed := s.listed[name]
	return name != "" && listed != s.all
}

func set(names []string) map[string]struct{} {
	m := make(map[string]struct{}, len(names))
	for _, name := range names {
		m[name] = struct{}{}
	}
	return m
}
