package filedir

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// maxAccess is the largest access file, in bytes: about half a million patient ids. Longer lists belong in the database.
const maxAccess = 16 << 20

// Access is directory.Access on a YAML file. Methods may be called concurrently.
type Access struct {
	file string // "" when the grants are fixed

	mu      sync.Mutex
	seen    fs.FileInfo // of the file that grants and problem were read from
	grants  map[export.Owner]directory.Grant
	problem error // why there are no grants
}

var _ directory.Access = (*Access)(nil)

// OpenAccess reads the file and fails on anything that the package does not document.
func OpenAccess(file string) (*Access, error) {
	a := &Access{file: file}
	if a.load(); a.problem != nil {
		return nil, fmt.Errorf("access: %w", a.problem)
	}
	return a, nil
}

// AllowOnly returns an Access that lets these owners export everything, and no one else anything.
func AllowOnly(owners ...export.Owner) *Access {
	everything := directory.Grant{
		Types: directory.Everything(), Groups: directory.Everything(), Patients: directory.Everything(),
	}
	a := &Access{grants: make(map[export.Owner]directory.Grant, len(owners))}
	for _, owner := range owners {
		a.grants[owner] = everything
	}
	return a
}

// Grant implements directory.Access. While the file is missing or invalid, it returns an error that wraps
// export.ErrUnavailable, not the last valid grants: the change may be a revocation.
func (a *Access) Grant(ctx context.Context, owner export.Owner) (directory.Grant, error) {
	if err := ctx.Err(); err != nil {
		return directory.Grant{}, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.refresh(); err != nil {
		return directory.Grant{}, err
	}
	return a.grants[owner], nil
}

// Check returns the error that Grant would return now, if any. It reads the file when it changed.
func (a *Access) Check(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refresh()
}

// refresh reads the file again if it changed. The lock is held.
func (a *Access) refresh() error {
	if a.file != "" {
		info, err := os.Stat(a.file)
		if err != nil {
			return fmt.Errorf("access: %w: %w", export.ErrUnavailable, err)
		}
		if a.seen == nil || !configfile.SameContent(info, a.seen) {
			a.load()
		}
	}
	if a.problem != nil {
		return fmt.Errorf("access: %w: %w", export.ErrUnavailable, a.problem)
	}
	return nil
}

// load reads the file into grants, or sets problem. The lock is held, except by OpenAccess.
func (a *Access) load() {
	a.grants, a.seen = nil, nil
	var data []byte
	if data, a.seen, a.problem = configfile.ReadStable(a.file, maxAccess); a.problem != nil {
		return
	}
	entries, err := directory.ParseGrants(data)
	if err != nil {
		a.problem = fmt.Errorf("%s: %w", filepath.Base(a.file), err)
		return
	}
	a.grants = make(map[export.Owner]directory.Grant, len(entries))
	for _, entry := range entries {
		a.grants[entry.Owner] = entry.Grant()
	}
}
