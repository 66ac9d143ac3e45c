package ndjson

import (
	"cmp"
	"context"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// margin is how much the time of a change may be too early: some file systems round to two seconds, and the clocks of the
// file system and of the processes differ.
const margin = 2 * time.Second

// history tells whether the folder was changed since an instant. It has one answer for the whole folder, because a change
// of one file may change what is served from the others: an older version, a reference, the patients of a Provenance.
type history struct {
	dir     string
	log     *slog.Logger
	now     func() time.Time
	changed time.Time // the last change before the folder was read
	unsure  bool      // a file or folder could not be opened, or its time not be read, or is in the future

	mu      sync.Mutex
	current time.Time // the last instant at which the folder was known to be as it was read
}

// begin looks up when the folder was last changed, before it is read.
func begin(ctx context.Context, config Config) (*history, error) {
	h := &history{dir: config.Dir, log: config.Logger, now: config.now, current: config.now()}
	var err error
	if h.changed, err = lastChange(ctx, h.dir); err != nil {
		h.log.WarnContext(ctx, "the folder cannot tell what changed; exports that continue have everything", "err", err)
	}
	h.unsure = err != nil || h.changed.After(h.current)
	return h, ctx.Err()
}

// look returns the last instant at which the folder is known to be as it was read.
func (h *history) look(ctx context.Context) (time.Time, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	changed, err := lastChange(ctx, h.dir)
	switch {
	case ctx.Err() != nil:
		return time.Time{}, ctx.Err()
	case err != nil:
		h.log.WarnContext(ctx, "look for changes of the folder", "err", err)
	case changed.Equal(h.changed):
		h.current = now
	}
	return h.current, nil
}

// sameAs reports whether reads as of after, a result of Snapshot of any process, return what they return now.
func (h *history) sameAs(ctx context.Context, after time.Time) (bool, error) {
	if h.unsure || after.Before(h.changed.Add(margin)) {
		return false, nil
	}
	h.mu.Lock()
	current := h.current
	h.mu.Unlock()
	if !after.After(current) {
		return true, nil
	}
	current, err := h.look(ctx) // another process has looked later
	return !after.After(current), err
}

// lastChange returns when a file or a subfolder in the folder, or the folder itself, was last changed. Hidden ones do not
// count. A file that is added, replaced, renamed or removed changes its folder. With an error the time may be too early.
func lastChange(ctx context.Context, dir string) (last time.Time, err error) {
	note := func(info fs.FileInfo) {
		if at := changed(info); at.After(last) {
			last = at
		}
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return last, err
	}
	for ; path != filepath.Dir(path); path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		if err != nil {
			return last, err
		}
		if info.Mode()&fs.ModeSymlink != 0 { // it may have led to another folder
			note(info)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return last, err
	}
	defer root.Close()
	var failed error // the first one; the rest is examined
	err = fs.WalkDir(root.FS(), ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case entry == nil: // the folder itself
			return err
		case name != "." && strings.HasPrefix(entry.Name(), "."):
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, infoErr := entry.Info()
		if infoErr == nil {
			note(info)
			if info.Mode()&fs.ModeSymlink != 0 {
				// lines.InFolder reports a broken link, if its name is that of a file with resources.
				if target, err := root.Stat(filepath.FromSlash(name)); err == nil {
					note(target)
				}
			}
		}
		failed = cmp.Or(failed, err, infoErr)
		return nil
	})
	return last, cmp.Or(err, failed)
}
