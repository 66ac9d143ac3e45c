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

// maxAccess is the largest access file, in bytes: some half a million patient ids. Whoever lists more patients keeps
// them in a database.
const maxAccess = 16 << 20

// Access is directory.Access on a YAML file. Its methods may be called from any goroutine.
type Access struct {
	file string // "" when the grants are fixed

	mu      sync.Mutex
	seen    fs.FileInfo // the file that grants and problem come from
	grants  map[export.Owner]directory.Grant
	problem error // why there are no grants
}

var _ directory.Access = (*Access)(nil)

// OpenAccess reads the file and fails on everything in it that is not exactly as the package documents.
func OpenAccess(file string) (*Access, error) {
	a := &Access{file: file}
	if a.load(); a.problem != nil {
		return nil, fmt.Errorf("access: %w", a.problem)
	}
	return a, nil
}

// AllowOnly is the access of a server whose only users are these, who may export everything.
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

// Grant implements directory.Access. While the file is gone or cannot be read as it is, the answer is an error that
// wraps export.ErrUnavailable, not the grants of before: the change may be one that takes something away.
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

// Check reports whether the grants can be read as they are now. It costs what a call costs: a look at the file, and
// reading it when it changed.
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

// load reads the file into grants, or problem. The lock is held, or nobody else knows of a yet.
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
