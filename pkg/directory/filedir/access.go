package filedir

import (
	"context"
	"fmt"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// MaxAccess is the largest access file, in bytes: about half a million patient ids. Longer lists belong in the database.
const MaxAccess = 16 << 20

// few is the longest list of patients that is also held as a set.
const few = 1000

// grants are the grants of a file. An owner without an entry has the zero grant.
type grants = map[export.Owner]grant

type grant struct {
	directory.Grant
	patients directory.NameList // sorted
}

// Access implements directory.Access on a YAML file. Methods may be called concurrently.
type Access struct {
	file  *configfile.Cached[grants] // nil when the grants are fixed
	fixed grants
}

var _ directory.Access = (*Access)(nil)

// OpenAccess reads the file. It fails on anything that the package comment does not allow.
func OpenAccess(file string) (*Access, error) {
	cached, err := configfile.Open(file, MaxAccess, parseAccess)
	if err != nil {
		return nil, fmt.Errorf("access: %w", err)
	}
	return &Access{file: cached}, nil
}

// AllowOnly returns an Access that allows these owners everything at every level, and all others nothing.
func AllowOnly(owners ...export.Owner) *Access {
	everything := grant{
		Grant: directory.Grant{
			Types: directory.Everything(), Groups: directory.Everything(), Levels: export.Levels(),
		},
		patients: directory.NameList{All: true},
	}
	a := &Access{fixed: make(grants, len(owners))}
	for _, owner := range owners {
		a.fixed[owner] = everything
	}
	return a
}

// Grant implements directory.Access. While the file is missing or invalid, it returns an error that wraps
// export.ErrUnavailable, not the last valid grants: the change may be a revocation.
func (a *Access) Grant(ctx context.Context, owner export.Owner) (directory.Grant, error) {
	granted, err := a.read(ctx)
	return granted[owner].Grant, err
}

// Patients implements directory.Access. Errors as for Grant.
func (a *Access) Patients(
	ctx context.Context, owner export.Owner, use func(directory.Grant, *directory.PatientFilter) error,
) error {
	granted, err := a.read(ctx)
	if err != nil {
		return err
	}
	return use(granted[owner].Grant, granted[owner].patients.Filter())
}

// Check returns the error that Grant would return now, if any. It reads the file if it has changed.
func (a *Access) Check(ctx context.Context) error {
	_, err := a.read(ctx)
	return err
}

func (a *Access) read(ctx context.Context) (grants, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if a.file == nil {
		return a.fixed, nil
	}
	granted, err := a.file.Get()
	if err != nil {
		return nil, fmt.Errorf("access: %w: %w", export.ErrUnavailable, err)
	}
	return granted, nil
}

func parseAccess(data []byte) (grants, error) {
	entries, err := directory.ParseGrants(data)
	if err != nil {
		return nil, err
	}
	granted := make(grants, len(entries))
	for _, entry := range entries {
		of := grant{entry.Grant(), entry.Patients.Sorted()}
		if len(of.patients.Names) <= few {
			selected := of.patients.Selection()
			of.Few = &selected
		}
		granted[entry.Owner] = of
	}
	return granted, nil
}
