package ndjson

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// margin is how much the time of a change may be too early: some file systems round to two seconds, and the clocks of the
// file system and of the processes differ.
const margin = 2 * time.Second

// history tells whether the folder was changed since an instant. It has one answer for the whole folder, because a change
// of one file may change what is served from the others: an older version, a reference, the patients of a Provenance.
type history struct {
	dir     string
	changed time.Time // the last change before the folder was read
	unsure  bool      // a file or a folder could not be opened, or its time not be read, or it is in the future
	now     func() time.Time

	mu      sync.Mutex
	current time.Time // the last instant at which the folder was known to be as it was read
}

// begin looks up when the folder was changed before it was read.
func (s *Source) begin(ctx context.Context, config Config) error {
	h := &s.history
	changed, sure, err := lastChange(ctx, config.Dir)
	h.dir, h.now, h.current, h.changed = config.Dir, config.now, s.read, changed
	h.unsure = h.unsure || !sure || changed.After(s.read)
	return err
}

// sameAs reports whether reads as of after, a result of Snapshot of any process, return what s returns.
func (s *Source) sameAs(ctx context.Context, after time.Time) (bool, error) {
	h := &s.history
	if h.unsure || after.Before(h.changed.Add(margin)) {
		return false, nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !after.After(h.current) {
		return true, nil
	}
	// Another process read the folder later: look whether it was changed between.
	now := h.now()
	changed, sure, err := lastChange(ctx, h.dir)
	switch {
	case err != nil:
		return false, fmt.Errorf("%w: look for changes of the folder: %w", export.ErrUnavailable, err)
	case !sure, !changed.Equal(h.changed), after.After(now):
		return false, nil
	}
	h.current = now
	return true, nil
}

// lastChange returns when a file or a subfolder in the folder, or the folder itself, was last changed, and whether the times
// of all could be read. Hidden ones do not count. A file that is added, replaced, renamed or removed changes its folder.
func lastChange(ctx context.Context, dir string) (last time.Time, sure bool, err error) {
	note := func(info fs.FileInfo) {
		if at := changed(info); at.After(last) {
			last = at
		}
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return last, false, err
	}
	for ; path != filepath.Dir(path); path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		if err != nil {
			return last, false, err
		}
		if info.Mode()&fs.ModeSymlink != 0 { // it may have led to another folder
			note(info)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return last, false, err
	}
	defer root.Close()
	sure = true
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		hidden := name != "." && strings.HasPrefix(entry.Name(), ".")
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && name == ".":
			return err
		case hidden && entry.IsDir():
			return fs.SkipDir
		case hidden:
			return nil
		}
		info, infoErr := entry.Info()
		if err != nil || infoErr != nil {
			sure = false
			return nil
		}
		note(info)
		if info.Mode()&fs.ModeSymlink != 0 { // to a file with resources: lines.InFolder reports it if it is broken
			if info, err := root.Stat(filepath.FromSlash(name)); err == nil {
				note(info)
			}
		}
		return nil
	})
	return last, sure, err
}
